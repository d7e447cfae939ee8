#ifndef LLMOS_ACTIVATION_H
#define LLMOS_ACTIVATION_H
#include "types.h"

/* --- activation.c --------------------------------------------------------------------------------------- */

/* y = gate / (1 + exp(-gate)) * up, [m][ld] to [m][size]; y may be gate with the same stride. A number's bits
 * depend on its gate and up alone.
 */
void llmos_silu_mul(const float *gate, const float *up, int64_t ld, int32_t m, int32_t size, float *y,
                    int64_t ldy);

/* Rows of a table [*][dim], fp32, fp16 or bf16: y[i] = table[ids[i]]. */
void llmos_embed(const void *table, int32_t format, int32_t dim, const int32_t *ids, int32_t m, float *y,
                 int64_t ldy);

#endif
