/* The kernels for AVX2, FMA and F16C. */
#include "_kernels.h"
#if defined(LLMOS_HAS_X86)
#define SIMD_AVX2
#include "_simd.h"

#include "_norm.h"

#include "_activation.h"
#include "_kv.h"

#include "_attention.h"

#include "_sample.h"

const llmos_kernels llmos_kernels_avx2 = {
    .rms_norm = rms_norm,
    .rms_norm_int8 = rms_norm_int8,
    .silu_mul = silu_mul,
    .embed = embed,
    .rope_write_kv = rope_write_kv,
    .attention = attention,
    .survey = survey,
    .segment_maxima = segment_maxima,
    .segment_sums = segment_sums,
    .weigh_segment = weigh_segment,
};
#endif
