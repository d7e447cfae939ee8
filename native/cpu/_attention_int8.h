/* The two products of attention over int8: of rounded queries and weights, exact; included by _attention.h. */
#include "_simd_int8.h"

/* Queries of 8 bits, one scale for each (SageAttention, Zhang et al. 2025): keys have no more, and half of what their
 * products would take with 15 is most of what int8 takes longer than its bytes.
 */
static void pack_query_int8(attention_scratch_t *s, int32_t row, const float *from, float factor, int32_t dim)
{
    int8_t *q = (int8_t *)(s->q + (int64_t)row * QUERY_STRIDE);
    vf zero = vf_set(0.0f), most = vf_set(127.0f), magnitude = zero, nothing = zero;
    for (int32_t d = 0; d < dim; d += 16) {
        vf x = vf_load_first(from + d, dim - d < 16 ? dim - d : 16);
        magnitude = vf_max(vf_max(x, vf_sub(zero, x)), magnitude);
    }
    float largest = vf_largest(magnitude), inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    for (int32_t d = 0; d < dim; d += 16) {
        vf x = vf_mul(vf_load_first(from + d, dim - d < 16 ? dim - d : 16), vf_set(inverse));
        nothing = vf_add(nothing, vf_sub(x, x)); /* unless x is not a number */
        float numbers[16];
        vf_store(numbers, vf_round(vf_max(vf_min(x, most), vf_sub(zero, most))));
        for (int32_t i = 0; i < 16 && d + i < dim; i++)
            sum += q[d + i] = (int8_t)numbers[i];
    }
    int32_t is_number = vf_sum(nothing) == 0.0f;
    s->q_sum[row] = sum * 128;
    s->q_scale[row] = is_number ? largest / 127.0f * factor : NAN; /* so that a broken query stays one */
}

/* score_block for int8 keys: integers, then the scales. `width` tokens of each tile exist. */
INLINE void score_block_int8(const int R, const int T, const attention_scratch_t *s, attention_tiles *tiles,
                             int32_t row, int32_t dim,
                             const int32_t width, const char *const *keys, const float *const *scales,
                             float *scores)
{
    vi sums[4][2];
    const char *q = (const char *)(s->q + (int64_t)row * QUERY_STRIDE);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            sums[r][t] = vi_zero();
    for (int32_t d = 0; d < dim; d += 4) {
        vi k[2];
        fetch_next(tiles, R >= INT8_WEIGH_ROWS ? 1 : T);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
            const char *at = keys[t] + (int64_t)d * width;
            char bytes[64] = {0};
            if (width < 16)
                at = memcpy(bytes, at, (size_t)(4 * width));
            k[t] = vi_load(at);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            int32_t x;
            memcpy(&x, q + 4 * r * QUERY_STRIDE + d, sizeof x);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++)
                sums[r][t] = vi_dot_key(sums[r][t], k[t], x);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        if (width == 16)
            fetch_lines((const char *)scales[t + tiles->ahead], 64);
        vf scale = width == 16 ? vf_load(scales[t]) : vf_load_first(scales[t], width);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            vf x = vf_mul(vi_float(sums[r][t], s->q_sum[row + r]), vf_set(s->q_scale[row + r]));
            vf_store(scores + (int64_t)(row + r) * SCORE_STRIDE + t * 16, vf_mul(x, scale));
        }
    }
}

#define SCORE_INT8_TWO(n) score_block_int8(n, 2, s, tiles, row, dim, 16, keys, scales, scores)
#define SCORE_INT8_ONE(n) score_block_int8(n, 1, s, tiles, row, dim, 16, keys, scales, scores)
#define SCORE_INT8_NARROW(n) score_block_int8(n, 1, s, tiles, row, dim, width, keys, scales, scores)

INLINE void score_tiles_int8(const attention_scratch_t *s, attention_tiles *tiles, int32_t rows, int32_t dim,
                             int32_t width)
{
    for (int32_t tile = tiles->from; width == 16 && tile < tiles->to; tile++)
        fetch_lines((const char *)tiles->value_scales[tile], 64); /* all at once, when keys are scored */
    for (int32_t tile = tiles->from; tile < tiles->to;) {
        const char *const *keys = tiles->keys + tile;
        const float *const *scales = tiles->key_scales + tile;
        float *scores = s->scores + tile * width;
        if (width < 16) {
            FOR_ROWS(1, rows, SCORE_INT8_NARROW)
            tile++;
        } else if (KEY_TILES == 2 && tile + 2 <= tiles->to) {
            FOR_ROWS(INT8_ROWS, rows, SCORE_INT8_TWO)
            tile += 2;
        } else {
            FOR_ROWS(INT8_ROWS, rows, SCORE_INT8_ONE)
            tile++;
        }
    }
}

/* The scales of the values at keys [from, to) that a token sees, 0 for those around them; returned is the largest. */
INLINE float gather_scales(const attention_tiles *tiles, float *scales, int32_t from, int32_t to, int32_t width)
{
    vf zero = vf_set(0.0f), largest = zero;
    for (int32_t i = from & ~15; i < to; i += 16) {
        if (width < 16)
            for (int32_t j = i < from ? from - i : 0; j < 16 && i + j < to; j++)
                scales[i + j] = tiles->value_scales[(i + j) / width][(i + j) % width];
        vf x = vf_load(width < 16 ? scales + i : tiles->value_scales[i / 16]);
        if (i < from || i + 16 > to) /* what is not seen may have any scale */
            x = vf_select(x, zero, i < from ? from - i : 0, i + 16 > to ? to - i : 16);
        vf_store(scales + i, x);
        largest = vf_max(x, largest);
    }
    return vf_largest(largest);
}

/* weigh_row for int8 values, whose scales the weights take with them. They are rounded to 16 bits by the largest that
 * they could be, in two bytes each, 0 for the rest of the chunk's first `last` keys. The bytes lie where the scores
 * were, and end before the next of those.
 */
INLINE void weigh_row_int8(const attention_scratch_t *s, attention_tiles *tiles, const float *scales,
                           float largest_scale, int32_t row, int32_t from, int32_t to, int32_t num_lines, int32_t last)
{
    float *scores = s->scores + (int64_t)row * SCORE_STRIDE, factor[16];
    uint8_t *parts = (uint8_t *)scores;
    float largest = mask_scores(scores, from, to), best = raise_best(s, row, largest);
    vf_store(factor, vf_exp2(vf_set(largest - best)));
    largest = factor[0] * largest_scale;
    vf inverse = vf_set(largest > 0x1p-100f ? 65535.0f / largest : 0.0f);
    vf base = vf_set(best), zero = vf_set(0.0f), sum = zero;
    s->w_scale[row] = largest / 65535.0f;
    for (int32_t i = 0; i < (from & ~15); i += 16)
        store_parts(parts + 2 * i, zero);
    for (int32_t i = from & ~15; i < to; i += 16) {
        fetch_next(tiles, num_lines);
        vf weight = vf_exp2(vf_sub(vf_load(scores + i), base));
        sum = vf_add(sum, weight);
        weight = vf_mul(vf_mul(weight, inverse), vf_load(scales + i));
        store_parts(parts + 2 * i, vf_max(weight, zero)); /* zero where it is NaN: the sum is, too */
    }
    for (int32_t i = (to + 15) & ~15; i < last; i += 16)
        store_parts(parts + 2 * i, zero);
    s->total[row] += vf_sum(sum);
}

/* value_block for int8 values of whole tiles [from, to): integers, then the scale. */
INLINE void value_block_int8(const int R, const int C, const int lanes, const attention_scratch_t *s,
                             attention_tiles *tiles, int32_t row, int32_t dim, int32_t column, int32_t from,
                             int32_t to)
{
    vi high[INT8_ROWS][INT8_COLUMNS], low[INT8_ROWS][INT8_COLUMNS];
    const uint8_t *parts = (const uint8_t *)(s->scores + (int64_t)row * SCORE_STRIDE);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
            high[r][c] = low[r][c] = vi_zero();
    for (int32_t tile = from; tile < to; tile++) {
        const char *at = tiles->values[tile] + column * 4;
        const uint8_t *weights = parts + tile * 32;
#pragma GCC unroll 4
        for (int group = 0; group < 4; group++, at += 4 * dim) {
            vi v[INT8_COLUMNS];
            fetch_next(tiles, R >= INT8_WEIGH_ROWS ? 1 : C);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++)
                v[c] = lanes == 16 ? vi_load(at + 64 * c) : vi_load_half(at);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                int32_t x, y;
                memcpy(&x, weights + 4 * r * SCORE_STRIDE + 8 * group, sizeof x);
                memcpy(&y, weights + 4 * r * SCORE_STRIDE + 8 * group + 4, sizeof y);
#pragma GCC unroll 4
                for (int c = 0; c < C; c++) {
                    high[r][c] = vi_dot_value(high[r][c], v[c], x);
                    low[r][c] = vi_dot_value(low[r][c], v[c], y);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++) {
            float *sums = s->sums + (row + r) * s->sum_stride + column + 16 * c;
            vf scale = vf_set(s->w_scale[row + r]);
            vf_store(sums, vf_fma(vi_join(high[r][c], low[r][c]), scale, vf_load(sums)));
        }
}

/* The same for tiles of fewer than 16 tokens, key by key. */
static void add_values_narrow_int8(const attention_scratch_t *s, const char *const *values, int32_t row, int32_t dim,
                                   int32_t width, int32_t from, int32_t to)
{
    const uint8_t *parts = (const uint8_t *)(s->scores + (int64_t)row * SCORE_STRIDE);
    float *sums = s->sums + row * s->sum_stride;
    int32_t sum[256] = {0};
    for (int32_t token = from; token < to; token++) {
        int32_t group = token % width / 4 * 4, together = width - group < 4 ? width - group : 4;
        const int8_t *at = (const int8_t *)values[token / width] + group * dim + token % width % 4;
        int32_t weight = parts[token / 4 * 8 + token % 4] * 256 + parts[token / 4 * 8 + token % 4 + 4];
        for (int32_t d = 0; d < dim; d++)
            sum[d] += weight * at[d * together];
    }
    for (int32_t column = 0; column < dim; column += 16) {
        float x[16];
        for (int i = 0; i < 16; i++)
            x[i] = (float)sum[column + i];
        vf_store(sums + column, vf_fma(vf_load(x), vf_set(s->w_scale[row]), vf_load(sums + column)));
    }
}

#define VALUE_INT8_CALL(n, columns, lanes)                                                                             \
    value_block_int8(n, columns, lanes, s, tiles, first_row + row, dim, column, from / 16, (to + 15) / 16)
#define VALUE_INT8_TWO(n) VALUE_INT8_CALL(n, 2, 16)
#define VALUE_INT8_ONE(n) VALUE_INT8_CALL(n, 1, 16)
#define VALUE_INT8_HALF(n) VALUE_INT8_CALL(n, 1, 8)

/* add_values for int8: a row's weights are 0 for the keys around [from, to) that it does not see. */
INLINE void add_values_int8(const attention_scratch_t *s, attention_tiles *tiles, int32_t first_row, int32_t rows,
                            int32_t dim, int32_t width, int32_t from, int32_t to)
{
    if (from >= to)
        return;
    if (width < 16) {
        for (int32_t row = first_row; row < first_row + rows; row++)
            add_values_narrow_int8(s, (const char *const *)tiles->values, row, dim, width, from, to);
        return;
    }
    int32_t column = 0;
    if (INT8_COLUMNS == 2)
        for (; column + 32 <= dim; column += 32)
            FOR_ROWS(INT8_ROWS, rows, VALUE_INT8_TWO)
    for (; column + 16 <= dim; column += 16)
        FOR_ROWS(INT8_ROWS, rows, VALUE_INT8_ONE)
    if (column < dim)
        FOR_ROWS(INT8_ROWS, rows, VALUE_INT8_HALF)
}
