/* Packing of rows in plain C. */
#include "_simd.h"

#include "_pack_rows.h"

const llmos_pack_kernels llmos_pack_plain = {int8_row, int4_row};
