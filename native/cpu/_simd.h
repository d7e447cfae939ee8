#ifndef LLMOS_SIMD_H
#define LLMOS_SIMD_H
/* Sixteen floats at a time, as the instructions of one variant.
 *
 * kernels_avx512.c and kernels_avx2.c define SIMD_AVX512 or SIMD_AVX2 and include this first: all that follows
 * in that file is compiled for that variant, whatever the compiler's own target. Without either: plain C.
 *
 * Each variant has the same functions. Those whose names do not say what they do:
 * - vf_store_bf16, vf_store_fp16: halves go to even; a NaN stays one.
 * - vf_store_int8: of whole numbers from -128 to 127.
 * - vf_larger_bits, vf_largest_bits: by the bits of numbers that are not negative, which puts infinities and NaN above
 *   all others.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(SIMD_AVX512)
#include "_simd_avx512.h"
#elif defined(SIMD_AVX2)
#include "_simd_avx2.h"
#else
#include "_simd_plain.h"
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
