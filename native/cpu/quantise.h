#ifndef LLMOS_QUANTISE_H
#define LLMOS_QUANTISE_H
#include "types.h"

/* Rows to int8, symmetric, each with its own scale.
 *
 * For each row: a = max |x|, inverse = 127 / a, q = clip(round_half_even(x * inverse), -127, 127),
 * scale = a / 127, sum = sum of q; each operation rounds once, in fp32. A row of zeros has q = 0 and scale 0.
 * A row with an infinity or NaN has scale infinity or NaN, and integers that mean nothing.
 *
 * x: [m][ldx]; q: [m][ldq], ldq at least k rounded up to 8; columns from k to there are set to 0.
 * scale, sum: [m]. All variants give the same bits.
 *
 * Source: Dettmers et al. 2022, "LLM.int8()", arXiv:2208.07339 (vector-wise absmax).
 */
void llmos_quantise_rows(const float *x, int64_t ldx, int32_t m, int32_t k,
                         int8_t *q, int64_t ldq, float *scale, int32_t *sum);

void llmos_quantise_rows_variant(int32_t variant, const float *x, int64_t ldx, int32_t m, int32_t k,
                                 int8_t *q, int64_t ldq, float *scale, int32_t *sum);

#endif
