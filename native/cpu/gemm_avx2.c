/* Products with AVX2 and FMA: a register tile of up to 4 rows by 16 columns.
 *
 * Integers are multiplied as 16-bit ones, pair by pair: VPMADDUBSW would saturate.
 */
#include "_gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum { ROWS = 4, VECTORS = 2 /* of 8 columns, of a register tile */ };

#define WITH_ROWS(rows, function, ...)           \
    switch (rows) {                              \
    case 1: function(1, __VA_ARGS__); break;     \
    case 2: function(2, __VA_ARGS__); break;     \
    case 3: function(3, __VA_ARGS__); break;     \
    default: function(4, __VA_ARGS__); break;    \
    }

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

/* --- floating point ------------------------------------------------------------------------------------ */

/* The weights of one k in 16 columns from `column` of the tile on. */
INLINE void load_floats(int32_t format, const char *data, int64_t k, int32_t column, __m256 b[VECTORS])
{
    for (int v = 0; v < VECTORS; v++) {
        if (format == LLMOS_FP32) {
            b[v] = _mm256_loadu_ps((const float *)data + k * COLUMNS + column + 8 * v);
        } else if (format == LLMOS_FP16) {
            const uint16_t *at = (const uint16_t *)data + k * COLUMNS + column + 8 * v;
            b[v] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at));
        } else {
            const uint16_t *at = (const uint16_t *)data + k * COLUMNS + column / 32 * 32 + 16 * v;
            __m256i pairs = _mm256_loadu_si256((const __m256i *)at);
            b[v] = _mm256_castsi256_ps(
                column % 32 ? _mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000))
                            : _mm256_slli_epi32(pairs, 16));
        }
    }
}

INLINE void float_rows(int rows, int32_t format, const llmos_product *p, const char *data, int32_t row,
                       int32_t n0, int32_t column)
{
    const float *x = (const float *)p->x + row * p->ldx;
    const int64_t ldx = p->ldx;
    __m256 sums[ROWS][VECTORS], b[VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            sums[r][v] = _mm256_setzero_ps();
    for (int64_t k = 0; k < p->w->k; k++) {
        load_floats(format, data, k, column, b);
        for (int r = 0; r < rows; r++) {
            __m256 a = _mm256_set1_ps(x[r * ldx + k]);
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = _mm256_fmadd_ps(a, b[v], sums[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            store_result(p, row + r, n0 + column + 8 * v, sums[r][v]);
}

TARGET static void float_block(int32_t rows, const llmos_product *p, const char *data, int32_t row, int32_t n0,
                               int32_t column)
{
    if (p->w->format == LLMOS_FP32) {
        WITH_ROWS(rows, float_rows, LLMOS_FP32, p, data, row, n0, column)
    } else if (p->w->format == LLMOS_FP16) {
        WITH_ROWS(rows, float_rows, LLMOS_FP16, p, data, row, n0, column)
    } else {
        WITH_ROWS(rows, float_rows, LLMOS_BF16, p, data, row, n0, column)
    }
}

/* --- integers ------------------------------------------------------------------------------------------ */

/* Scale and offset of eight columns, in every dword. */
INLINE void load_group(const char *group, int32_t column, __m256i *scale, __m256i *offset)
{
    __m256i s = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(group + column)));
    __m256i o = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(group + COLUMNS + column)));
    *scale = _mm256_or_si256(s, _mm256_slli_epi32(s, 16));
    o = _mm256_or_si256(o, _mm256_slli_epi32(o, 8));
    *offset = _mm256_or_si256(o, _mm256_slli_epi32(o, 16));
}

/* Adds four k of eight columns (w + 128, unsigned bytes) for every row. Words 0 and 2 of a dword, then 1 and 3:
 * the activations' are split alike.
 */
INLINE void add_four(int rows, __m256i bytes, const int8_t *x, int64_t ldx, __m256i sums[ROWS])
{
    const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(bytes, 8);
    for (int r = 0; r < rows; r++) {
        int32_t four;
        memcpy(&four, x + r * ldx, 4);
        __m256i a = _mm256_set1_epi32(four);
        __m256i a_even = _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8), a_odd = _mm256_srai_epi16(a, 8);
        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(even, a_even));
        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(odd, a_odd));
    }
}

INLINE void integer_rows(int rows, int32_t format, const llmos_product *p, const char *data, int32_t row,
                         int32_t n0, int32_t column)
{
    const int8_t *x = (const int8_t *)p->x + row * p->ldx;
    const int64_t ldx = p->ldx;
    const int32_t k = padded_k(p->w->k);
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sums[VECTORS][ROWS], scale[VECTORS], offset[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        scale[v] = offset[v] = _mm256_setzero_si256();
        for (int r = 0; r < rows; r++)
            sums[v][r] = _mm256_setzero_si256();
    }
    for (int32_t i = 0; i < k; i += 8) {
        if (format == LLMOS_W4A8 && i % GROUP == 0) {
            for (int v = 0; v < VECTORS; v++)
                load_group(data, column + 8 * v, scale + v, offset + v);
            data += 2 * COLUMNS;
        }
        for (int v = 0; v < VECTORS; v++) {
            const char *at = data + 4 * (column + 8 * v);
            __m256i first = _mm256_loadu_si256((const __m256i *)at), second;
            if (format == LLMOS_W4A8) {
                second = _mm256_and_si256(_mm256_srli_epi16(first, 4), nibble);
                second = _mm256_add_epi8(_mm256_mullo_epi16(second, scale[v]), offset[v]);
                first = _mm256_and_si256(first, nibble);
                first = _mm256_add_epi8(_mm256_mullo_epi16(first, scale[v]), offset[v]);
            } else {
                second = _mm256_loadu_si256((const __m256i *)(at + 4 * COLUMNS));
            }
            add_four(rows, first, x + i, ldx, sums[v]);
            add_four(rows, second, x + i + 4, ldx, sums[v]);
        }
        data += format == LLMOS_W4A8 ? 4 * COLUMNS : 8 * COLUMNS;
    }
    for (int v = 0; v < VECTORS; v++) {
        int32_t first = n0 + column + 8 * v;
        float scales[8] = {0};
        for (int32_t c = 0; c < 8 && first + c < p->w->n; c++)
            scales[c] = p->w->scale[first + c];
        for (int r = 0; r < rows; r++) {
            __m256i exact = _mm256_sub_epi32(sums[v][r], _mm256_set1_epi32(128 * p->xsum[row + r]));
            __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(scales), _mm256_set1_ps(p->xscale[row + r]));
            store_result(p, row + r, first, _mm256_mul_ps(_mm256_cvtepi32_ps(exact), factor));
        }
    }
}

TARGET static void integer_block(int32_t rows, const llmos_product *p, const char *data, int32_t row, int32_t n0,
                                 int32_t column)
{
    if (p->w->format == LLMOS_W8A8) {
        WITH_ROWS(rows, integer_rows, LLMOS_W8A8, p, data, row, n0, column)
    } else {
        WITH_ROWS(rows, integer_rows, LLMOS_W4A8, p, data, row, n0, column)
    }
}

static void tile(const llmos_product *p, int32_t n0)
{
    const char *data = tile_data(p->w, n0);
    int32_t blocks = num_blocks(p->m, ROWS);
    int is_integer = p->w->format == LLMOS_W8A8 || p->w->format == LLMOS_W4A8;
    for (int32_t i = 0; i < blocks; i++) {
        int32_t row = block_start(p->m, blocks, i), rows = block_start(p->m, blocks, i + 1) - row;
        for (int32_t column = 0; column < COLUMNS; column += 8 * VECTORS)
            (is_integer ? integer_block : float_block)(rows, p, data, row, n0, column);
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

const llmos_gemm_kernels llmos_gemm_avx2 = {NULL, tile, largest};
#endif
