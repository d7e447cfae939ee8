/* Activation and embedding, by the variant in use. */
#include "activation.h"

#include "_kernels.h"

void llmos_silu_mul(const float *gate, const float *up, int64_t ld, int32_t m, int32_t size, float *y,
                    int64_t ldy)
{
    llmos_kernels_now()->silu_mul(gate, up, ld, m, size, y, ldy);
}

void llmos_embed(const void *table, int32_t format, int32_t dim, const int32_t *ids, int32_t m, float *y,
                 int64_t ldy)
{
    llmos_kernels_now()->embed(table, format, dim, ids, m, y, ldy);
}
