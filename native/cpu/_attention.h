/* Attention of work items; included by kernels_<variant>.c behind _simd.h.
 *
 * An item's rows are (token, query head of the group), token by token. Every score is one chain of fused
 * multiply-adds over d, every output one chain over the keys in order: register tiles of any height and width
 * give the same bits.
 */
#include "_attention_plan.h"

#if defined(SIMD_AVX512) /* 32 registers */
enum { KEY_ROWS = 12, KEY_TILES = 2, FEW_ROWS = 4, FEW_TILES = 4, VALUE_ROWS = 6, VALUE_COLUMNS = 4,
       INT8_ROWS = 4, INT8_COLUMNS = 2 };
#else /* 16, half as wide */
enum { KEY_ROWS = 4, KEY_TILES = 1, FEW_ROWS = 2, FEW_TILES = 2, VALUE_ROWS = 4, VALUE_COLUMNS = 1,
       INT8_ROWS = 1, INT8_COLUMNS = 1 };
#endif

typedef struct {
    float *q;       /* [rows][QUERY_STRIDE], scaled; for int8 keys the bytes of pack_query_int8 */
    float *scores;  /* [rows][SCORE_STRIDE]; for int8 values then the bytes of weigh_row_int8 */
    float *sums;    /* [rows][sum_stride] */
    float *best;    /* [rows] largest score so far */
    float *total;   /* [rows] sum of weights so far */
    float *q_scale; /* [rows] int8 keys only */
    int32_t *q_sum; /* [rows] of a row's integers, times 128 */
    float *w_scale; /* [rows] of a row's weights of a chunk */
    int64_t sum_stride;
} attention_scratch_t;

/* The tiles of one chunk, [from, to), in the order in which they are read: keys, values, then the first keys of the
 * next chunk. While one is used, one some places behind it is fetched: the pieces that lie together in a
 * page are too short for the processor to foresee the next.
 */
typedef struct {
    const char *keys[2 * CHUNK_KEYS + TILES_AHEAD];
    const float *key_scales[2 * CHUNK_KEYS + TILES_AHEAD]; /* int8 only */
    const char **values; /* into the same arrays: values[tile] belong to keys[tile] */
    const float **value_scales;
    int32_t from, to;
    const char *const *fetch_tile, *const *fetch_end; /* int8: what fetch_next is at */
    int32_t fetch_offset, tile_bytes;
} attention_tiles;

static attention_scratch_t attention_scratch(const llmos_kv *kv, void *base)
{
    int64_t rows = attention_scratch_rows(kv), stride = attention_sum_stride(kv);
    attention_scratch_t s = {.q = base, .sum_stride = stride};
    s.scores = s.q + rows * QUERY_STRIDE;
    s.sums = s.scores + rows * SCORE_STRIDE;
    s.best = s.sums + rows * stride;
    s.total = s.best + rows;
    s.q_scale = s.total + rows;
    s.q_sum = (int32_t *)(s.q_scale + rows);
    s.w_scale = s.q_scale + 2 * rows;
    return s;
}

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

/* The first n of sixteen, 0 behind them; memory behind them is not touched. */
INLINE vf load_format_first(const void *p, int format, int32_t n)
{
    char bytes[64] = {0};
    memcpy(bytes, p, (size_t)(n * kv_item_bytes(format)));
    return load_format(bytes, format);
}

/* Places between the tile in use and the one that is fetched: what lies between stays in the first cache. */
INLINE int32_t tiles_ahead(int32_t format)
{
    return format == LLMOS_INT8 ? TILES_AHEAD : format == LLMOS_FP32 ? 2 : 4;
}

INLINE void fetch_lines(const char *at, int32_t size_bytes)
{
#pragma GCC unroll 8
    for (int32_t i = 0; i < size_bytes; i += 64)
        __builtin_prefetch(at + i);
}

/* Fetch the next lines of the chunk's tiles. int8 spends as long on weights as on keys or values: memory would rest if
 * those alone fetched.
 */
INLINE void fetch_next(attention_tiles *tiles, int32_t num_lines)
{
    if (tiles->fetch_tile >= tiles->fetch_end)
        return;
    fetch_lines(*tiles->fetch_tile + tiles->fetch_offset, 64 * num_lines);
    tiles->fetch_offset += 64 * num_lines;
    if (tiles->fetch_offset >= tiles->tile_bytes)
        tiles->fetch_offset = 0, tiles->fetch_tile++;
}

/* scores[r][16 t ..] = q[r] . keys of tile t, for R rows and T tiles. */
INLINE void score_block(const int R, const int T, const int format, const float *q, int32_t dim, const int32_t width,
                        const char *const *keys, float *scores)
{
    vf sum[KEY_ROWS][FEW_TILES]; /* R and T, but not as a variable length: that would live in memory */
    int32_t item = kv_item_bytes(format);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
            sum[r][t] = vf_set(0.0f);
    for (int32_t d0 = 0; d0 < dim; d0 += 4) {
        if (width == 16)
#pragma GCC unroll 4
            for (int t = 0; t < T; t++)
                fetch_lines(keys[t + tiles_ahead(format)] + (int64_t)d0 * 16 * item, 64 * item);
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

/* Heights of register tiles, largest first; those above `limit` compile to nothing. */
#define FOR_ROWS(limit, rows, CALL)                                                                                    \
    for (int32_t row = 0, left = rows; left > 0;) {                                                                    \
        if ((limit) >= 12 && left >= 12) { CALL(12); row += 12, left -= 12; }                                          \
        else if ((limit) >= 8 && left >= 8) { CALL(8); row += 8, left -= 8; }                                          \
        else if ((limit) >= 6 && left >= 6) { CALL(6); row += 6, left -= 6; }                                          \
        else if ((limit) >= 4 && left >= 4) { CALL(4); row += 4, left -= 4; }                                          \
        else if ((limit) >= 3 && left >= 3) { CALL(3); row += 3, left -= 3; }                                          \
        else if ((limit) >= 2 && left >= 2) { CALL(2); row += 2, left -= 2; }                                          \
        else { CALL(1); row += 1, left -= 1; }                                                                         \
    }

#define SCORE_CALL(n, tiles) \
    score_block(n, tiles, format, s->q + (int64_t)row * QUERY_STRIDE, dim, 16, keys, scores + (int64_t)row * SCORE_STRIDE)
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
                            s->scores + (int64_t)row * SCORE_STRIDE + tile * width);
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
                        int32_t to, float *sums, int64_t sum_stride, int32_t fetches)
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
        const char *at = values[tile] + offset, *ahead = values[tile + tiles_ahead(format)] + offset;
        for (; token < end; token++, at += dim * item, ahead += dim * item) {
            vf v[VALUE_COLUMNS];
            if (fetches)
                fetch_lines(ahead, C * lanes * item);
#pragma GCC unroll 4
            for (int c = 0; c < C; c++)
                v[c] = lanes == 16 ? load_format(at + c * 16 * item, format) : load_format_first(at, format, lanes);
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
    value_block(n, columns, lanes, format, weights + (int64_t)row * SCORE_STRIDE, values, width, dim, column, from, to, \
                sums + row * s->sum_stride + column, s->sum_stride, row == 0)
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

/* Sixteen sums of products of four bytes: unsigned ones in `u`, signed ones in `s`. Those of keys (vi_dot_key: unsigned,
 * four dimensions of sixteen keys) or values (signed, four tokens in sixteen dimensions) fill a register, the four
 * of a query or of weights are the same for all sixteen. vi_join: 2^shift high + low - offset.
 * store_parts: of whole numbers below 2^16 the high bytes of four, their low bytes, and so on.
 */
#if defined(SIMD_AVX512)
typedef __m512i vi;
INLINE vi vi_zero(void) { return _mm512_setzero_si512(); }
INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE vi vi_dot(vi sum, vi u, vi s) /* gcc 12 copies and spills the sums around the intrinsic */
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
    return sum;
}
INLINE vi vi_dot_key(vi sum, vi key, int32_t q) { return vi_dot(sum, key, _mm512_set1_epi32(q)); }
INLINE vi vi_dot_value(vi sum, vi value, int32_t w) { return vi_dot(sum, _mm512_set1_epi32(w), value); }
INLINE vf vi_join(vi high, vi low, const int shift, int32_t offset)
{
    vi x = _mm512_add_epi32(_mm512_slli_epi32(high, shift), low);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(x, _mm512_set1_epi32(offset)));
}
INLINE void store_parts(uint8_t *to, vf x)
{
    __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, 9, 11, 13, 15, 8, 10, 12, 14));
    __m256i words = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));
    _mm256_storeu_si256((__m256i *)to, _mm256_shuffle_epi8(words, order));
}
#elif defined(SIMD_AVX2)
typedef struct {
    __m256i l, h;
} vi;
INLINE vi vi_zero(void) { return (vi){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE vi vi_load(const void *p)
{
    return (vi){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
INLINE __m256i dot_half(__m256i sum, __m256i u, __m256i s)
{
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8), odd = _mm256_srai_epi16(s, 8);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0xff)), even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(u, 8), odd));
}
INLINE vi vi_dot_key(vi sum, vi key, int32_t q)
{
    __m256i x = _mm256_set1_epi32(q);
    return (vi){dot_half(sum.l, key.l, x), dot_half(sum.h, key.h, x)};
}
INLINE vi vi_dot_value(vi sum, vi value, int32_t w)
{
    __m256i x = _mm256_set1_epi32(w);
    return (vi){dot_half(sum.l, x, value.l), dot_half(sum.h, x, value.h)};
}
INLINE __m256 join_half(__m256i high, __m256i low, const int shift, int32_t offset)
{
    __m256i x = _mm256_add_epi32(_mm256_slli_epi32(high, shift), low);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(x, _mm256_set1_epi32(offset)));
}
INLINE vf vi_join(vi high, vi low, const int shift, int32_t offset)
{
    return (vf){join_half(high.l, low.l, shift, offset), join_half(high.h, low.h, shift, offset)};
}
INLINE void store_parts(uint8_t *to, vf x)
{
    __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, 9, 11, 13, 15, 8, 10, 12, 14));
    __m256i words = _mm256_packus_epi32(_mm256_cvtps_epi32(x.l), _mm256_cvtps_epi32(x.h));
    _mm256_storeu_si256((__m256i *)to, _mm256_shuffle_epi8(_mm256_permute4x64_epi64(words, 0xd8), order));
}
#else
typedef struct {
    int32_t x[16];
} vi;
INLINE vi vi_zero(void) { return (vi){{0}}; }
INLINE vi vi_load(const void *p)
{
    vi r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE vi vi_dot_key(vi sum, vi key, int32_t q)
{
    uint8_t k[64];
    int8_t x[4];
    memcpy(k, &key, sizeof k);
    memcpy(x, &q, sizeof x);
    for (int i = 0; i < 16; i++)
        sum.x[i] += k[4 * i] * x[0] + k[4 * i + 1] * x[1] + k[4 * i + 2] * x[2] + k[4 * i + 3] * x[3];
    return sum;
}
INLINE vi vi_dot_value(vi sum, vi value, int32_t w)
{
    int8_t v[64];
    uint8_t x[4];
    memcpy(v, &value, sizeof v);
    memcpy(x, &w, sizeof x);
    for (int i = 0; i < 16; i++)
        sum.x[i] += v[4 * i] * x[0] + v[4 * i + 1] * x[1] + v[4 * i + 2] * x[2] + v[4 * i + 3] * x[3];
    return sum;
}
INLINE vf vi_join(vi high, vi low, const int shift, int32_t offset)
{
    vf r;
    for (int i = 0; i < 16; i++)
        r.x[i] = (float)(high.x[i] * (1 << shift) + low.x[i] - offset);
    return r;
}
INLINE void store_parts(uint8_t *to, vf x)
{
    for (int i = 0; i < 16; i++) {
        int32_t word = (int32_t)rintf(x.x[i]);
        to[i / 4 * 8 + i % 4] = (uint8_t)(word >> 8);
        to[i / 4 * 8 + 4 + i % 4] = (uint8_t)word;
    }
}
#endif

/* Turn a row's scores of keys [from, to) into weights; what it has summed is rescaled to the new maximum. Weights of
 * int8 values take these values' scales with them; returned is the largest of them.
 */
INLINE float weigh_row(const attention_scratch_t *s, attention_tiles *tiles, int32_t row, int32_t from, int32_t to,
                       int32_t width, int32_t num_lines, const int is_int8)
{
    float *scores = s->scores + (int64_t)row * SCORE_STRIDE;
    int32_t first = from & ~15;
    vf zero = vf_set(0.0f), lowest = vf_set(-INFINITY), largest = lowest;
    for (int32_t i = first; i < to; i += 16) {
        vf x = vf_load(scores + i);
        if (i < from || i + 16 > to) {
            x = vf_select(x, lowest, i < from ? from - i : 0, i + 16 > to ? to - i : 16);
            vf_store(scores + i, x);
        }
        largest = vf_max(x, largest);
    }
    float before = s->best[row], best = vf_largest(largest);
    best = best > before ? best : before;
    vf base = vf_set(best), sum = zero, carry = vf_exp2(vf_set(before - best));
    largest = zero;
    for (int32_t i = first; i < to; i += 16) {
        vf weight = vf_exp2(vf_sub(vf_load(scores + i), base));
        sum = vf_add(sum, weight);
        if (is_int8) {
            fetch_next(tiles, num_lines);
            float scales[16] = {0};
            if (width < 16)
                for (int32_t j = 0; j < 16 && i + j < to; j++)
                    scales[j] = i + j < from ? 0.0f : tiles->value_scales[(i + j) / width][(i + j) % width];
            weight = vf_mul(weight, vf_load(width < 16 ? scales : tiles->value_scales[i / 16]));
            if (i < from || i + 16 > to) /* what is not seen may have any scale */
                weight = vf_select(weight, zero, i < from ? from - i : 0, i + 16 > to ? to - i : 16);
            largest = vf_max(weight, largest);
        }
        vf_store(scores + i, weight);
    }
    float factor[16];
    vf_store(factor, carry);
    s->best[row] = best;
    s->total[row] = s->total[row] * factor[0] + vf_sum(sum);
    float *sums = s->sums + row * s->sum_stride;
    for (int64_t i = 0; i < s->sum_stride; i += 16)
        vf_store(sums + i, vf_mul(vf_load(sums + i), carry));
    return is_int8 ? vf_largest(largest) : 0.0f;
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
            fetch_lines((const char *)scales[t + tiles_ahead(LLMOS_INT8)], 64);
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

/* Queries of 15 bits in two bytes: x = 128 high + low, low in [-64, 64); four high bytes, then their low ones. */
static void pack_query_int8(attention_scratch_t *s, int32_t row, const float *from, float factor, int32_t dim)
{
    int8_t *q = (int8_t *)(s->q + (int64_t)row * QUERY_STRIDE);
    vf zero = vf_set(0.0f), most = vf_set(16256.0f), magnitude = zero, nothing = zero;
    for (int32_t d = 0; d < dim; d += 16) {
        vf x = vf_load_first(from + d, dim - d < 16 ? dim - d : 16);
        magnitude = vf_max(vf_max(x, vf_sub(zero, x)), magnitude);
    }
    float largest = vf_largest(magnitude), inverse = largest > 0.0f ? 16256.0f / largest : 0.0f;
    int32_t sum = 0;
    for (int32_t d = 0; d < dim; d += 16) {
        int32_t count = dim - d < 16 ? dim - d : 16;
        vf x = vf_mul(vf_load_first(from + d, count), vf_set(inverse));
        nothing = vf_add(nothing, vf_sub(x, x)); /* unless x is not a number */
        float numbers[16];
        vf_store(numbers, vf_round(vf_max(vf_min(x, most), vf_sub(zero, most))));
        for (int32_t i = 0; i < count; i++) {
            int32_t number = (int32_t)numbers[i], high = (number + 64) >> 7;
            q[2 * d + i / 4 * 8 + i % 4] = (int8_t)high;
            q[2 * d + i / 4 * 8 + 4 + i % 4] = (int8_t)(number - high * 128);
            sum += number;
        }
    }
    int32_t is_number = vf_sum(nothing) == 0.0f;
    s->q_sum[row] = sum * 128;
    s->q_scale[row] = is_number ? largest / 16256.0f * factor : NAN; /* so that a broken query stays one */
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
            for (int c = 0; c < C; c++) {
                char bytes[64] = {0};
                v[c] = vi_load(lanes == 16 ? at + 64 * c : (const char *)memcpy(bytes, at, 32));
            }
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

/* Where the tiles of the chunk at `chunk` lie that hold positions [low, end), of one head. */
INLINE void locate_tiles(attention_tiles *tiles, const llmos_kv *kv, const int32_t *pages, int32_t first_page,
                         int32_t head, int32_t chunk, int32_t chunk_keys, int32_t low, int32_t end, const int format)
{
    int32_t dim = kv->head_dim, size = kv->tokens_per_page, width = size < 16 ? size : 16;
    int32_t item = kv_item_bytes(format), is_int8 = format == LLMOS_INT8;
    int64_t head_bytes = (int64_t)size * (dim * item + (is_int8 ? 4 : 0));
    int32_t last = end - chunk < chunk_keys ? end - chunk : chunk_keys;
    tiles->from = chunk < low ? (low - chunk) / width : 0;
    tiles->to = (last + width - 1) / width;
    int32_t num_tiles = tiles->to - tiles->from;
    tiles->values = tiles->keys + num_tiles;
    tiles->fetch_tile = tiles->keys + tiles->from + (chunk > low ? tiles_ahead(format) : 0);
    tiles->fetch_end = tiles->keys + tiles->to + num_tiles + tiles_ahead(format);
    tiles->fetch_offset = 0, tiles->tile_bytes = width * dim * item;
    tiles->value_scales = tiles->key_scales + num_tiles;
    int32_t position = chunk + tiles->from * width, vpn = first_page + position / size, slot = position % size;
    for (int32_t i = 0; i < num_tiles + tiles_ahead(format); i++) {
        int64_t page = pages ? pages[vpn] : vpn;
        int64_t base = page * kv->page_bytes + head * head_bytes, numbers = base + (int64_t)slot * dim * item;
        int64_t scales = base + (int64_t)size * dim + slot * 4;
        int32_t at = tiles->from + i + (i < num_tiles ? 0 : num_tiles); /* keys that follow stand behind the values */
        tiles->keys[at] = (const char *)kv->keys + numbers;
        if (is_int8)
            tiles->key_scales[at] = (const float *)((const char *)kv->keys + scales);
        if (i < num_tiles) {
            tiles->values[at] = (const char *)kv->values + numbers;
            if (is_int8)
                tiles->value_scales[at] = (const float *)((const char *)kv->values + scales);
        }
        if (position + width >= end) /* nothing follows: what is there is fetched again */
            continue;
        position += width, slot += width;
        if (slot >= size)
            slot = 0, vpn++;
    }
}

/* One item: tokens [first, first + n) of a span, one kv head. */
INLINE void attend(const llmos_kv *kv, const llmos_span *span, const int32_t *page_table, const float *q, int64_t ldq,
                   float *out, int64_t ldo, int32_t first, int32_t n, int32_t head, void *scratch, const int format)
{
    attention_scratch_t scratch_parts = attention_scratch(kv, scratch), *s = &scratch_parts;
    attention_tiles tiles;
    int32_t dim = kv->head_dim, group = attention_group(kv), rows = n * group;
    int32_t size = kv->tokens_per_page, width = size < 16 ? size : 16, chunk_keys = CHUNK_KEYS / width * width;
    const int is_int8 = format == LLMOS_INT8;
    int32_t weigh_lines = rows >= INT8_WEIGH_ROWS ? width * dim / 64 / rows : 0;
    float factor = (float)(1.4426950408889634 / sqrt((double)dim)); /* weights are powers of two */
    int32_t p0 = span->start + first, end = p0 + n;
    int32_t low = kv->window && p0 + 1 > kv->window ? p0 + 1 - kv->window : 0;

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
        locate_tiles(&tiles, kv, page_table, span->pages, head, chunk, chunk_keys, low, end, format);
        if (is_int8)
            score_tiles_int8(s, &tiles, rows, dim, width);
        else
            score_tiles(s, &tiles, rows, dim, width, format);

        for (int32_t token = 0; token < n; token++) {
            int32_t sees_from = kv->window ? p0 + token + 1 - kv->window - chunk : 0, sees_to = p0 + token + 1 - chunk;
            int32_t from = sees_from > 0 ? sees_from : 0, to = sees_to < last ? sees_to : last;
            if (from >= to)
                continue;
            for (int32_t row = token * group; row < (token + 1) * group; row++)
                if (is_int8)
                    weigh_row_int8(s, &tiles, row, from, to, width, weigh_lines, last);
                else
                    weigh_row(s, &tiles, row, from, to, width, 0, 0);
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
    static void name(const llmos_kv *kv, const llmos_span *span, const int32_t *page_table, const float *q,            \
                     int64_t ldq, float *out, int64_t ldo, int32_t first, int32_t n, int32_t head, void *scratch)      \
    {                                                                                                                  \
        attend(kv, span, page_table, q, ldq, out, ldo, first, n, head, scratch, format);                               \
    }
ATTEND(attend_fp32, LLMOS_FP32)
ATTEND(attend_fp16, LLMOS_FP16)
ATTEND(attend_bf16, LLMOS_BF16)
ATTEND(attend_int8, LLMOS_INT8)

static void attention(const llmos_kv *kv, const llmos_span *spans, int32_t num_spans, const int32_t *page_table,
                      const float *q, int64_t ldq, float *out, int64_t ldo, int32_t i0, int32_t i1, void *scratch)
{
    int32_t tokens = attention_tile_tokens(kv), item = 0;
    for (const llmos_span *span = spans; span < spans + num_spans && item < i1; span++) {
        int32_t num_items = (span->num_tokens + tokens - 1) / tokens * kv->num_kv_heads;
        for (int32_t i = i0 > item ? i0 - item : 0; i < num_items && item + i < i1; i++) {
            int32_t first = i / kv->num_kv_heads * tokens, head = i % kv->num_kv_heads;
            int32_t left = span->num_tokens - first, n = left < tokens ? left : tokens;
            (kv->format == LLMOS_FP32   ? attend_fp32
             : kv->format == LLMOS_FP16 ? attend_fp16
             : kv->format == LLMOS_BF16 ? attend_bf16
                                        : attend_int8)(kv, span, page_table, q, ldq, out, ldo, first, n, head, scratch);
        }
        item += num_items;
    }
}
