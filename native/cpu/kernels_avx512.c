/* The kernels for AVX-512 (F, BW, DQ, VL, VNNI). */
#include "_kernels.h"
#if defined(LLMOS_HAS_X86)
#define SIMD_AVX512
#define KERNELS llmos_kernels_avx512
#include "_variant_kernels.h"
#endif
