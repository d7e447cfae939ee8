/* Shapes of keys and values in their pages, and rotation and writing. */
#include "attention.h"

#include "_kernels.h"

#include <errno.h>

int64_t llmos_kv_layer_bytes(const llmos_kv *kv)
{
    int64_t item = kv->format == LLMOS_FP32 ? 4 : kv->format == LLMOS_INT8 ? 1 : 2;
    int64_t scale = kv->format == LLMOS_INT8 ? 4 : 0;
    return (int64_t)kv->num_kv_heads * kv->tokens_per_page * (kv->head_dim * item + scale);
}

int32_t llmos_kv_check(const llmos_kv *kv)
{
    int32_t dim = kv->head_dim, size = kv->tokens_per_page;
    if (kv->format < LLMOS_FP32 || kv->format > LLMOS_INT8 || dim < 8 || dim > 256 || dim % 8 || size < 1 ||
        (size > 16 && size % 16) || kv->num_kv_heads < 1 || kv->num_heads < kv->num_kv_heads ||
        kv->num_heads % kv->num_kv_heads || kv->window < 0 || kv->page_bytes % 64 ||
        kv->page_bytes < llmos_kv_layer_bytes(kv))
        return EINVAL;
    return 0;
}

void llmos_rope_write_kv(const llmos_kv *kv, const llmos_rope *rope, const llmos_span *spans, int32_t num_spans,
                         const int32_t *page_table, float *qkv, int64_t ld, int32_t t0, int32_t t1)
{
    llmos_kernels_now()->rope_write_kv(kv, rope, spans, num_spans, page_table, qkv, ld, t0, t1);
}
