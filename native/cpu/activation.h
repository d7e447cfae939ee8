#ifndef LLMOS_ACTIVATION_H
#define LLMOS_ACTIVATION_H
#include "types.h"

/* --- activation.c --------------------------------------------------------------------------------------- */

/* y = x / (1 + exp(-x)) * up for rows of [gate x | up], each `size` long: [m][2 * size] to [m][size]; y may be
 * gate_up with the same stride. A row's bits depend on that row alone.
 */
void llmos_silu_mul(const float *gate_up, int64_t ldg, int32_t m, int32_t size, float *y, int64_t ldy);

/* Rows of a table [*][dim], fp32, fp16 or bf16: y[i] = table[ids[i]]. */
void llmos_embed(const void *table, int32_t format, int32_t dim, const int32_t *ids, int32_t m, float *y,
                 int64_t ldy);

#endif
