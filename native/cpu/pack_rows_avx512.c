/* Packing of rows with AVX-512. */
#include "_pack.h"
#if defined(LLMOS_PACKS_X86)
#define SIMD_AVX512
#include "_simd.h"

#include "_pack_rows.h"

const llmos_pack_kernels llmos_pack_avx512 = {int8_row, int4_row};
#endif
