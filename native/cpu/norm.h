#ifndef LLMOS_NORM_H
#define LLMOS_NORM_H
#include "types.h"

/* --- norm.c --------------------------------------------------------------------------------------------- */

/* y = x / sqrt(mean(x^2) + epsilon) * weight for rows [m][k]; y may be x. A row's bits depend on that row alone. */
void llmos_rms_norm(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k,
                    float *y, int64_t ldy);

#endif
