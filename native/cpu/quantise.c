/* Rows to int8. */
#include "quantise.h"
#include "variant.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static int32_t padded(int32_t k)
{
    return (k + 7) / 8 * 8;
}

static int32_t quantise_tail(const float *x, int32_t from, int32_t k, float inverse, int8_t *q)
{
    int32_t sum = 0;
    for (int32_t i = from; i < k; i++) {
        float value = x[i] * inverse;
        value = value > 127 ? 127 : value < -127 ? -127 : value == value ? value : 0;
        /* adding and taking away 1.5 * 2^23 rounds to an integer, halves to even */
        int32_t rounded = (int32_t)(value + 12582912.0f - 12582912.0f);
        q[i] = (int8_t)rounded;
        sum += rounded;
    }
    for (int32_t i = k; i < padded(k); i++)
        q[i] = 0;
    return sum;
}

/* The largest |x| compared as integers, which orders infinities and NaN above all else. */
static uint32_t magnitude_tail(const float *x, int32_t from, int32_t k, uint32_t largest)
{
    for (int32_t i = from; i < k; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

static float scale_of(uint32_t largest_bits, float *inverse)
{
    float largest;
    memcpy(&largest, &largest_bits, 4);
    *inverse = largest > 0 ? 127.0f / largest : 0;
    return largest / 127.0f;
}

static void quantise_plain(const float *x, int32_t k, int8_t *q, float *scale, int32_t *sum)
{
    float inverse;
    *scale = scale_of(magnitude_tail(x, 0, k, 0), &inverse);
    *sum = quantise_tail(x, 0, k, inverse, q);
}

#if defined(__x86_64__)

__attribute__((target("avx2,fma"))) static void quantise_avx2(const float *x, int32_t k, int8_t *q,
                                                              float *scale, int32_t *sum)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256(), total = _mm256_setzero_si256();
    int32_t i = 0, lanes[8];
    uint32_t most = 0;
    float inverse;
    for (; i + 8 <= k; i += 8)
        largest = _mm256_max_epu32(largest,
                                   _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), magnitude));
    _mm256_storeu_si256((__m256i *)lanes, largest);
    for (int32_t lane = 0; lane < 8; lane++)
        most = (uint32_t)lanes[lane] > most ? (uint32_t)lanes[lane] : most;
    *scale = scale_of(magnitude_tail(x, i, k, most), &inverse);

    const __m256 factor = _mm256_set1_ps(inverse), high = _mm256_set1_ps(127), low = _mm256_set1_ps(-127);
    for (i = 0; i + 8 <= k; i += 8) {
        __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
        value = _mm256_and_ps(value, _mm256_cmp_ps(value, value, _CMP_ORD_Q));
        __m256i whole = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(value, high), low));
        total = _mm256_add_epi32(total, whole);
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64((__m128i *)(q + i), _mm_packs_epi16(words, words));
    }
    _mm256_storeu_si256((__m256i *)lanes, total);
    *sum = quantise_tail(x, i, k, inverse, q);
    for (int32_t lane = 0; lane < 8; lane++)
        *sum += lanes[lane];
}

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) static void
quantise_avx512(const float *x, int32_t k, int8_t *q, float *scale, int32_t *sum)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    __m512i total = _mm512_setzero_si512();
    int32_t i = 0;
    float inverse;
    for (; i + 32 <= k; i += 32)
        for (int32_t half = 0; half < 2; half++)
            largest[half] = _mm512_max_epu32(
                largest[half], _mm512_and_si512(_mm512_loadu_si512(x + i + 16 * half), magnitude));
    uint32_t most = _mm512_reduce_max_epu32(_mm512_max_epu32(largest[0], largest[1]));
    *scale = scale_of(magnitude_tail(x, i, k, most), &inverse);

    const __m512 factor = _mm512_set1_ps(inverse), high = _mm512_set1_ps(127), low = _mm512_set1_ps(-127);
    for (i = 0; i + 16 <= k; i += 16) {
        __m512 value = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
        value = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(value, value, _CMP_ORD_Q), value);
        __m512i whole = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(value, high), low));
        total = _mm512_add_epi32(total, whole);
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(whole));
    }
    *sum = _mm512_reduce_add_epi32(total) + quantise_tail(x, i, k, inverse, q);
}

#endif

void llmos_quantise_rows_variant(int32_t variant, const float *x, int64_t ldx, int32_t m, int32_t k,
                                 int8_t *q, int64_t ldq, float *scale, int32_t *sum)
{
    void (*row)(const float *, int32_t, int8_t *, float *, int32_t *) = quantise_plain;
#if defined(__x86_64__)
    row = variant == LLMOS_AVX512 ? quantise_avx512 : variant == LLMOS_AVX2 ? quantise_avx2 : row;
#endif
    (void)variant;
    for (int32_t i = 0; i < m; i++)
        row(x + i * ldx, k, q + i * ldq, scale + i, sum + i);
}

void llmos_quantise_rows(const float *x, int64_t ldx, int32_t m, int32_t k,
                         int8_t *q, int64_t ldq, float *scale, int32_t *sum)
{
    llmos_quantise_rows_variant(llmos_best_variant(), x, ldx, m, k, q, ldq, scale, sum);
}
