/* The work items of a step's attention, and its kernel. */
#include "attention.h"

#include "_attention_plan.h"
#include "_kernels.h"

int32_t llmos_attention_items(const llmos_kv *kv, const llmos_span *spans, int32_t num_spans)
{
    int32_t tile = attention_tile_tokens(kv), num_tiles = 0;
    for (int32_t i = 0; i < num_spans; i++)
        num_tiles += (spans[i].num_tokens + tile - 1) / tile;
    return num_tiles * kv->num_kv_heads;
}

int64_t llmos_attention_scratch_bytes(const llmos_kv *kv)
{
    int64_t floats = QUERY_STRIDE + SCORE_STRIDE + attention_sum_stride(kv) + 5; /* of a row: see attention_scratch */
    return attention_scratch_rows(kv) * floats * (int64_t)sizeof(float);
}

void llmos_attention(const llmos_kv *kv, const llmos_span *spans, int32_t num_spans, const int32_t *page_table,
                     const float *q, int64_t ldq, float *out, int64_t ldo, int32_t i0, int32_t i1, void *scratch)
{
    llmos_kernels_now()->attention(kv, spans, num_spans, page_table, q, ldq, out, ldo, i0, i1, scratch);
}
