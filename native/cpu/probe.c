/* Peaks of the machine: reading in order, int8 and fp32 arithmetic from registers. */
#include "probe.h"
#include "variant.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>

enum { CHAINS = 14, LINES = 16, AHEAD = 2048 };

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define AVX2 __attribute__((target("avx2,fma")))

AVX512 static uint64_t read_avx512(const char *data, int64_t size_bytes)
{
    __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                       _mm512_setzero_si512()};
    for (const char *end = data + size_bytes; data < end; data += 64 * LINES) {
        _Pragma("GCC unroll 16") for (int line = 0; line < LINES; line++)
        {
            _mm_prefetch(data + AHEAD + 64 * line, _MM_HINT_T0);
            sums[line % 4] = _mm512_add_epi64(sums[line % 4], _mm512_loadu_si512(data + 64 * line));
        }
    }
    return (uint64_t)_mm512_reduce_add_epi64(
        _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3])));
}

AVX2 static uint64_t read_avx2(const char *data, int64_t size_bytes)
{
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                       _mm256_setzero_si256()};
    uint64_t lanes[4];
    for (const char *end = data + size_bytes; data < end; data += 64 * LINES)
        for (int half = 0; half < 2 * LINES; half++)
            sums[half % 4] = _mm256_add_epi64(sums[half % 4],
                                              _mm256_loadu_si256((const __m256i *)(data + 32 * half)));
    sums[0] = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
    _mm256_storeu_si256((__m256i *)lanes, sums[0]);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

/* Fourteen chains, in assembly because a compiler may see through them or put them in memory. */
#define EACH_CHAIN(DO) \
    DO("0") DO("1") DO("2") DO("3") DO("4") DO("5") DO("6") DO("7") \
    DO("8") DO("9") DO("10") DO("11") DO("12") DO("13")
#define CLOBBERED                                                                                        \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
        "xmm12", "xmm13", "xmm14", "xmm15"
#define CLEAR(chain) "vpxor %%xmm" chain ", %%xmm" chain ", %%xmm" chain "\n\t"
#define DOT_512(chain) "vpdpbusd %%zmm14, %%zmm15, %%zmm" chain "\n\t"
#define FMA_512(chain) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" chain "\n\t"
#define MADD_256(chain) "vpmaddwd %%ymm14, %%ymm15, %%ymm13\n\tvpaddd %%ymm13, %%ymm" chain ", %%ymm" chain "\n\t"
#define FMA_256(chain) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" chain "\n\t"

#define PROBE(name, instructions, lanes)                                                                  \
    static int64_t name(int64_t iterations)                                                               \
    {                                                                                                     \
        __asm__ volatile(EACH_CHAIN(CLEAR) "vpxor %%xmm14, %%xmm14, %%xmm14\n\t"                          \
                                           "vpxor %%xmm15, %%xmm15, %%xmm15" ::: CLOBBERED);              \
        for (int64_t i = 0; i < iterations; i++)                                                          \
            __asm__ volatile(EACH_CHAIN(instructions) "" ::: CLOBBERED);                                  \
        __asm__ volatile("vzeroupper" ::: CLOBBERED);                                                     \
        return iterations * CHAINS * (lanes) * 2;                                                         \
    }

PROBE(int8_avx512, DOT_512, 64)
PROBE(fp32_avx512, FMA_512, 16)
PROBE(int8_avx2, MADD_256, 16)
PROBE(fp32_avx2, FMA_256, 8)

#endif

static uint64_t read_plain(const char *data, int64_t size_bytes)
{
    uint64_t sum = 0;
    for (int64_t i = 0; i < size_bytes; i += 8) {
        uint64_t word;
        memcpy(&word, data + i, 8);
        sum += word;
    }
    return sum;
}

static int64_t int8_plain(int64_t iterations)
{
    int32_t sums[8] = {0};
    for (int64_t i = 0; i < iterations; i++)
        for (int lane = 0; lane < 8; lane++) {
            volatile int8_t one = 1;
            sums[lane] += one * one;
        }
    return sums[0] ? iterations * 16 : 0;
}

static int64_t fp32_plain(int64_t iterations)
{
    float sums[8] = {0};
    volatile float small = 0x1p-20f;
    for (int64_t i = 0; i < iterations; i++)
        for (int lane = 0; lane < 8; lane++)
            sums[lane] += small * small;
    return sums[0] > 0 ? iterations * 16 : 0;
}

uint64_t llmos_probe_read(const void *data, int64_t size_bytes)
{
#if defined(__x86_64__)
    if (llmos_best_variant() == LLMOS_AVX512)
        return read_avx512(data, size_bytes);
    if (llmos_best_variant() == LLMOS_AVX2)
        return read_avx2(data, size_bytes);
#endif
    return read_plain(data, size_bytes);
}

int64_t llmos_probe_int8(int64_t iterations)
{
#if defined(__x86_64__)
    if (llmos_best_variant() == LLMOS_AVX512)
        return int8_avx512(iterations);
    if (llmos_best_variant() == LLMOS_AVX2)
        return int8_avx2(iterations);
#endif
    return int8_plain(iterations);
}

int64_t llmos_probe_fp32(int64_t iterations)
{
#if defined(__x86_64__)
    if (llmos_best_variant() == LLMOS_AVX512)
        return fp32_avx512(iterations);
    if (llmos_best_variant() == LLMOS_AVX2)
        return fp32_avx2(iterations);
#endif
    return fp32_plain(iterations);
}
