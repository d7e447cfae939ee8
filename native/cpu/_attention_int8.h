/* The two products of attention over int8: of rounded queries and weights, exact; included by _attention.h. */
#include "_simd_int8.h"

/* Queries of 15 bits in two bytes: x = 128 high + low, low in [-64, 64); four high bytes, then their low ones. */
static void pack_query_int8(attention_scratch_t *s, int32_t row, const float *from, float factor, int32_t dim)
{
    uint8_t *q = (uint8_t *)(s->q + (int64_t)row * QUERY_STRIDE);
    vf zero = vf_set(0.0f), most = vf_set(16256.0f), magnitude = zero, nothing = zero;
    for (int32_t d = 0; d < dim; d += 16) {
        vf x = vf_load_first(from + d, dim - d < 16 ? dim - d : 16);
        magnitude = vf_max(vf_max(x, vf_sub(zero, x)), magnitude);
    }
    float largest = vf_largest(magnitude), inverse = largest > 0.0f ? 16256.0f / largest : 0.0f;
    vf sum = zero; /* exact: whole numbers below 2^24 */
    for (int32_t d = 0; d < dim; d += 16) {
        vf x = vf_mul(vf_load_first(from + d, dim - d < 16 ? dim - d : 16), vf_set(inverse));
        nothing = vf_add(nothing, vf_sub(x, x)); /* unless x is not a number */
        vf number = vf_round(vf_max(vf_min(x, most), vf_sub(zero, most)));
        sum = vf_add(sum, number);
        store_parts(q + 2 * d, vf_fma(number, vf_set(2.0f), vf_set(32768.0f + 128.0f)));
    }
    for (int32_t i = 0; i < 2 * dim; i++) /* 256 (high + 128) + 2 (low + 64) was stored */
        q[i] = (uint8_t)(i & 4 ? (q[i] >> 1) - 64 : q[i] - 128);
    int32_t is_number = vf_sum(nothing) == 0.0f;
    s->q_sum[row] = (int32_t)vf_sum(sum) * 128;
    s->q_scale[row] = is_number ? largest / 16256.0f * factor : NAN; /* so that a broken query stays one */
}

/* score_block for int8 keys: integers, then the scales. `width` tokens of each tile exist. */
INLINE void score_block_int8(const int R, const int T, const attention_scratch_t *s, attention_tiles *tiles,
                             int32_t row, int32_t dim,
                             const int32_t width, const char *const *keys, const float *const *scales,
                             const float *const *value_scales, float *scores)
{
    vi high[4][2], low[4][2];
    const char *q = (const char *)(s->q + (int64_t)row * QUERY_STRIDE);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            high[r][t] = low[r][t] = vi_zero();
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
            int32_t x, y;
            memcpy(&x, q + 4 * r * QUERY_STRIDE + 2 * d, sizeof x);
            memcpy(&y, q + 4 * r * QUERY_STRIDE + 2 * d + 4, sizeof y);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                high[r][t] = vi_dot_key(high[r][t], k[t], x);
                low[r][t] = vi_dot_key(low[r][t], k[t], y);
            }
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
        if (width == 16) {
            fetch_lines((const char *)scales[t + tiles->ahead], 64);
            fetch_lines((const char *)value_scales[t], 64);
        }
        vf scale = width == 16 ? vf_load(scales[t]) : vf_load_first(scales[t], width);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            vf x = vf_mul(vi_join(high[r][t], low[r][t], 7, s->q_sum[row + r]), vf_set(s->q_scale[row + r]));
            vf_store(scores + (int64_t)(row + r) * SCORE_STRIDE + t * 16, vf_mul(x, scale));
        }
    }
}

#define SCORE_INT8_TWO(n) score_block_int8(n, 2, s, tiles, row, dim, 16, keys, scales, value_scales, scores)
#define SCORE_INT8_ONE(n) score_block_int8(n, 1, s, tiles, row, dim, 16, keys, scales, value_scales, scores)
#define SCORE_INT8_NARROW(n) score_block_int8(n, 1, s, tiles, row, dim, width, keys, scales, value_scales, scores)

INLINE void score_tiles_int8(const attention_scratch_t *s, attention_tiles *tiles, int32_t rows, int32_t dim,
                             int32_t width)
{
    for (int32_t tile = tiles->from; tile < tiles->to;) {
        const char *const *keys = tiles->keys + tile;
        const float *const *scales = tiles->key_scales + tile;
        const float *const *value_scales = (const float *const *)tiles->value_scales + tile;
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

/* Then round these weights to 16 bits by the largest, in two bytes each, 0 for the rest of the chunk's first `last`
 * keys. The bytes lie where the numbers were, and end before the next of those.
 */
INLINE void weigh_row_int8(const attention_scratch_t *s, attention_tiles *tiles, int32_t row, int32_t from,
                           int32_t to, int32_t width, int32_t num_lines, int32_t last)
{
    float largest = weigh_row(s, tiles, row, from, to, width, num_lines, 1);
    float *weights = s->scores + (int64_t)row * SCORE_STRIDE;
    uint8_t *parts = (uint8_t *)weights;
    vf inverse = vf_set(largest > 0x1p-100f ? 65535.0f / largest : 0.0f), most = vf_set(65535.0f), zero = vf_set(0.0f);
    s->w_scale[row] = largest / 65535.0f;
    for (int32_t i = 0; i < (from & ~15); i += 16)
        store_parts(parts + 2 * i, zero);
    for (int32_t i = from & ~15; i < to; i += 16) /* zero where it is NaN: the sum of weights is, too */
        store_parts(parts + 2 * i, vf_min(vf_max(vf_mul(vf_load(weights + i), inverse), zero), most));
    for (int32_t i = (to + 15) & ~15; i < last; i += 16)
        store_parts(parts + 2 * i, zero);
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
            vf_store(sums, vf_fma(vi_join(high[r][c], low[r][c], 8, 0), scale, vf_load(sums)));
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
