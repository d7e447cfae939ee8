/* The two products of attention over fp32, fp16 and bf16; included by _attention.h. */

INLINE vf load_format(const void *p, int format)
{
    switch (format) {
    case LLMOS_FP32:
        return vf_load(p);
    case LLMOS_FP16:
        return vf_load_fp16(p);
    case LLMOS_BF16:
        return vf_load_bf16(p);
    default:
        return vf_load_int8(p);
    }
}

/* The first eight of sixteen, 0 behind them. */
INLINE vf load_format_half(const void *p, int format)
{
    return format == LLMOS_FP32 ? vf_load_half(p) : format == LLMOS_FP16 ? vf_load_half_fp16(p) : vf_load_half_bf16(p);
}

/* The first n of sixteen, 0 behind them; memory behind them is not touched. */
INLINE vf load_format_first(const void *p, int format, int32_t n)
{
    char bytes[64] = {0};
    memcpy(bytes, p, (size_t)(n * kv_item_bytes(format)));
    return load_format(bytes, format);
}

/* scores[r][16 t ..] = q[r] . keys of tile t, for R rows and T tiles. Fetches keys so many tiles ahead; 0: none. */
INLINE void score_block(const int R, const int T, const int format, const float *q, int32_t dim, const int32_t width,
                        const char *const *keys, float *scores, int32_t ahead)
{
    vf sum[KEY_ROWS][FEW_TILES]; /* R and T, but not as a variable length: that would live in memory */
    int32_t item = kv_item_bytes(format);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            sum[r][t] = vf_set(0.0f);
    for (int32_t d0 = 0; d0 < dim; d0 += 4) {
        if (ahead) { /* in the order of addresses, not of use */
            int32_t at = T * d0;
            fetch_lines(keys[at / dim + ahead] + (int64_t)(at % dim) * 16 * item, 64 * item * T);
        }
#pragma GCC unroll 4
        for (int32_t d = d0; d < d0 + 4; d++) {
            vf k[FEW_TILES];
#pragma GCC unroll 4
            for (int t = 0; t < T; t++)
                k[t] = width == 16 ? load_format(keys[t] + (int64_t)d * 16 * item, format)
                                   : load_format_first(keys[t] + (int64_t)d * width * item, format, width);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                vf x = vf_set(q[r * QUERY_STRIDE + d]);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++)
                    sum[r][t] = vf_fma(x, k[t], sum[r][t]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            vf_store(scores + r * SCORE_STRIDE + t * 16, sum[r][t]);
}

#define SCORE_CALL(n, count)                                                                                           \
    score_block(n, count, format, s->q + (int64_t)row * QUERY_STRIDE, dim, 16, keys,                                   \
                scores + (int64_t)row * SCORE_STRIDE, row == 0 ? tiles->ahead : 0)
#define SCORE_FEW(n) SCORE_CALL(n, FEW_TILES)
#define SCORE_TWO(n) SCORE_CALL(n, 2)
#define SCORE_ONE(n) SCORE_CALL(n, 1)

INLINE void score_tiles(const attention_scratch_t *s, const attention_tiles *tiles, int32_t rows, int32_t dim,
                        int32_t width, const int format)
{
    int32_t tile = tiles->from;
    if (width != 16) {
        for (; tile < tiles->to; tile++)
            for (int32_t row = 0; row < rows; row++)
                score_block(1, 1, format, s->q + (int64_t)row * QUERY_STRIDE, dim, width, tiles->keys + tile,
                            s->scores + (int64_t)row * SCORE_STRIDE + tile * width, 0);
        return;
    }
    if (rows <= FEW_ROWS)
        for (; tile + FEW_TILES <= tiles->to; tile += FEW_TILES) {
            const char *const *keys = tiles->keys + tile;
            float *scores = s->scores + tile * 16;
            FOR_ROWS(FEW_ROWS, rows, SCORE_FEW)
        }
    if (KEY_TILES == 2)
        for (; tile + 2 <= tiles->to; tile += 2) {
            const char *const *keys = tiles->keys + tile;
            float *scores = s->scores + tile * 16;
            FOR_ROWS(KEY_ROWS, rows, SCORE_TWO)
        }
    for (; tile < tiles->to; tile++) {
        const char *const *keys = tiles->keys + tile;
        float *scores = s->scores + tile * 16;
        FOR_ROWS(KEY_ROWS, rows, SCORE_ONE)
    }
}

/* sums[r][16 c ..] += sum over tokens [from, to) of a chunk of weights[r][token] * values[token], for R rows and C
 * columns of 16, or one of 8.
 */
INLINE void value_block(const int R, const int C, const int lanes, const int format, const float *weights,
                        const char *const *values, int32_t width, int32_t dim, int32_t column, int32_t from,
                        int32_t to, float *sums, int64_t sum_stride, int32_t num_ahead)
{
    vf sum[VALUE_ROWS][VALUE_COLUMNS];
    int32_t item = kv_item_bytes(format);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
            sum[r][c] = vf_load(sums + r * sum_stride + c * 16);
    for (int32_t token = from; token < to;) {
        int32_t tile = token / width, slot = token % width, end = (tile + 1) * width < to ? (tile + 1) * width : to;
        int64_t offset = ((int64_t)slot * dim + column) * item;
        const char *at = values[tile] + offset, *ahead = values[tile + num_ahead] + offset;
        for (; token < end; token++, at += dim * item, ahead += dim * item) {
            vf v[VALUE_COLUMNS];
            if (num_ahead)
                fetch_lines(ahead, C * lanes * item);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++)
                v[c] = lanes == 16 ? load_format(at + c * 16 * item, format) : load_format_half(at, format);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                vf p = vf_set(weights[r * SCORE_STRIDE + token]);
#pragma GCC unroll 4
                for (int c = 0; c < C; c++)
                    sum[r][c] = vf_fma(p, v[c], sum[r][c]);
            }
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
            vf_store(sums + r * sum_stride + c * 16, sum[r][c]);
}

#define VALUE_CALL(n, columns, lanes)                                                                                  \
    value_block(n, columns, lanes, format, weights + (int64_t)row * SCORE_STRIDE, values, width, dim, column, from,    \
                to, sums + row * s->sum_stride + column, s->sum_stride, row == 0 ? tiles->ahead : 0)
#define VALUE_FOUR(n) VALUE_CALL(n, 4, 16)
#define VALUE_TWO(n) VALUE_CALL(n, 2, 16)
#define VALUE_ONE(n) VALUE_CALL(n, 1, 16)
#define VALUE_HALF(n) VALUE_CALL(n, 1, 8)

/* Add keys [from, to) of a chunk to the sums of `rows` rows. */
INLINE void add_values(const attention_scratch_t *s, const attention_tiles *tiles, int32_t first_row, int32_t rows,
                       int32_t dim, int32_t width, int32_t from, int32_t to, const int format)
{
    if (from >= to)
        return;
    const char *const *values = tiles->values;
    const float *weights = s->scores + (int64_t)first_row * SCORE_STRIDE;
    float *sums = s->sums + first_row * s->sum_stride;
    int32_t column = 0;
    if (VALUE_COLUMNS >= 4)
        for (; column + 64 <= dim; column += 64)
            FOR_ROWS(VALUE_ROWS, rows, VALUE_FOUR)
    if (VALUE_COLUMNS >= 2)
        for (; column + 32 <= dim; column += 32)
            FOR_ROWS(VALUE_ROWS, rows, VALUE_TWO)
    for (; column + 16 <= dim; column += 16)
        FOR_ROWS(VALUE_ROWS, rows, VALUE_ONE)
    if (column < dim)
        FOR_ROWS(VALUE_ROWS, rows, VALUE_HALF)
}
