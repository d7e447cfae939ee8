/* Exact products of bytes, as the instructions of one variant; included by _attention_int8.h behind _simd.h. */

/* Sixteen sums of products of four bytes: unsigned ones in `u`, signed ones in `s`. Those of keys (vi_dot_key:
 * unsigned, four dimensions of sixteen keys) or values (signed, four tokens in sixteen dimensions) fill a register, the four
 * of a query or of weights are the same for all sixteen. vi_float: x - offset. vi_join: 256 high + low.
 * store_parts: of whole numbers below 2^16 the high bytes of four, their low bytes, and so on.
 */
#if defined(SIMD_AVX512)
typedef __m512i vi;
INLINE vi vi_zero(void) { return _mm512_setzero_si512(); }
INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE vi vi_load_half(const void *p) { return _mm512_zextsi256_si512(_mm256_loadu_si256(p)); } /* and 32 zeros */
INLINE vi vi_dot(vi sum, vi u, vi s) /* gcc 12 copies and spills the sums around the intrinsic */
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
    return sum;
}
INLINE vi vi_dot_key(vi sum, vi key, int32_t q) { return vi_dot(sum, key, _mm512_set1_epi32(q)); }
INLINE vi vi_dot_value(vi sum, vi value, int32_t w) { return vi_dot(sum, _mm512_set1_epi32(w), value); }
INLINE vf vi_float(vi x, int32_t offset) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(x, _mm512_set1_epi32(offset))); }
INLINE vf vi_join(vi high, vi low) { return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low)); }
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
INLINE vi vi_load_half(const void *p) { return (vi){_mm256_loadu_si256(p), _mm256_setzero_si256()}; }
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
INLINE vf vi_float(vi x, int32_t offset)
{
    __m256i o = _mm256_set1_epi32(offset);
    return (vf){_mm256_cvtepi32_ps(_mm256_sub_epi32(x.l, o)), _mm256_cvtepi32_ps(_mm256_sub_epi32(x.h, o))};
}
INLINE __m256 join_half(__m256i high, __m256i low)
{
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low));
}
INLINE vf vi_join(vi high, vi low) { return (vf){join_half(high.l, low.l), join_half(high.h, low.h)}; }
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
INLINE vi vi_load_half(const void *p)
{
    vi r = vi_zero();
    memcpy(&r, p, sizeof r / 2);
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
INLINE vf vi_float(vi x, int32_t offset)
{
    vf r;
    for (int i = 0; i < 16; i++)
        r.x[i] = (float)(x.x[i] - offset);
    return r;
}
INLINE vf vi_join(vi high, vi low)
{
    vf r;
    for (int i = 0; i < 16; i++)
        r.x[i] = (float)(high.x[i] * 256 + low.x[i]);
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
