/* CRC-32C: one instruction for eight bytes, which takes three cycles but can begin in each; so three chains run
 * side by side over neighbouring stretches, and are joined by the table of what a stretch of zeros does.
 *
 * Where there are carry-less products of whole vectors, 256 bytes are folded onto the next 256 at once: what lies n
 * bits ahead counts x^n times, modulo the polynomial.
 *
 * Sources: Gopal et al. 2011, "Fast CRC computation for iSCSI polynomial using CRC32 instruction"; Gopal et al. 2009,
 * "Fast CRC computation for generic polynomials using PCLMULQDQ instruction".
 */
#include "checksum.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { STRETCH = 4096 }; /* bytes of one chain */

static const uint32_t POLYNOMIAL = 0x82f63b78;

static uint32_t byte_table[256];
static uint32_t stretch_table[4][256]; /* what STRETCH zeros make of each byte of a checksum */
static int has_instruction, has_vectors;

static uint32_t plain(uint32_t crc, const unsigned char *p, size_t size)
{
    while (size--)
        crc = byte_table[(crc ^ *p++) & 0xff] ^ crc >> 8;
    return crc;
}

/* A checksum is linear: what zeros make of all 32 bits follows from what they make of each. */
static void apply(const uint32_t *matrix, const uint32_t *to, uint32_t *out)
{
    for (int i = 0; i < 32; i++) {
        uint32_t sum = 0;
        for (int bit = 0; bit < 32; bit++)
            sum ^= to[i] >> bit & 1 ? matrix[bit] : 0;
        out[i] = sum;
    }
}

__attribute__((constructor)) static void make_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ POLYNOMIAL : crc >> 1;
        byte_table[i] = crc;
    }
    uint32_t zeros[32], twice[32];
    for (int bit = 0; bit < 32; bit++)
        zeros[bit] = byte_table[(1u << bit) & 0xff] ^ (1u << bit) >> 8; /* one zero byte */
    for (int size = 1; size < STRETCH; size *= 2) {
        apply(zeros, zeros, twice);
        memcpy(zeros, twice, sizeof zeros);
    }
    for (int byte = 0; byte < 4; byte++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t sum = 0;
            for (int bit = 0; bit < 8; bit++)
                sum ^= i >> bit & 1 ? zeros[8 * byte + bit] : 0;
            stretch_table[byte][i] = sum;
        }
#if defined(__x86_64__)
    __builtin_cpu_init();
    has_instruction = __builtin_cpu_supports("sse4.2") != 0;
    has_vectors = has_instruction && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
#endif
}

#if defined(__x86_64__)
static uint32_t behind_zeros(uint32_t crc)
{
    return stretch_table[0][crc & 0xff] ^ stretch_table[1][crc >> 8 & 0xff] ^ stretch_table[2][crc >> 16 & 0xff]
           ^ stretch_table[3][crc >> 24];
}

__attribute__((target("sse4.2"))) static uint64_t eight(uint64_t crc, const unsigned char *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
    return _mm_crc32_u64(crc, word);
}

__attribute__((target("sse4.2"))) static uint32_t fast(uint32_t crc, const unsigned char *p, size_t size)
{
    for (; size >= 3 * STRETCH; p += 3 * STRETCH, size -= 3 * STRETCH) {
        uint64_t a = crc, b = 0, c = 0;
        for (int i = 0; i < STRETCH; i += 8) {
            a = eight(a, p + i);
            b = eight(b, p + STRETCH + i);
            c = eight(c, p + 2 * STRETCH + i);
        }
        crc = behind_zeros(behind_zeros((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
    }
    uint64_t rest = crc;
    for (; size >= 8; p += 8, size -= 8)
        rest = eight(rest, p);
    return plain((uint32_t)rest, p, size);
}

#define VECTORS __attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq")))

/* For folding over n bits: x^(n + 31) and x^(n - 33) modulo the polynomial, reflected. */
#define FOLD_2048 0xdcb17aa4LL, 0xb9e02b86LL
#define FOLD_512 0x740eef02LL, 0x9e4addf8LL
#define FOLD_128 0xf20c0dfeLL, 0x493c7d27LL

VECTORS static __m512i fold4(__m512i sum, __m512i constants, __m512i next)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, constants, 0x00),
                                     _mm512_clmulepi64_epi128(sum, constants, 0x11), next, 0x96);
}

VECTORS static __m128i fold(__m128i sum, __m128i constants, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(sum, constants, 0x00), high = _mm_clmulepi64_si128(sum, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

VECTORS static __m128i pair(long long low, long long high)
{
    return _mm_set_epi64x(high, low);
}

/* At least 256 bytes. */
VECTORS static uint32_t fastest(uint32_t crc, const unsigned char *p, size_t size)
{
    const __m512i far = _mm512_broadcast_i32x4(pair(FOLD_2048)), near = _mm512_broadcast_i32x4(pair(FOLD_512));
    __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64);
    __m512i c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
    a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    for (p += 256, size -= 256; size >= 256; p += 256, size -= 256) {
        a = fold4(a, far, _mm512_loadu_si512(p));
        b = fold4(b, far, _mm512_loadu_si512(p + 64));
        c = fold4(c, far, _mm512_loadu_si512(p + 128));
        d = fold4(d, far, _mm512_loadu_si512(p + 192));
    }
    d = fold4(fold4(fold4(a, near, b), near, c), near, d);
    const __m128i next = pair(FOLD_128);
    __m128i sum = fold(_mm512_extracti32x4_epi32(d, 0), next, _mm512_extracti32x4_epi32(d, 1));
    sum = fold(fold(sum, next, _mm512_extracti32x4_epi32(d, 2)), next, _mm512_extracti32x4_epi32(d, 3));
    uint64_t rest = _mm_crc32_u64(0, (uint64_t)_mm_extract_epi64(sum, 0));
    return fast((uint32_t)_mm_crc32_u64(rest, (uint64_t)_mm_extract_epi64(sum, 1)), p, size);
}
#endif

uint32_t llmos_crc32c(uint32_t crc, const void *data, size_t size)
{
    return llmos_crc32c_by(2, crc, data, size);
}

uint32_t llmos_crc32c_by(int32_t way, uint32_t crc, const void *data, size_t size)
{
#if defined(__x86_64__)
    if (way >= 2 && has_vectors && size >= 256)
        return ~fastest(~crc, data, size);
    if (way >= 1 && has_instruction)
        return ~fast(~crc, data, size);
#endif
    (void)way;
    return ~plain(~crc, data, size);
}
