/* CRC-32C: one instruction for eight bytes, which takes three cycles but can begin in each; so three chains run
 * side by side over neighbouring stretches, and are joined by the table of what a stretch of zeros does.
 *
 * Source: Gopal et al. 2011, "Fast CRC computation for iSCSI polynomial using CRC32 instruction".
 */
#include "checksum.h"

#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

enum { STRETCH = 4096 }; /* bytes of one chain */

static const uint32_t POLYNOMIAL = 0x82f63b78;

static uint32_t byte_table[256];
static uint32_t stretch_table[4][256]; /* what STRETCH zeros make of each byte of a checksum */
static int has_instruction;

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
#endif

uint32_t llmos_crc32c(uint32_t crc, const void *data, size_t size)
{
#if defined(__x86_64__)
    if (has_instruction)
        return ~fast(~crc, data, size);
#endif
    return ~plain(~crc, data, size);
}
