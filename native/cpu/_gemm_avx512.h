#ifndef LLMOS_GEMM_AVX512_H
#define LLMOS_GEMM_AVX512_H
#include "_gemm.h"

#if defined(__x86_64__)
#include <immintrin.h>

/* Between the files of the products with AVX-512: vectors, how results are stored, one step of integers. */

/* PREFETCHW is older than AVX-512. */
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prfchw")))
#define INLINE static inline __attribute__((always_inline)) TARGET

/* Sums of one row, or weights of one step: 64 columns. Members and named rows instead of arrays, because gcc keeps
 * arrays of vectors in memory.
 */
typedef struct {
    __m512 a, b, c, d;
} floats;

typedef struct {
    __m512i a, b, c, d;
} integers;

INLINE __mmask16 column_mask(int32_t n, int32_t column)
{
    int32_t left = n - column;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

/* What the results of a tile's rows share; read once, since a store to y might change it for all that gcc knows. */
typedef struct {
    int32_t n0;
    int has_bias;
    __mmask16 a, b, c, d; /* columns that exist */
    floats bias, scale;   /* the scale: of integers */
} columns;

INLINE floats load_columns(columns to, const float *values)
{
    return (floats){_mm512_maskz_loadu_ps(to.a, values), _mm512_maskz_loadu_ps(to.b, values + 16),
                    _mm512_maskz_loadu_ps(to.c, values + 32), _mm512_maskz_loadu_ps(to.d, values + 48)};
}

INLINE floats add_floats(floats x, floats y)
{
    return (floats){_mm512_add_ps(x.a, y.a), _mm512_add_ps(x.b, y.b), _mm512_add_ps(x.c, y.c),
                    _mm512_add_ps(x.d, y.d)};
}

INLINE columns columns_of(const llmos_product *p, int32_t n0)
{
    const llmos_weight *w = p->w;
    columns to = {.n0 = n0, .has_bias = w->bias != NULL};
    to.a = column_mask(w->n, n0);
    to.b = column_mask(w->n, n0 + 16);
    to.c = column_mask(w->n, n0 + 32);
    to.d = column_mask(w->n, n0 + 48);
    if (w->bias)
        to.bias = load_columns(to, w->bias + n0);
    if (w->scale)
        to.scale = load_columns(to, w->scale + n0);
    return to;
}

INLINE void store_row(const llmos_product *p, int32_t row, columns to, floats value)
{
    float *y = p->y + row * p->ldy + to.n0;
    if (to.has_bias)
        value = add_floats(value, to.bias);
    if (p->accumulate)
        value = add_floats(load_columns(to, y), value);
    _mm512_mask_storeu_ps(y, to.a, value.a);
    _mm512_mask_storeu_ps(y + 16, to.b, value.b);
    _mm512_mask_storeu_ps(y + 32, to.c, value.c);
    _mm512_mask_storeu_ps(y + 48, to.d, value.d);
}

/* Have the lines that results go to, before they are written: else the first of a page each would wait for memory,
 * all others behind it.
 */
INLINE void fetch_results(const llmos_product *p, int32_t row, int32_t rows, int32_t n0)
{
    for (int32_t r = row; r < row + rows; r++)
        for (int32_t c = 0; c < COLUMNS; c += 16)
            __builtin_prefetch(p->y + r * p->ldy + n0 + c, 1, 3);
}

/* Two or four lines that will be read soon: the processor's own prefetching ends with each page. */
INLINE void prefetch(const char *data, int64_t size_bytes)
{
    _mm_prefetch(data, _MM_HINT_T0);
    _mm_prefetch(data + 64, _MM_HINT_T0);
    if (size_bytes > 128) {
        _mm_prefetch(data + 128, _MM_HINT_T0);
        _mm_prefetch(data + 192, _MM_HINT_T0);
    }
}

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

INLINE void save_integers(char *data, integers sums)
{
    _mm512_storeu_si512(data, sums.a);
    _mm512_storeu_si512(data + 64, sums.b);
    _mm512_storeu_si512(data + 128, sums.c);
    _mm512_storeu_si512(data + 192, sums.d);
}

INLINE __m512 scaled(__m512i exact, __m512 scale, __m512 xscale)
{
    return _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(scale, xscale));
}

INLINE void store_exact(const llmos_product *p, int32_t row, columns to, integers exact)
{
    const __m512 xscale = _mm512_set1_ps(p->xscale[row]);
    store_row(p, row, to, (floats){scaled(exact.a, to.scale.a, xscale), scaled(exact.b, to.scale.b, xscale),
                                   scaled(exact.c, to.scale.c, xscale), scaled(exact.d, to.scale.d, xscale)});
}

/* Sums of (w + 128) x. */
INLINE void store_integers(const llmos_product *p, int32_t row, columns to, integers sums)
{
    const __m512i excess = _mm512_set1_epi32(128 * p->xsum[row]);
    store_exact(p, row, to, (integers){_mm512_sub_epi32(sums.a, excess), _mm512_sub_epi32(sums.b, excess),
                                       _mm512_sub_epi32(sums.c, excess), _mm512_sub_epi32(sums.d, excess)});
}

/* --- gemm_avx512_w4.c ---------------------------------------------------------------------------------- */

/* Rows for which decoding a whole panel first is no faster. */
enum { W4_MOST_ROWS = 24 };

/* What the tiles of up to W4_MOST_ROWS rows share. */
void llmos_w4_begin_avx512(const llmos_product *p);

/* A tile of up to W4_MOST_ROWS rows, after llmos_w4_begin_avx512. */
void llmos_w4_tile_avx512(const llmos_product *p, const char *data, int32_t n0);

/* The first `count` k at data, where a group begins, in the form of W8A8. */
void llmos_w4_unpack_avx512(const char *data, int64_t count, char *bytes);

#endif
#endif
