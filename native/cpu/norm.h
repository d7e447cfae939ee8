#ifndef LLMOS_NORM_H
#define LLMOS_NORM_H
#include "types.h"

/* --- norm.c --------------------------------------------------------------------------------------------- */

/* y = x / sqrt(mean(x^2) + epsilon) * weight for rows [m][k]; y may be x. A row's bits depend on that row alone. */
void llmos_rms_norm(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k,
                    float *y, int64_t ldy);

/* The same rounded to int8, with the bits of llmos_quantise_rows, where scale, sum and what lies behind a row's
 * numbers are described; k is at most 65536. A row whose y has an infinity or NaN has scale NaN.
 */
void llmos_rms_norm_int8(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k,
                         int8_t *q, int64_t ldq, float *scale, int32_t *sum);

#endif
