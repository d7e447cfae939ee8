#ifndef LLMOS_PACK_H
#define LLMOS_PACK_H
#include "_gemm.h"

/* Between pack.c and pack_rows_<variant>.c: where numbers lie in a tile, and rows to the quantised formats. */

static inline int64_t bf16_slot(int32_t k, int32_t c)
{
    return (int64_t)k * COLUMNS + c / 32 * 32 + c % 16 * 2 + c / 16 % 2;
}

static inline int64_t int8_slot(int32_t k, int32_t c)
{
    return (int64_t)(k / 4) * 4 * COLUMNS + c * 4 + k % 4;
}

/* A group's scales; its offsets follow, then its codes. */
static inline int64_t group_slot(int32_t g)
{
    return (int64_t)g * (2 * COLUMNS + GROUP * COLUMNS / 2);
}

static inline int64_t int4_slot(int32_t k, int32_t c)
{
    return group_slot(k / GROUP) + 2 * COLUMNS + (int64_t)(k % GROUP / 8) * 4 * COLUMNS + c * 4 + k % 4;
}

/* Put a row of k numbers, fp32, fp16 or bf16, into column c of a tile and return its scale: NaN where a number is
 * not finite, and the column is left alone. The same bits in every variant.
 */
typedef struct {
    float (*int8_row)(int32_t row_format, const void *row, int32_t k, char *tile, int32_t c);
    float (*int4_row)(int32_t row_format, const void *row, int32_t k, char *tile, int32_t c);
} llmos_pack_kernels;

extern const llmos_pack_kernels llmos_pack_plain;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LLMOS_PACKS_X86
extern const llmos_pack_kernels llmos_pack_avx2, llmos_pack_avx512;
#endif

#endif
