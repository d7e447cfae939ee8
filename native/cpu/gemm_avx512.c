/* Products with AVX-512 and VNNI: a register tile of up to 6 rows by 64 columns, 24 accumulators.
 *
 * Weights are the unsigned operand of VPDPBUSD (w + 128), activations the signed one, broadcast four k at a time;
 * 128 times the row's sum is taken away at the end.
 */
#include "_gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum {
    ROWS = 6,         /* of a register tile */
    AHEAD = 4096,     /* bytes that are fetched before they are read */
    FLOAT_DEPTH = 512 /* k of a panel that several row blocks share: 128 KiB of fp32 */
};

/* Sums of one row, or weights of one step: 64 columns. Members and named rows instead of arrays, because gcc keeps
 * arrays of vectors in memory.
 */
typedef struct {
    __m512 a, b, c, d;
} floats;

typedef struct {
    __m512i a, b, c, d;
} integers;

/* Calls `function` with its first argument, the number of rows, a constant. */
#define WITH_ROWS(rows, function, ...)           \
    switch (rows) {                              \
    case 1: function(1, __VA_ARGS__); break;     \
    case 2: function(2, __VA_ARGS__); break;     \
    case 3: function(3, __VA_ARGS__); break;     \
    case 4: function(4, __VA_ARGS__); break;     \
    case 5: function(5, __VA_ARGS__); break;     \
    default: function(6, __VA_ARGS__); break;    \
    }

#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

INLINE __mmask16 column_mask(int32_t n, int32_t column)
{
    int32_t left = n - column;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

INLINE void store_vector(const llmos_product *p, int32_t row, int32_t column, __m512 value)
{
    __mmask16 mask = column_mask(p->w->n, column);
    float *y = p->y + row * p->ldy + column;
    if (p->w->bias)
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, p->w->bias + column));
    if (p->accumulate)
        value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), value);
    _mm512_mask_storeu_ps(y, mask, value);
}

INLINE void store_row(const llmos_product *p, int32_t row, int32_t n0, floats value)
{
    store_vector(p, row, n0, value.a);
    store_vector(p, row, n0 + 16, value.b);
    store_vector(p, row, n0 + 32, value.c);
    store_vector(p, row, n0 + 48, value.d);
}

/* Four lines that will be read soon: the processor's own prefetching ends with each page. */
INLINE void prefetch(const char *data)
{
    _mm_prefetch(data, _MM_HINT_T0);
    _mm_prefetch(data + 64, _MM_HINT_T0);
    _mm_prefetch(data + 128, _MM_HINT_T0);
    _mm_prefetch(data + 192, _MM_HINT_T0);
}

/* --- floating point ------------------------------------------------------------------------------------ */

INLINE __m512 half_floats(const uint16_t *data)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)data));
}

INLINE floats load_partial(const float *data)
{
    return (floats){_mm512_loadu_ps(data), _mm512_loadu_ps(data + 16), _mm512_loadu_ps(data + 32),
                    _mm512_loadu_ps(data + 48)};
}

/* The 64 weights of one k as fp32. */
INLINE floats load_floats(int32_t format, const char *data)
{
    const uint16_t *halves = (const uint16_t *)data;
    if (format == LLMOS_FP32)
        return load_partial((const float *)data);
    if (format == LLMOS_FP16)
        return (floats){half_floats(halves), half_floats(halves + 16), half_floats(halves + 32),
                        half_floats(halves + 48)};
    const __m512i low = _mm512_loadu_si512(data), high = _mm512_loadu_si512(data + 64);
    const __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000);
    return (floats){_mm512_castsi512_ps(_mm512_slli_epi32(low, 16)),
                    _mm512_castsi512_ps(_mm512_and_si512(low, upper)),
                    _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)),
                    _mm512_castsi512_ps(_mm512_and_si512(high, upper))};
}

INLINE floats multiply_add(floats sums, floats weights, __m512 x)
{
    return (floats){_mm512_fmadd_ps(x, weights.a, sums.a), _mm512_fmadd_ps(x, weights.b, sums.b),
                    _mm512_fmadd_ps(x, weights.c, sums.c), _mm512_fmadd_ps(x, weights.d, sums.d)};
}

/* k from k0 to k1 of `rows` rows from `row` on. Sums of an earlier depth come from and go to partial. */
INLINE void float_rows(int rows, int32_t format, const llmos_product *p, const char *data, int32_t row,
                       int32_t k0, int32_t k1, int32_t n0, float *partial)
{
    const int64_t ldx = p->ldx, step = COLUMNS * (format == LLMOS_FP32 ? 4 : 2);
    const float *x = (const float *)p->x + row * ldx;
    floats s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0};
    partial += row * COLUMNS;
    data += k0 * step;
#define LOAD(r) \
    if (rows > r && k0 > 0) \
        s##r = load_partial(partial + r * COLUMNS);
    EACH_ROW(LOAD)
    for (int64_t k = k0; k < k1; k++, data += step) {
        const floats weights = load_floats(format, data);
        if (rows <= 2)
            prefetch(data + AHEAD);
#define ADD(r) \
    if (rows > r) \
        s##r = multiply_add(s##r, weights, _mm512_set1_ps(x[r * ldx + k]));
        EACH_ROW(ADD)
    }
    if (k1 == p->w->k) {
#define STORE(r) \
    if (rows > r) \
        store_row(p, row + r, n0, s##r);
        EACH_ROW(STORE)
    } else {
#define SAVE(r)                                               \
    if (rows > r) {                                           \
        _mm512_storeu_ps(partial + r * COLUMNS, s##r.a);      \
        _mm512_storeu_ps(partial + r * COLUMNS + 16, s##r.b); \
        _mm512_storeu_ps(partial + r * COLUMNS + 32, s##r.c); \
        _mm512_storeu_ps(partial + r * COLUMNS + 48, s##r.d); \
    }
        EACH_ROW(SAVE)
    }
#undef LOAD
#undef ADD
#undef STORE
#undef SAVE
}

TARGET static void float_block(int32_t rows, const llmos_product *p, const char *data, int32_t row, int32_t k0,
                               int32_t k1, int32_t n0, float *partial)
{
    if (p->w->format == LLMOS_FP32) {
        WITH_ROWS(rows, float_rows, LLMOS_FP32, p, data, row, k0, k1, n0, partial)
    } else if (p->w->format == LLMOS_FP16) {
        WITH_ROWS(rows, float_rows, LLMOS_FP16, p, data, row, k0, k1, n0, partial)
    } else {
        WITH_ROWS(rows, float_rows, LLMOS_BF16, p, data, row, k0, k1, n0, partial)
    }
}

static void float_tile(const llmos_product *p, const char *data, int32_t n0)
{
    int32_t blocks = num_blocks(p->m, ROWS), depth = blocks == 1 ? p->w->k : FLOAT_DEPTH;
    for (int32_t k0 = 0; k0 < p->w->k; k0 += depth) {
        int32_t k1 = k0 + depth < p->w->k ? k0 + depth : p->w->k;
        for (int32_t i = 0; i < blocks; i++) {
            int32_t row = block_start(p->m, blocks, i);
            float_block(block_start(p->m, blocks, i + 1) - row, p, data, row, k0, k1, n0, (float *)p->scratch);
        }
    }
}

/* --- integers ------------------------------------------------------------------------------------------ */

INLINE __m512i four_of(const int8_t *x)
{
    int32_t word;
    memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
}

INLINE integers load_integers(const char *data)
{
    return (integers){_mm512_loadu_si512(data), _mm512_loadu_si512(data + 64), _mm512_loadu_si512(data + 128),
                      _mm512_loadu_si512(data + 192)};
}

/* In assembly: gcc 12 copies the accumulator around _mm512_dpbusd_epi32, which then takes twice as long. */
INLINE __m512i dot_vector(__m512i sums, __m512i weights, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(x));
    return sums;
}

INLINE integers dot(integers sums, integers weights, __m512i x)
{
    return (integers){dot_vector(sums.a, weights.a, x), dot_vector(sums.b, weights.b, x),
                      dot_vector(sums.c, weights.c, x), dot_vector(sums.d, weights.d, x)};
}

INLINE __m512 scaled(const llmos_product *p, int32_t row, int32_t column, __m512i sums)
{
    __m512 scale = _mm512_maskz_loadu_ps(column_mask(p->w->n, column), p->w->scale + column);
    __m512i exact = _mm512_sub_epi32(sums, _mm512_set1_epi32(128 * p->xsum[row]));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(scale, _mm512_set1_ps(p->xscale[row])));
}

INLINE void store_integers(const llmos_product *p, int32_t row, int32_t n0, integers sums)
{
    store_row(p, row, n0, (floats){scaled(p, row, n0, sums.a), scaled(p, row, n0 + 16, sums.b),
                                   scaled(p, row, n0 + 32, sums.c), scaled(p, row, n0 + 48, sums.d)});
}

#define INTEGER_SUMS integers s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0};
#define ADD_FOUR(r) \
    if (rows > r) \
        s##r = dot(s##r, weights, four_of(x + r * ldx + i));
#define STORE_INTEGERS(r) \
    if (rows > r) \
        store_integers(p, row + r, n0, s##r);

INLINE void w8_rows(int rows, const llmos_product *p, const char *data, int32_t row, int32_t n0)
{
    const int64_t ldx = p->ldx, k = padded_k(p->w->k);
    const int8_t *x = (const int8_t *)p->x + row * ldx;
    INTEGER_SUMS
    for (int64_t i = 0; i < k; i += 4, data += 4 * COLUMNS) {
        const integers weights = load_integers(data);
        if (rows <= 2)
            prefetch(data + AHEAD);
        EACH_ROW(ADD_FOUR)
    }
    EACH_ROW(STORE_INTEGERS)
}

TARGET static void w8_block(int32_t rows, const llmos_product *p, const char *data, int32_t row, int32_t n0)
{
    WITH_ROWS(rows, w8_rows, p, data, row, n0)
}

static void w8_tile(const llmos_product *p, const char *data, int32_t n0)
{
    int32_t blocks = num_blocks(p->m, ROWS);
    for (int32_t i = 0; i < blocks; i++) {
        int32_t row = block_start(p->m, blocks, i);
        w8_block(block_start(p->m, blocks, i + 1) - row, p, data, row, n0);
    }
}

/* Scales as words and offsets as bytes, as often as a vector of 16 columns by 4 k needs them. */
INLINE __m512i spread_scales(const char *data)
{
    __m512i scale = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)data));
    return _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
}

INLINE __m512i spread_offsets(const char *data)
{
    __m512i offset = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)data));
    offset = _mm512_or_si512(offset, _mm512_slli_epi32(offset, 8));
    return _mm512_or_si512(offset, _mm512_slli_epi32(offset, 16));
}

INLINE integers load_scales(const char *group)
{
    return (integers){spread_scales(group), spread_scales(group + 16), spread_scales(group + 32),
                      spread_scales(group + 48)};
}

INLINE integers load_offsets(const char *group)
{
    group += COLUMNS;
    return (integers){spread_offsets(group), spread_offsets(group + 16), spread_offsets(group + 32),
                      spread_offsets(group + 48)};
}

/* w + 128 of codes in 0..15. A word holds two, and 15 * 17 fits a byte: nothing carries between them. */
INLINE __m512i decode(__m512i codes, __m512i scale, __m512i offset)
{
    return _mm512_add_epi8(_mm512_mullo_epi16(_mm512_and_si512(codes, _mm512_set1_epi8(15)), scale), offset);
}

INLINE integers decode_four(integers codes, integers scales, integers offsets)
{
    return (integers){decode(codes.a, scales.a, offsets.a), decode(codes.b, scales.b, offsets.b),
                      decode(codes.c, scales.c, offsets.c), decode(codes.d, scales.d, offsets.d)};
}

INLINE integers high_nibbles(integers codes)
{
    return (integers){_mm512_srli_epi16(codes.a, 4), _mm512_srli_epi16(codes.b, 4),
                      _mm512_srli_epi16(codes.c, 4), _mm512_srli_epi16(codes.d, 4)};
}

/* One or two rows: from codes to sums in registers. */
INLINE void w4_few_rows(int rows, const llmos_product *p, const char *data, int32_t row, int32_t n0)
{
    const int64_t ldx = p->ldx, k = padded_k(p->w->k);
    const int8_t *x = (const int8_t *)p->x + row * ldx;
    INTEGER_SUMS
    for (int64_t i = 0; i < k;) {
        const integers scales = load_scales(data), offsets = load_offsets(data);
        const int64_t end = i + GROUP < k ? i + GROUP : k;
        for (data += 2 * COLUMNS; i < end; data += 4 * COLUMNS) {
            const integers codes = load_integers(data);
            integers weights = decode_four(codes, scales, offsets);
            prefetch(data + AHEAD);
            EACH_ROW(ADD_FOUR)
            i += 4;
            weights = decode_four(high_nibbles(codes), scales, offsets);
            EACH_ROW(ADD_FOUR)
            i += 4;
        }
    }
    EACH_ROW(STORE_INTEGERS)
}

INLINE void store_weights(char *bytes, integers weights)
{
    _mm512_storeu_si512(bytes, weights.a);
    _mm512_storeu_si512(bytes + 64, weights.b);
    _mm512_storeu_si512(bytes + 128, weights.c);
    _mm512_storeu_si512(bytes + 192, weights.d);
}

/* `count` k of one group of W4A8 in the form of W8A8; returns the next group. */
INLINE const char *unpack_group(const char *data, int64_t count, char *bytes)
{
    const integers scales = load_scales(data), offsets = load_offsets(data);
    data += 2 * COLUMNS;
    for (int64_t i = 0; i < count; i += 8, data += 4 * COLUMNS, bytes += 8 * COLUMNS) {
        const integers codes = load_integers(data);
        prefetch(data + AHEAD);
        store_weights(bytes, decode_four(codes, scales, offsets));
        store_weights(bytes + 4 * COLUMNS, decode_four(high_nibbles(codes), scales, offsets));
    }
    return data;
}

/* Three rows and more leave no registers for decoding: a group at a time goes through the first-level cache. */
INLINE void w4_rows(int rows, const llmos_product *p, const char *data, int32_t row, int32_t n0)
{
    const int64_t ldx = p->ldx, k = padded_k(p->w->k);
    const int8_t *x = (const int8_t *)p->x + row * ldx;
    char *bytes = p->scratch;
    INTEGER_SUMS
    for (int64_t i = 0; i < k;) {
        const int64_t end = i + GROUP < k ? i + GROUP : k;
        data = unpack_group(data, end - i, bytes);
        for (const char *at = bytes; i < end; i += 4, at += 4 * COLUMNS) {
            const integers weights = load_integers(at);
            EACH_ROW(ADD_FOUR)
        }
    }
    EACH_ROW(STORE_INTEGERS)
}

TARGET static void w4_block(int32_t rows, const llmos_product *p, const char *data, int32_t row, int32_t n0)
{
    switch (rows) {
    case 1: w4_few_rows(1, p, data, row, n0); break;
    case 2: w4_few_rows(2, p, data, row, n0); break;
    case 3: w4_rows(3, p, data, row, n0); break;
    case 4: w4_rows(4, p, data, row, n0); break;
    case 5: w4_rows(5, p, data, row, n0); break;
    default: w4_rows(6, p, data, row, n0); break;
    }
}

TARGET static void w4_tile(const llmos_product *p, const char *data, int32_t n0)
{
    const int64_t k = padded_k(p->w->k);
    if (p->m <= ROWS) {
        w4_block(p->m, p, data, 0, n0);
        return;
    }
    for (int64_t k0 = 0; k0 < k; k0 += GROUP)
        data = unpack_group(data, k0 + GROUP < k ? GROUP : k - k0, p->scratch + k0 * COLUMNS);
    w8_tile(p, p->scratch, n0);
}

static void tile(const llmos_product *p, int32_t n0)
{
    const char *data = tile_data(p->w, n0);
    if (p->w->format == LLMOS_W8A8)
        w8_tile(p, data, n0);
    else if (p->w->format == LLMOS_W4A8)
        w4_tile(p, data, n0);
    else
        float_tile(p, data, n0);
}

TARGET static float largest(const float *values, int32_t count)
{
    __m512 best = _mm512_set1_ps(-INFINITY);
    for (int32_t i = 0; i < count; i += 16) {
        __mmask16 mask = column_mask(count, i);
        /* the second operand where one is NaN */
        best = _mm512_max_ps(_mm512_mask_loadu_ps(best, mask, values + i), best);
    }
    return _mm512_reduce_max_ps(best);
}

const llmos_gemm_kernels llmos_gemm_avx512 = {tile, largest};
#endif
