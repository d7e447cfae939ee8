/* Sixteen floats as two registers of AVX2, with FMA and F16C; see _simd.h for what each of these does. */
#include <immintrin.h>
#pragma GCC target("avx2,f16c,fma")

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
