#ifndef LLMOS_SIMD_H
#define LLMOS_SIMD_H
/* Sixteen floats at a time, as the instructions of one variant.
 *
 * kernels_avx512.c and kernels_avx2.c define SIMD_AVX512 or SIMD_AVX2 and include this first: all that follows
 * in that file is compiled for that variant, whatever the compiler's own target. Without either: plain C.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(SIMD_AVX512)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,f16c,fma")
#elif defined(SIMD_AVX2)
#include <immintrin.h>
#pragma GCC target("avx2,f16c,fma")
#endif

#if defined(SIMD_AVX512)

typedef __m512 vf;

INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); } /* b where either is NaN */
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vf_scale(vf a, vf n) { return _mm512_scalef_ps(a, n); } /* a * 2^n, n whole */
INLINE vf vf_zero_below(vf a, vf x, vf limit) /* a, or 0 where x < limit */
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a);
}
INLINE vf vf_select(vf a, vf b, int32_t from, int32_t to) /* a in lanes [from, to), b elsewhere; 0 <= from, to <= 16 */
{
    return _mm512_mask_mov_ps(b, (__mmask16)((0xffffu << from) & ~(0xffffffffu << to)), a);
}
INLINE float vf_sum(vf a) { return _mm512_reduce_add_ps(a); }
INLINE float vf_largest(vf a) { return _mm512_reduce_max_ps(a); }
INLINE vf vf_load_fp16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vf_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
INLINE vf vf_load_int8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE vf vf_load_half(const float *p) { return _mm512_zextps256_ps512(_mm256_loadu_ps(p)); } /* 8, and 8 zeros */
INLINE vf vf_load_half_fp16(const uint16_t *p)
{
    return _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)));
}
INLINE vf vf_load_half_bf16(const uint16_t *p)
{
    __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
    return _mm512_zextps256_ps512(_mm256_castsi256_ps(bits));
}
INLINE void vf_store_fp16(uint16_t *p, vf a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#elif defined(SIMD_AVX2)

typedef struct {
    __m256 l, h;
} vf;

INLINE vf vf_set(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void vf_store(float *p, vf a)
{
    _mm256_storeu_ps(p, a.l);
    _mm256_storeu_ps(p + 8, a.h);
}
INLINE vf vf_add(vf a, vf b) { return (vf){_mm256_add_ps(a.l, b.l), _mm256_add_ps(a.h, b.h)}; }
INLINE vf vf_sub(vf a, vf b) { return (vf){_mm256_sub_ps(a.l, b.l), _mm256_sub_ps(a.h, b.h)}; }
INLINE vf vf_mul(vf a, vf b) { return (vf){_mm256_mul_ps(a.l, b.l), _mm256_mul_ps(a.h, b.h)}; }
INLINE vf vf_div(vf a, vf b) { return (vf){_mm256_div_ps(a.l, b.l), _mm256_div_ps(a.h, b.h)}; }
INLINE vf vf_fma(vf a, vf b, vf c) { return (vf){_mm256_fmadd_ps(a.l, b.l, c.l), _mm256_fmadd_ps(a.h, b.h, c.h)}; }
INLINE vf vf_max(vf a, vf b) { return (vf){_mm256_max_ps(a.l, b.l), _mm256_max_ps(a.h, b.h)}; }
INLINE vf vf_min(vf a, vf b) { return (vf){_mm256_min_ps(a.l, b.l), _mm256_min_ps(a.h, b.h)}; }
INLINE vf vf_round(vf a)
{
    return (vf){_mm256_round_ps(a.l, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(a.h, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INLINE __m256 scale_half(__m256 a, __m256 n)
{
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
INLINE vf vf_scale(vf a, vf n) { return (vf){scale_half(a.l, n.l), scale_half(a.h, n.h)}; } /* -126 <= n <= 127 */
INLINE vf vf_zero_below(vf a, vf x, vf limit)
{
    return (vf){_mm256_and_ps(a.l, _mm256_cmp_ps(x.l, limit.l, _CMP_NLT_UQ)),
                _mm256_and_ps(a.h, _mm256_cmp_ps(x.h, limit.h, _CMP_NLT_UQ))};
}
INLINE __m256 select_half(__m256 a, __m256 b, int32_t from, int32_t to)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i in = _mm256_and_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(from - 1)),
                                  _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane));
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(in));
}
INLINE vf vf_select(vf a, vf b, int32_t from, int32_t to)
{
    return (vf){select_half(a.l, b.l, from, to), select_half(a.h, b.h, from - 8, to - 8)};
}
INLINE float vf_sum(vf a)
{
    __m256 x = _mm256_add_ps(a.l, a.h);
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
INLINE float vf_largest(vf a)
{
    __m256 x = _mm256_max_ps(a.l, a.h);
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
INLINE vf vf_load_fp16(const uint16_t *p)
{
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
INLINE __m256 bf16_half(const uint16_t *p)
{
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE vf vf_load_bf16(const uint16_t *p) { return (vf){bf16_half(p), bf16_half(p + 8)}; }
INLINE __m256 int8_half(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE vf vf_load_int8(const int8_t *p) { return (vf){int8_half(p), int8_half(p + 8)}; }
INLINE vf vf_load_half(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_setzero_ps()}; }
INLINE vf vf_load_half_fp16(const uint16_t *p)
{
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_setzero_ps()};
}
INLINE vf vf_load_half_bf16(const uint16_t *p) { return (vf){bf16_half(p), _mm256_setzero_ps()}; }
INLINE void vf_store_fp16(uint16_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.l, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.h, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#else

typedef struct {
    float x[16];
} vf;

#define LANES for (int i = 0; i < 16; i++)
INLINE vf vf_set(float x) { vf r; LANES r.x[i] = x; return r; }
INLINE vf vf_load(const float *p) { vf r; memcpy(&r, p, sizeof r); return r; }
INLINE void vf_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf vf_add(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] + b.x[i]; return r; }
INLINE vf vf_sub(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] - b.x[i]; return r; }
INLINE vf vf_mul(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] * b.x[i]; return r; }
INLINE vf vf_div(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] / b.x[i]; return r; }
INLINE vf vf_fma(vf a, vf b, vf c) { vf r; LANES r.x[i] = a.x[i] * b.x[i] + c.x[i]; return r; }
INLINE vf vf_max(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] > b.x[i] ? a.x[i] : b.x[i]; return r; }
INLINE vf vf_min(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] < b.x[i] ? a.x[i] : b.x[i]; return r; }
INLINE vf vf_round(vf a) { vf r; LANES r.x[i] = rintf(a.x[i]); return r; }
INLINE vf vf_scale(vf a, vf n)
{
    vf r;
    LANES {
        /* no conversion of what is not a small whole number, NaN above all */
        int32_t exponent = n.x[i] >= -126.0f && n.x[i] <= 127.0f ? (int32_t)n.x[i] : 0;
        uint32_t bits = (uint32_t)(exponent + 127) << 23;
        float power;
        memcpy(&power, &bits, sizeof power);
        r.x[i] = a.x[i] * power;
    }
    return r;
}
INLINE vf vf_zero_below(vf a, vf x, vf limit) { vf r; LANES r.x[i] = x.x[i] < limit.x[i] ? 0.0f : a.x[i]; return r; }
INLINE vf vf_select(vf a, vf b, int32_t from, int32_t to)
{
    vf r;
    LANES r.x[i] = i >= from && i < to ? a.x[i] : b.x[i];
    return r;
}
INLINE float vf_sum(vf a)
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.x[i] += a.x[i + half];
    return a.x[0];
}
INLINE float vf_largest(vf a)
{
    float largest = a.x[0];
    for (int i = 1; i < 16; i++)
        largest = a.x[i] > largest ? a.x[i] : largest;
    return largest;
}
INLINE vf vf_load_bf16(const uint16_t *p)
{
    vf r;
    LANES {
        uint32_t bits = (uint32_t)p[i] << 16;
        memcpy(&r.x[i], &bits, sizeof bits);
    }
    return r;
}
INLINE vf vf_load_fp16(const uint16_t *p)
{
    vf r;
    LANES {
        /* as if the exponent were fp32's, then multiplied up: exact, subnormal numbers too */
        uint32_t magnitude = (uint32_t)(p[i] & 0x7fff) << 13, sign = (uint32_t)(p[i] & 0x8000) << 16;
        float x;
        memcpy(&x, &magnitude, sizeof x);
        x *= 0x1p112f;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        bits = (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits) | sign; /* infinity and NaN */
        memcpy(&r.x[i], &bits, sizeof bits);
    }
    return r;
}
INLINE vf vf_load_int8(const int8_t *p) { vf r; LANES r.x[i] = (float)p[i]; return r; }
INLINE vf vf_load_half(const float *p) { vf r = {{0}}; memcpy(&r, p, 32); return r; }
INLINE vf vf_load_half_fp16(const uint16_t *p) { uint16_t x[16] = {0}; memcpy(x, p, 16); return vf_load_fp16(x); }
INLINE vf vf_load_half_bf16(const uint16_t *p) { uint16_t x[16] = {0}; memcpy(x, p, 16); return vf_load_bf16(x); }
INLINE void vf_store_fp16(uint16_t *p, vf a)
{
    LANES {
        uint32_t bits;
        memcpy(&bits, &a.x[i], sizeof bits);
        uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff, half;
        if (magnitude > 0x7f800000u) {
            half = 0x7e00 | (magnitude >> 13 & 0x1ff);
        } else if (magnitude >= 0x477ff000u) { /* rounds to 65536 or more */
            half = 0x7c00;
        } else if (magnitude < 0x38800000u) { /* subnormal: let fp32's own rounding do it */
            float x;
            memcpy(&x, &magnitude, sizeof x);
            x += 0.5f;
            memcpy(&half, &x, sizeof half);
            half -= 0x3f000000u;
        } else {
            half = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
        }
        p[i] = (uint16_t)(sign | half);
    }
}
#undef LANES

#endif

/* Halves to even; a NaN stays one. */
#if defined(SIMD_AVX512)
INLINE void vf_store_bf16(uint16_t *p, vf a)
{
    __m512i bits = _mm512_castps_si512(a), top = _mm512_srli_epi32(bits, 16);
    __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), top, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(rounded));
}
#elif defined(SIMD_AVX2)
INLINE __m256i round_bf16(__m256 a)
{
    __m256i bits = _mm256_castps_si256(a), top = _mm256_srli_epi32(bits, 16);
    __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), is_nan);
}
INLINE void vf_store_bf16(uint16_t *p, vf a)
{
    __m256i packed = _mm256_packus_epi32(round_bf16(a.l), round_bf16(a.h)); /* quarters 0 2 1 3 */
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
#else
INLINE void vf_store_bf16(uint16_t *p, vf a)
{
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        memcpy(&bits, &a.x[i], sizeof bits);
        int is_nan = (bits & 0x7fffffff) > 0x7f800000u;
        p[i] = (uint16_t)(is_nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}
#endif

/* Whole numbers from -128 to 127; magnitudes, and the larger of two by their bits, which puts infinities and NaN above
 * all numbers where nothing is negative.
 */
#if defined(SIMD_AVX512)
INLINE void vf_store_int8(int8_t *p, vf a)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}
INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
INLINE vf vf_larger_bits(vf a, vf b)
{
    return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
INLINE uint32_t vf_largest_bits(vf a) { return _mm512_reduce_max_epu32(_mm512_castps_si512(a)); }
#elif defined(SIMD_AVX2)
INLINE void vf_store_int8(int8_t *p, vf a)
{
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a.l), _mm256_cvtps_epi32(a.h)); /* quarters 0 2 1 3 */
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
INLINE vf vf_abs(vf a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (vf){_mm256_andnot_ps(sign, a.l), _mm256_andnot_ps(sign, a.h)};
}
INLINE __m256 larger_bits_half(__m256 a, __m256 b)
{
    return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
INLINE vf vf_larger_bits(vf a, vf b) { return (vf){larger_bits_half(a.l, b.l), larger_bits_half(a.h, b.h)}; }
INLINE uint32_t vf_largest_bits(vf a)
{
    __m128i x = _mm256_castsi256_si128(_mm256_castps_si256(larger_bits_half(a.l, a.h)));
    x = _mm_max_epu32(x, _mm256_extracti128_si256(_mm256_castps_si256(larger_bits_half(a.l, a.h)), 1));
    x = _mm_max_epu32(x, _mm_shuffle_epi32(x, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(x, _mm_shuffle_epi32(x, 0xb1)));
}
#else
INLINE void vf_store_int8(int8_t *p, vf a)
{
    for (int i = 0; i < 16; i++)
        p[i] = (int8_t)a.x[i];
}
INLINE vf vf_abs(vf a)
{
    for (int i = 0; i < 16; i++)
        a.x[i] = fabsf(a.x[i]);
    return a;
}
INLINE vf vf_larger_bits(vf a, vf b)
{
    uint32_t x[16], y[16];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 16; i++)
        x[i] = x[i] > y[i] ? x[i] : y[i];
    memcpy(&a, x, sizeof a);
    return a;
}
INLINE uint32_t vf_largest_bits(vf a)
{
    uint32_t x[16];
    memcpy(x, &a, sizeof x);
    for (int i = 1; i < 16; i++)
        x[0] = x[i] > x[0] ? x[i] : x[0];
    return x[0];
}
#endif

/* The first n of sixteen numbers, 0 behind them; memory behind them is not touched. */
INLINE vf vf_load_first(const float *p, int32_t n)
{
    float x[16] = {0};
    memcpy(x, p, (size_t)n * sizeof *x);
    return vf_load(x);
}
INLINE void vf_store_first(float *p, vf a, int32_t n)
{
    float x[16];
    vf_store(x, a);
    memcpy(p, x, (size_t)n * sizeof *x);
}

/* 2^x: within 2 units in the last place; 0 below -126, clamped above 127; NaN stays.
 * Degree 6 on [-1/2, 1/2], through the Chebyshev nodes: 3e-9 off there, before rounding.
 */
INLINE vf vf_exp2(vf x)
{
    vf low = vf_set(-126.0f);
    vf bounded = vf_max(low, vf_min(vf_set(127.0f), x)); /* in this order NaN passes */
    vf whole = vf_round(bounded), part = vf_sub(bounded, whole);
    vf y = vf_set(1.546144472e-04f);
    y = vf_fma(y, part, vf_set(1.340042818e-03f));
    y = vf_fma(y, part, vf_set(9.618056678e-03f));
    y = vf_fma(y, part, vf_set(5.550327227e-02f));
    y = vf_fma(y, part, vf_set(2.402265092e-01f));
    y = vf_fma(y, part, vf_set(6.931472067e-01f));
    y = vf_fma(y, part, vf_set(1.0f));
    return vf_zero_below(vf_scale(y, whole), x, low);
}

#endif
