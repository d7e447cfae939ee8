/* Products with AVX2 and FMA: a register tile of up to 6 rows by 16 columns, 4 for integers.
 *
 * VPMADDUBSW multiplies unsigned bytes by signed ones and adds neighbours, in 16 bits that must not overflow:
 *   W8A8: |x| times w with the sign of x, both of at most 127
 *   W4A8: codes of at most 15 times x; eight such sums still fit, and are scaled as in gemm_avx512_w4.c
 */
#include "_gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum {
    FLOAT_ROWS = 6, /* of a register tile */
    INTEGER_ROWS = 4,
    WIDTH = 16,             /* columns of it */
    RUN = 32,               /* k whose products of a code add up in 16 bits: 32 / 2 * 15 * 127 < 2^15 */
    PANEL_BYTES = 16 << 10, /* of weights: all rows use them before the next ones are read */
    GROUP_BYTES = 2 * COLUMNS + GROUP * COLUMNS / 2
};

/* Sums of one row, or weights of one step: 16 columns. Named, because gcc keeps arrays of vectors in memory. */
typedef struct {
    __m256 a, b;
} floats;

typedef struct {
    __m256i a, b;
} integers;

/* Part of a tile: k from k0 to k1 of 16 columns from `column` on, `rows` rows from `row` on. */
typedef struct {
    const char *data; /* of k0 */
    int64_t k0, k1;
    int64_t ahead; /* bytes from what is read to what is fetched: the same place in the next panel */
    int32_t row, column;
} part;

#define WITH_ROWS(rows, function, ...)           \
    switch (rows) {                              \
    case 1: function(1, __VA_ARGS__); break;     \
    case 2: function(2, __VA_ARGS__); break;     \
    case 3: function(3, __VA_ARGS__); break;     \
    default: function(4, __VA_ARGS__); break;    \
    }

#define WITH_FLOAT_ROWS(rows, function, ...)     \
    switch (rows) {                              \
    case 5: function(5, __VA_ARGS__); break;     \
    case 6: function(6, __VA_ARGS__); break;     \
    default: WITH_ROWS(rows, function, __VA_ARGS__) \
    }

#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3)
#define EACH_FLOAT_ROW(DO) EACH_ROW(DO) DO(4) DO(5)

/* Eight results of a row; columns past the last are left alone. */
INLINE void store_result(const llmos_product *p, int32_t row, int32_t column, __m256 value)
{
    const int32_t left = p->w->n - column;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(left), lanes);
    float *y = p->y + row * p->ldy + column;
    if (p->w->bias)
        value = _mm256_add_ps(value, _mm256_maskload_ps(p->w->bias + column, mask));
    if (p->accumulate)
        value = _mm256_add_ps(_mm256_maskload_ps(y, mask), value);
    _mm256_maskstore_ps(y, mask, value);
}

/* Where the sums of a part's first row wait for the next panel. */
INLINE char *totals_of(const llmos_product *p, part at)
{
    return p->scratch + ((int64_t)at.row * COLUMNS + at.column) * 4;
}

/* --- floating point ------------------------------------------------------------------------------------ */

INLINE floats load_partial(const char *data)
{
    return (floats){_mm256_loadu_ps((const float *)data), _mm256_loadu_ps((const float *)data + 8)};
}

/* The weights of one k in 16 columns from `column` of the tile on. */
INLINE floats load_floats(int32_t format, const char *data, int32_t column)
{
    if (format == LLMOS_FP32)
        return load_partial(data + 4 * column);
    if (format == LLMOS_FP16) {
        const __m128i *at = (const __m128i *)(data + 2 * column);
        return (floats){_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
    }
    const __m256i *at = (const __m256i *)(data + column / 32 * 64);
    const __m256i low = _mm256_loadu_si256(at), high = _mm256_loadu_si256(at + 1);
    const __m256i upper = _mm256_set1_epi32((int32_t)0xffff0000);
    if (column % 32)
        return (floats){_mm256_castsi256_ps(_mm256_and_si256(low, upper)),
                        _mm256_castsi256_ps(_mm256_and_si256(high, upper))};
    return (floats){_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}

INLINE void float_rows(int rows, int32_t format, const llmos_product *p, part at, int32_t n0)
{
    const int64_t ldx = p->ldx, step = COLUMNS * (format == LLMOS_FP32 ? 4 : 2);
    const float *x = (const float *)p->x + at.row * ldx;
    const char *data = at.data;
    char *totals = totals_of(p, at);
    floats s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0};
    if (at.k0 > 0) {
#define LOAD(r) \
    if (rows > r) \
        s##r = load_partial(totals + r * COLUMNS * 4);
        EACH_FLOAT_ROW(LOAD)
    }
    for (int64_t k = at.k0; k < at.k1; k++, data += step) {
        const floats weights = load_floats(format, data, at.column);
        _mm_prefetch(data + at.column * (format == LLMOS_FP32 ? 4 : 2) + at.ahead, _MM_HINT_T0);
#define ADD(r) \
    if (rows > r) { \
        const __m256 one = _mm256_set1_ps(x[r * ldx + k]); \
        s##r = (floats){_mm256_fmadd_ps(one, weights.a, s##r.a), _mm256_fmadd_ps(one, weights.b, s##r.b)}; \
    }
        EACH_FLOAT_ROW(ADD)
    }
    const int is_last = at.k1 == p->w->k;
#define STORE(r) \
    if (rows > r && is_last) { \
        store_result(p, at.row + r, n0 + at.column, s##r.a); \
        store_result(p, at.row + r, n0 + at.column + 8, s##r.b); \
    } else if (rows > r) { \
        _mm256_storeu_ps((float *)(totals + r * COLUMNS * 4), s##r.a); \
        _mm256_storeu_ps((float *)(totals + r * COLUMNS * 4) + 8, s##r.b); \
    }
    EACH_FLOAT_ROW(STORE)
#undef LOAD
#undef ADD
#undef STORE
}

/* --- integers ------------------------------------------------------------------------------------------ */

INLINE integers load_integers(const char *data)
{
    return (integers){_mm256_loadu_si256((const __m256i *)data), _mm256_loadu_si256((const __m256i *)data + 1)};
}

INLINE void save_integers(char *data, integers sums)
{
    _mm256_storeu_si256((__m256i *)data, sums.a);
    _mm256_storeu_si256((__m256i *)data + 1, sums.b);
}

INLINE __m256i four_of(const int8_t *x)
{
    int32_t word;
    memcpy(&word, x, 4);
    return _mm256_set1_epi32(word);
}

/* Exact sums of a row in eight columns. */
INLINE void store_exact(const llmos_product *p, int32_t row, int32_t column, __m256i exact)
{
    float scales[8] = {0};
    for (int32_t c = 0; c < 8 && column + c < p->w->n; c++)
        scales[c] = p->w->scale[column + c];
    const __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(scales), _mm256_set1_ps(p->xscale[row]));
    store_result(p, row, column, _mm256_mul_ps(_mm256_cvtepi32_ps(exact), factor));
}

INLINE __m256i add_products(__m256i sum, __m256i weights, __m256i x, __m256i magnitude)
{
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weights, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE void w8_rows(int rows, const llmos_product *p, part at, int32_t n0)
{
    const int64_t ldx = p->ldx;
    const int8_t *x = (const int8_t *)p->x + at.row * ldx;
    const char *data = at.data + 4 * at.column;
    const __m256i middle = _mm256_set1_epi8(-128);
    char *totals = totals_of(p, at);
    integers s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    if (at.k0 > 0) {
#define LOAD(r) \
    if (rows > r) \
        s##r = load_integers(totals + r * COLUMNS * 4);
        EACH_ROW(LOAD)
    }
    for (int64_t i = at.k0; i < at.k1; i += 4, data += 4 * COLUMNS) {
        integers weights = load_integers(data);
        _mm_prefetch(data + at.ahead, _MM_HINT_T0);
        weights = (integers){_mm256_xor_si256(weights.a, middle), _mm256_xor_si256(weights.b, middle)};
#define ADD(r) \
    if (rows > r) { \
        const __m256i four = four_of(x + r * ldx + i), magnitude = _mm256_abs_epi8(four); \
        s##r = (integers){add_products(s##r.a, weights.a, four, magnitude), \
                          add_products(s##r.b, weights.b, four, magnitude)}; \
    }
        EACH_ROW(ADD)
    }
    const int is_last = at.k1 >= p->w->k;
#define STORE(r) \
    if (rows > r && is_last) { \
        store_exact(p, at.row + r, n0 + at.column, s##r.a); \
        store_exact(p, at.row + r, n0 + at.column + 8, s##r.b); \
    } else if (rows > r) { \
        save_integers(totals + r * COLUMNS * 4, s##r); \
    }
    EACH_ROW(STORE)
#undef LOAD
#undef ADD
#undef STORE
}

/* Sums of x in each group, [m][groups]: behind the totals. */
static int32_t *row_sums_of(const llmos_product *p)
{
    return (int32_t *)(p->scratch + (int64_t)p->m * COLUMNS * 4);
}

static void begin(const llmos_product *p)
{
    const int32_t k = p->w->k;
    int32_t *sums = row_sums_of(p);
    if (p->w->format != LLMOS_W4A8)
        return;
    for (int32_t row = 0; row < p->m; row++) {
        const int8_t *x = (const int8_t *)p->x + row * p->ldx;
        for (int32_t group = 0; group < k; group += GROUP) {
            int32_t sum = 0;
            for (int32_t i = group; i < group + GROUP && i < k; i++)
                sum += x[i];
            *sums++ = sum;
        }
    }
}

INLINE __m256i widen(const char *data)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)data));
}

INLINE __m256i as_words(__m256i values)
{
    return _mm256_or_si256(values, _mm256_slli_epi32(values, 16));
}

INLINE integers low_nibbles(integers codes)
{
    const __m256i low = _mm256_set1_epi8(15);
    return (integers){_mm256_and_si256(codes.a, low), _mm256_and_si256(codes.b, low)};
}

INLINE void w4_rows(int rows, const llmos_product *p, part at, int32_t n0)
{
    const int64_t ldx = p->ldx, num_groups = num_blocks(p->w->k, GROUP);
    const int8_t *x = (const int8_t *)p->x + at.row * ldx;
    const int32_t *row_sums = row_sums_of(p) + at.row * num_groups;
    const char *data = at.data;
    char *totals = totals_of(p, at);
    for (int64_t group = at.k0; group < at.k1; group += GROUP, data += GROUP_BYTES) {
        const int64_t group_end = group + GROUP < at.k1 ? group + GROUP : at.k1;
        const char *scale = data + at.column, *offset = scale + COLUMNS, *codes = data + 2 * COLUMNS + 4 * at.column;
        const integers scales = {as_words(widen(scale)), as_words(widen(scale + 8))};
        const __m256i middle = _mm256_set1_epi32(128);
        const integers offsets = {_mm256_sub_epi32(widen(offset), middle),
                                  _mm256_sub_epi32(widen(offset + 8), middle)};
#define START(r) \
    if (rows > r) { \
        const __m256i sum = _mm256_set1_epi32(row_sums[r * num_groups + group / GROUP]); \
        integers total = {_mm256_mullo_epi32(offsets.a, sum), _mm256_mullo_epi32(offsets.b, sum)}; \
        if (group > 0) { \
            const integers before = load_integers(totals + r * COLUMNS * 4); \
            total = (integers){_mm256_add_epi32(total.a, before.a), _mm256_add_epi32(total.b, before.b)}; \
        } \
        save_integers(totals + r * COLUMNS * 4, total); \
    }
        EACH_ROW(START)
        for (int64_t run = group; run < group_end; run += RUN) {
            const int64_t end = run + RUN < group_end ? run + RUN : group_end;
            integers s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
            for (int64_t i = run; i < end; codes += 4 * COLUMNS) {
                const integers both = load_integers(codes);
                integers nibbles = low_nibbles(both);
                _mm_prefetch(codes + at.ahead, _MM_HINT_T0);
#define ADD(r) \
    if (rows > r) { \
        const __m256i four = four_of(x + r * ldx + i); \
        s##r = (integers){_mm256_add_epi16(s##r.a, _mm256_maddubs_epi16(nibbles.a, four)), \
                          _mm256_add_epi16(s##r.b, _mm256_maddubs_epi16(nibbles.b, four))}; \
    }
                EACH_ROW(ADD)
                i += 4;
                nibbles = low_nibbles(
                    (integers){_mm256_srli_epi16(both.a, 4), _mm256_srli_epi16(both.b, 4)});
                EACH_ROW(ADD)
                i += 4;
            }
#define TOTAL(r) \
    if (rows > r) { \
        const integers total = load_integers(totals + r * COLUMNS * 4); \
        save_integers(totals + r * COLUMNS * 4, \
                      (integers){_mm256_add_epi32(total.a, _mm256_madd_epi16(s##r.a, scales.a)), \
                                 _mm256_add_epi32(total.b, _mm256_madd_epi16(s##r.b, scales.b))}); \
    }
            EACH_ROW(TOTAL)
            __asm__ volatile("" ::: "memory"); /* or else gcc keeps totals from run to run, on the stack */
        }
    }
    for (int r = 0; r < rows && at.k1 >= p->w->k; r++) {
        const integers total = load_integers(totals + r * COLUMNS * 4);
        store_exact(p, at.row + r, n0 + at.column, total.a);
        store_exact(p, at.row + r, n0 + at.column + 8, total.b);
    }
#undef START
#undef ADD
#undef TOTAL
}

/* --- tiles --------------------------------------------------------------------------------------------- */

TARGET static void block(int32_t rows, const llmos_product *p, part at, int32_t n0)
{
    switch (p->w->format) {
    case LLMOS_FP32: WITH_FLOAT_ROWS(rows, float_rows, LLMOS_FP32, p, at, n0) return;
    case LLMOS_FP16: WITH_FLOAT_ROWS(rows, float_rows, LLMOS_FP16, p, at, n0) return;
    case LLMOS_BF16: WITH_FLOAT_ROWS(rows, float_rows, LLMOS_BF16, p, at, n0) return;
    case LLMOS_W8A8: WITH_ROWS(rows, w8_rows, p, at, n0) return;
    default: WITH_ROWS(rows, w4_rows, p, at, n0)
    }
}

static void tile(const llmos_product *p, int32_t n0)
{
    const int32_t format = p->w->format;
    const int is_integer = format == LLMOS_W8A8 || format == LLMOS_W4A8;
    const int32_t blocks = num_blocks(p->m, is_integer ? INTEGER_ROWS : FLOAT_ROWS);
    const int64_t k = is_integer ? padded_k(p->w->k) : p->w->k;
    const int64_t depth = format == LLMOS_W4A8 ? 4 * GROUP : PANEL_BYTES / tile_bytes(format, 8) * 8;
    part at = {.data = tile_data(p->w, n0), .ahead = tile_bytes(format, (int32_t)depth)};
    for (at.k0 = 0; at.k0 < k; at.k0 = at.k1) {
        at.k1 = at.k0 + depth < k ? at.k0 + depth : k;
        for (int32_t i = 0; i < blocks; i++) {
            at.row = block_start(p->m, blocks, i);
            for (at.column = 0; at.column < COLUMNS; at.column += WIDTH)
                block(block_start(p->m, blocks, i + 1) - at.row, p, at, n0);
        }
        at.data += at.ahead;
    }
}

TARGET static float largest(const float *values, int32_t count)
{
    __m256 best = _mm256_set1_ps(-INFINITY);
    float lanes[8], most = -INFINITY;
    int32_t i = 0;
    for (; i + 8 <= count; i += 8)
        best = _mm256_max_ps(_mm256_loadu_ps(values + i), best); /* the second operand where one is NaN */
    _mm256_storeu_ps(lanes, best);
    for (int32_t lane = 0; lane < 8; lane++)
        most = lanes[lane] > most ? lanes[lane] : most;
    for (; i < count; i++)
        most = values[i] > most ? values[i] : most;
    return most;
}

const llmos_gemm_kernels llmos_gemm_avx2 = {begin, tile, largest};
#endif
