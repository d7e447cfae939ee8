/* The kernels for AVX2, FMA and F16C. */
#include "_kernels.h"
#if defined(LLMOS_HAS_X86)
#define SIMD_AVX2
#define KERNELS llmos_kernels_avx2
#include "_variant_kernels.h"
#endif
