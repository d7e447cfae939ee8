/* Attention of work items; included by _variant_kernels.h behind _simd.h.
 *
 * An item's rows are (token, query head of the group), token by token. Every score is one chain of fused
 * multiply-adds over d, every output one chain over the keys in order: register tiles of any height and width
 * give the same bits.
 */
#include "_attention_scratch.h"

#include "_attention_tiles.h"
#include "_attention_weights.h"

#include "_attention_float.h"
#include "_attention_int8.h"

/* One item. Keys of `next` are fetched with its last ones; its own first ones were, where it `is_next` itself. */
INLINE void attend(const llmos_kv *kv, attention_item item, attention_item next, int32_t is_next,
                   const int32_t *page_table, const float *q, int64_t ldq, float *out, int64_t ldo, void *scratch,
                   const int format)
{
    const llmos_span *span = item.span;
    int32_t first = item.first, n = item.n, head = item.head;
    attention_scratch_t scratch_parts = attention_scratch(kv, scratch), *s = &scratch_parts;
    attention_tiles tiles;
    int32_t dim = kv->head_dim, group = attention_group(kv), rows = n * group;
    int32_t size = kv->tokens_per_page, width = size < 16 ? size : 16, chunk_keys = CHUNK_KEYS / width * width;
    const int is_int8 = format == LLMOS_INT8;
    int32_t weigh_lines = rows >= INT8_WEIGH_ROWS ? width * dim / 64 / rows : 0;
    float factor = (float)(1.4426950408889634 / sqrt((double)dim)); /* weights are powers of two */
    int32_t p0 = span->start + first, low = first_seen(kv, item), end = end_seen(item);

    for (int32_t row = 0; row < rows; row++) {
        const float *from = q + (int64_t)(span->first + first + row / group) * ldq +
                            (int64_t)(head * group + row % group) * dim;
        if (is_int8)
            pack_query_int8(s, row, from, factor, dim);
        else
            for (int32_t d = 0; d < dim; d++)
                s->q[(int64_t)row * QUERY_STRIDE + d] = from[d] * factor;
        s->best[row] = -INFINITY;
        s->total[row] = 0.0f;
        memset(s->sums + row * s->sum_stride, 0, (size_t)s->sum_stride * sizeof *s->sums);
    }

    for (int32_t chunk = low / chunk_keys * chunk_keys; chunk < end; chunk += chunk_keys) {
        int32_t last = end - chunk < chunk_keys ? end - chunk : chunk_keys;
        locate_tiles(&tiles, kv, page_table, item, next, is_next || chunk > low, chunk, chunk_keys, format);
        if (is_int8)
            score_tiles_int8(s, &tiles, rows, dim, width);
        else
            score_tiles(s, &tiles, rows, dim, width, format);

        for (int32_t token = 0; token < n; token++) {
            int32_t sees_from = kv->window ? p0 + token + 1 - kv->window - chunk : 0, sees_to = p0 + token + 1 - chunk;
            int32_t from = sees_from > 0 ? sees_from : 0, to = sees_to < last ? sees_to : last;
            if (from >= to)
                continue;
            float scales[CHUNK_KEYS] __attribute__((aligned(64)));
            float largest = is_int8 ? gather_scales(&tiles, scales, from, to, width) : 0.0f;
            for (int32_t row = token * group; row < (token + 1) * group; row++)
                if (is_int8)
                    weigh_row_int8(s, &tiles, scales, largest, row, from, to, weigh_lines, last);
                else
                    weigh_row(s, row, from, to);
        }

        /* Keys that all rows of a register tile see are summed together, the rest row by row around them. int8 rows
         * take what any of them sees together: a weight of 0 adds nothing to an integer.
         */
        int32_t tile_rows = SHARED_ROWS > group ? SHARED_ROWS / group * group : group;
        for (int32_t row = 0; row < rows; row += tile_rows) {
            int32_t count = rows - row < tile_rows ? rows - row : tile_rows;
            int32_t first_token = row / group, last_token = (row + count - 1) / group;
            int32_t all_from = kv->window ? p0 + last_token + 1 - kv->window - chunk : 0;
            int32_t all_to = p0 + first_token + 1 - chunk;
            all_from = all_from > 0 ? all_from : 0;
            all_to = all_to < last ? all_to : last;
            int32_t is_shared = all_from < all_to;
            if (is_int8 && is_shared) {
                int32_t any_from = kv->window ? p0 + first_token + 1 - kv->window - chunk : 0;
                int32_t any_to = p0 + last_token + 1 - chunk;
                add_values_int8(s, &tiles, row, count, dim, width, any_from > 0 ? any_from : 0,
                                any_to < last ? any_to : last);
                continue;
            }
            for (int32_t token = first_token; token <= last_token; token++) {
                int32_t from = kv->window ? p0 + token + 1 - kv->window - chunk : 0, to = p0 + token + 1 - chunk;
                from = from > 0 ? from : 0;
                to = to < last ? to : last;
                if (is_int8)
                    add_values_int8(s, &tiles, token * group, group, dim, width, from, to);
                else
                    add_values(s, &tiles, token * group, group, dim, width, from, is_shared ? all_from : to, format);
            }
            if (is_int8 || !is_shared)
                continue;
            add_values(s, &tiles, row, count, dim, width, all_from, all_to, format);
            for (int32_t token = first_token; token <= last_token; token++) {
                int32_t to = p0 + token + 1 - chunk;
                to = to < last ? to : last;
                add_values(s, &tiles, token * group, group, dim, width, all_to, to, format);
            }
        }
    }

    for (int32_t row = 0; row < rows; row++) {
        float *to = out + (int64_t)(span->first + first + row / group) * ldo +
                    (int64_t)(head * group + row % group) * dim;
        const float *sums = s->sums + row * s->sum_stride;
        float factor_out = 1.0f / s->total[row];
        for (int32_t d = 0; d < dim; d++)
            to[d] = sums[d] * factor_out;
    }
}

#define ATTEND(name, format)                                                                                           \
    static void name(const llmos_kv *kv, attention_item item, attention_item next, int32_t is_next,                    \
                     const int32_t *page_table, const float *q, int64_t ldq, float *out, int64_t ldo, void *scratch)   \
    {                                                                                                                  \
        attend(kv, item, next, is_next, page_table, q, ldq, out, ldo, scratch, format);                                \
    }
ATTEND(attend_fp32, LLMOS_FP32)
ATTEND(attend_fp16, LLMOS_FP16)
ATTEND(attend_bf16, LLMOS_BF16)
ATTEND(attend_int8, LLMOS_INT8)

static void attention(const llmos_kv *kv, const llmos_span *spans, int32_t num_spans, const int32_t *page_table,
                      const float *q, int64_t ldq, float *out, int64_t ldo, int32_t i0, int32_t i1, void *scratch)
{
    int32_t tokens = attention_tile_tokens(kv), begin = 0;
    for (const llmos_span *span = spans; span < spans + num_spans && begin < i1; span++) {
        int32_t num_items = (span->num_tokens + tokens - 1) / tokens * kv->num_kv_heads;
        for (int32_t i = i0 > begin ? i0 - begin : 0; i < num_items && begin + i < i1; i++) {
            attention_item item = item_of(kv, span, i), next = item;
            if (begin + i + 1 < i1)
                next = i + 1 < num_items ? item_of(kv, span, i + 1) : item_of(kv, span + 1, 0);
            (kv->format == LLMOS_FP32   ? attend_fp32
             : kv->format == LLMOS_FP16 ? attend_fp16
             : kv->format == LLMOS_BF16 ? attend_bf16
                                        : attend_int8)(kv, item, next, begin + i > i0, page_table, q, ldq, out, ldo,
                                                       scratch);
        }
        begin += num_items;
    }
}
