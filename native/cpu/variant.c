/* Which instruction sets this machine has; asked once, when the library is loaded. */
#include "variant.h"

static int32_t best = LLMOS_PLAIN;

__attribute__((constructor)) static void find_best_variant(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return;
    best = LLMOS_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512vnni"))
        best = LLMOS_AVX512;
#endif
}

int32_t llmos_best_variant(void)
{
    return best;
}

const char *llmos_variant_name(int32_t variant)
{
    static const char *const names[LLMOS_NUM_VARIANTS] = {"plain", "avx2", "avx512"};
    return variant >= 0 && variant < LLMOS_NUM_VARIANTS ? names[variant] : "unknown";
}
