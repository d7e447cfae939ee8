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
    ROWS = 6,    /* of a register tile */
    VECTORS = 4, /* of 16 columns, of a register tile */
    FLOAT_DEPTH = 512 /* k of a panel that several row blocks share: 128 KiB of fp32 */
};

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

INLINE __mmask16 column_mask(int32_t n, int32_t column)
{
    int32_t left = n - column;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

INLINE void store_result(const llmos_product *p, int32_t row, int32_t column, __m512 value)
{
    __mmask16 mask = column_mask(p->w->n, column);
    float *y = p->y + row * p->ldy + column;
    if (p->w->bias)
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, p->w->bias + column));
    if (p->accumulate)
        value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), value);
    _mm512_mask_storeu_ps(y, mask, value);
}

/* --- floating point ------------------------------------------------------------------------------------ */

/* The 64 weights of one k as fp32. */
INLINE void load_floats(int32_t format, const char *data, int64_t k, __m512 b[VECTORS])
{
    if (format == LLMOS_FP32) {
        for (int v = 0; v < VECTORS; v++)
            b[v] = _mm512_loadu_ps((const float *)data + k * COLUMNS + 16 * v);
    } else if (format == LLMOS_FP16) {
        for (int v = 0; v < VECTORS; v++)
            b[v] = _mm512_cvtph_ps(
                _mm256_loadu_si256((const __m256i *)((const uint16_t *)data + k * COLUMNS + 16 * v)));
    } else {
        for (int half = 0; half < VECTORS / 2; half++) {
            __m512i pairs = _mm512_loadu_si512((const uint16_t *)data + k * COLUMNS + 32 * half);
            b[2 * half] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
            b[2 * half + 1] =
                _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int32_t)0xffff0000)));
        }
    }
}

/* k from k0 to k1 of `rows` rows from `row` on. Sums of an earlier depth come from and go to partial. */
INLINE void float_block(int rows, int32_t format, const llmos_product *p, const char *data, int32_t row,
                        int32_t k0, int32_t k1, int32_t n0, float *partial)
{
    const float *x = (const float *)p->x + row * p->ldx;
    const int64_t ldx = p->ldx;
    __m512 sums[ROWS][VECTORS], b[VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = k0 == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(partial + (row + r) * COLUMNS + 16 * v);
    for (int64_t k = k0; k < k1; k++) {
        if (rows <= 2)
            for (int v = 0; v < VECTORS; v++)
                _mm_prefetch(data + (k * COLUMNS * (format == LLMOS_FP32 ? 4 : 2)) + 4096 + 64 * v, _MM_HINT_T0);
        load_floats(format, data, k, b);
        for (int r = 0; r < rows; r++) {
            __m512 a = _mm512_set1_ps(x[r * ldx + k]);
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = _mm512_fmadd_ps(a, b[v], sums[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            if (k1 == p->w->k)
                store_result(p, row + r, n0 + 16 * v, sums[r][v]);
            else
                _mm512_storeu_ps(partial + (row + r) * COLUMNS + 16 * v, sums[r][v]);
}

#define FLOAT_BLOCKS(name, format)                                                                              \
    TARGET static void name(int32_t rows, const llmos_product *p, const char *data, int32_t row, int32_t k0,    \
                            int32_t k1, int32_t n0, float *partial)                                             \
    {                                                                                                           \
        WITH_ROWS(rows, float_block, format, p, data, row, k0, k1, n0, partial)                                 \
    }
FLOAT_BLOCKS(fp32_block, LLMOS_FP32)
FLOAT_BLOCKS(fp16_block, LLMOS_FP16)
FLOAT_BLOCKS(bf16_block, LLMOS_BF16)

static void float_tile(const llmos_product *p, const char *data, int32_t n0)
{
    void (*block)(int32_t, const llmos_product *, const char *, int32_t, int32_t, int32_t, int32_t, float *) =
        p->w->format == LLMOS_FP32 ? fp32_block : p->w->format == LLMOS_FP16 ? fp16_block : bf16_block;
    int32_t blocks = num_blocks(p->m, ROWS), depth = blocks == 1 ? p->w->k : FLOAT_DEPTH;
    for (int32_t k0 = 0; k0 < p->w->k; k0 += depth) {
        int32_t k1 = k0 + depth < p->w->k ? k0 + depth : p->w->k;
        for (int32_t i = 0; i < blocks; i++) {
            int32_t row = block_start(p->m, blocks, i);
            block(block_start(p->m, blocks, i + 1) - row, p, data, row, k0, k1, n0, (float *)p->scratch);
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

INLINE void store_integers(int rows, const llmos_product *p, int32_t row, int32_t n0, __m512i sums[ROWS][VECTORS])
{
    for (int v = 0; v < VECTORS; v++) {
        int32_t column = n0 + 16 * v;
        __m512 scale = _mm512_maskz_loadu_ps(column_mask(p->w->n, column), p->w->scale + column);
        for (int r = 0; r < rows; r++) {
            __m512i exact = _mm512_sub_epi32(sums[r][v], _mm512_set1_epi32(128 * p->xsum[row + r]));
            __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(p->xscale[row + r]));
            store_result(p, row + r, column, _mm512_mul_ps(_mm512_cvtepi32_ps(exact), factor));
        }
    }
}

INLINE void clear_integers(int rows, __m512i sums[ROWS][VECTORS])
{
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = _mm512_setzero_si512();
}

INLINE void w8_rows(int rows, const llmos_product *p, const char *data, int32_t row, int32_t n0)
{
    const int8_t *x = (const int8_t *)p->x + row * p->ldx;
    const int64_t ldx = p->ldx;
    const int32_t quads = padded_k(p->w->k) / 4;
    __m512i sums[ROWS][VECTORS], b[VECTORS];
    clear_integers(rows, sums);
    for (int32_t q = 0; q < quads; q++) {
        for (int v = 0; v < VECTORS; v++) {
            if (rows <= 2)
                _mm_prefetch(data + 4096 + 64 * v, _MM_HINT_T0);
            b[v] = _mm512_loadu_si512(data + 64 * v);
        }
        data += 64 * VECTORS;
        for (int r = 0; r < rows; r++) {
            __m512i a = four_of(x + r * ldx + 4 * q);
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], b[v], a);
        }
    }
    store_integers(rows, p, row, n0, sums);
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
INLINE void load_group(const char *data, __m512i scales[VECTORS], __m512i offsets[VECTORS])
{
    for (int v = 0; v < VECTORS; v++) {
        __m512i scale = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(data + 16 * v)));
        __m512i offset = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(data + COLUMNS + 16 * v)));
        scales[v] = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
        offset = _mm512_or_si512(offset, _mm512_slli_epi32(offset, 8));
        offsets[v] = _mm512_or_si512(offset, _mm512_slli_epi32(offset, 16));
    }
}

/* Two vectors of w + 128. A word holds two codes, and 15 * 17 fits a byte: nothing carries between them. */
INLINE void unpack_codes(const char *data, __m512i scale, __m512i offset, __m512i *low, __m512i *high)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i codes = _mm512_loadu_si512(data);
    __m512i first = _mm512_and_si512(codes, nibble);
    __m512i second = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
    *low = _mm512_add_epi8(_mm512_mullo_epi16(first, scale), offset);
    *high = _mm512_add_epi8(_mm512_mullo_epi16(second, scale), offset);
}

INLINE void w4_rows(int rows, const llmos_product *p, const char *data, int32_t row, int32_t n0)
{
    const int8_t *x = (const int8_t *)p->x + row * p->ldx;
    const int64_t ldx = p->ldx;
    const int32_t k = padded_k(p->w->k);
    __m512i sums[ROWS][VECTORS], scales[VECTORS], offsets[VECTORS];
    clear_integers(rows, sums);
    for (int32_t k0 = 0; k0 < k; k0 += GROUP) {
        int32_t k1 = k0 + GROUP < k ? k0 + GROUP : k;
        load_group(data, scales, offsets);
        data += 2 * COLUMNS;
        for (int32_t i = k0; i < k1; i += 8) {
            for (int v = 0; v < VECTORS; v++) {
                __m512i low, high;
                if (rows <= 2)
                    _mm_prefetch(data + 4096 + 64 * v, _MM_HINT_T0);
                unpack_codes(data + 64 * v, scales[v], offsets[v], &low, &high);
                for (int r = 0; r < rows; r++) {
                    sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], low, four_of(x + r * ldx + i));
                    sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], high, four_of(x + r * ldx + i + 4));
                }
            }
            data += 64 * VECTORS;
        }
    }
    store_integers(rows, p, row, n0, sums);
}

TARGET static void w4_block(int32_t rows, const llmos_product *p, const char *data, int32_t row, int32_t n0)
{
    WITH_ROWS(rows, w4_rows, p, data, row, n0)
}

/* A tile of W4A8 as one of W8A8. */
TARGET static void unpack_tile(int32_t k, const char *data, char *bytes)
{
    __m512i scales[VECTORS], offsets[VECTORS];
    for (int32_t k0 = 0; k0 < k; k0 += GROUP) {
        int32_t k1 = k0 + GROUP < k ? k0 + GROUP : k;
        load_group(data, scales, offsets);
        data += 2 * COLUMNS;
        for (int32_t i = k0; i < k1; i += 8) {
            for (int v = 0; v < VECTORS; v++) {
                __m512i low, high;
                unpack_codes(data + 64 * v, scales[v], offsets[v], &low, &high);
                _mm512_storeu_si512(bytes + 64 * v, low);
                _mm512_storeu_si512(bytes + 64 * (VECTORS + v), high);
            }
            data += 64 * VECTORS;
            bytes += 128 * VECTORS;
        }
    }
}

static void w4_tile(const llmos_product *p, const char *data, int32_t n0)
{
    if (p->m <= ROWS) {
        w4_block(p->m, p, data, 0, n0);
    } else {
        unpack_tile(padded_k(p->w->k), data, p->scratch);
        w8_tile(p, p->scratch, n0);
    }
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
