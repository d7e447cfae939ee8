#ifndef LLMOS_GEMM_INTERNAL_H
#define LLMOS_GEMM_INTERNAL_H
#include "gemm.h"
#include "variant.h"

#include <string.h>

/* Between gemm.c, pack.c and the variants. Where a number lies in llmos_weight.data, for column c of a tile of
 * 64 (the last one padded with zeros), tiles one after the other:
 *
 *   FP32, FP16   [k][c]
 *   BF16         [k][c / 32][c % 16][c / 16 % 2]: a 32-bit lane holds two columns, each one shift or mask away
 *   W8A8         [k / 4][c][k % 4] bytes, w + 128; k padded to 8 with w = 0
 *   W4A8         for each group of 128 k: 64 scales, 64 offsets, then [k / 8][c][k % 4] bytes whose low nibble
 *                is code k % 8 < 4 and whose high nibble is the one four further on; w + 128 = code scale +
 *                offset. The last group may be shorter; k padded to 8 with code 0
 *
 * so that four k of 16 columns are a vector for VPDPBUSD, read in the order in which they lie.
 *
 * Source of the W4A8 form: Lin et al. 2024, "QServe", arXiv:2405.04532 (one integer accumulator over all of k);
 * Hu et al. 2025, "LiquidGEMM", arXiv:2509.01229 (an unsigned code times scale plus offset cannot overflow).
 */
enum { COLUMNS = LLMOS_TILE_COLUMNS, GROUP = 128 };

typedef struct {
    const llmos_weight *w;
    const void *x;
    int64_t ldx;
    const float *xscale;
    const int32_t *xsum;
    int32_t m;
    float *y;
    int64_t ldy;
    int32_t accumulate;
    char *scratch;
} llmos_product;

typedef struct {
    /* Before the tiles of a product: what they share goes into the scratch. Null where there is nothing. */
    void (*begin)(const llmos_product *p);
    /* Columns of one tile that begins at column n0, for every row. */
    void (*tile)(const llmos_product *p, int32_t n0);
    /* The largest of `count` floats that is not NaN, or -inf. */
    float (*largest)(const float *values, int32_t count);
} llmos_gemm_kernels;

extern const llmos_gemm_kernels llmos_gemm_plain;
#if defined(__x86_64__)
extern const llmos_gemm_kernels llmos_gemm_avx2, llmos_gemm_avx512;
#endif

static inline int32_t padded_k(int32_t k)
{
    return (k + 7) / 8 * 8;
}

/* Bytes of a tile of 64 columns. */
static inline int64_t tile_bytes(int32_t format, int32_t k)
{
    int64_t padded = padded_k(k);
    switch (format) {
    case LLMOS_FP32:
        return (int64_t)k * COLUMNS * 4;
    case LLMOS_FP16:
    case LLMOS_BF16:
        return (int64_t)k * COLUMNS * 2;
    case LLMOS_W8A8:
        return padded * COLUMNS;
    default:
        return padded * COLUMNS / 2 + (padded + GROUP - 1) / GROUP * 2 * COLUMNS;
    }
}

static inline const char *tile_data(const llmos_weight *w, int32_t n0)
{
    return (const char *)w->data + n0 / COLUMNS * tile_bytes(w->format, w->k);
}

/* Rows in the i-th of the blocks, of at most `most` rows each and as equal as can be, that m rows are cut in. */
static inline int32_t num_blocks(int32_t m, int32_t most)
{
    return (m + most - 1) / most;
}

static inline int32_t block_start(int32_t m, int32_t blocks, int32_t i)
{
    return (int32_t)((int64_t)m * i / blocks);
}

static inline float bf16_to_float(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline float fp16_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, bits;
    float value;
    if (rest < 0x400) { /* zero or subnormal: a multiple of 2^-24 */
        value = (float)rest * 0x1p-24f;
        memcpy(&bits, &value, 4);
    } else {
        bits = (rest << 13) + (rest < 0x7c00 ? 0x38000000u : 0x70000000u);
    }
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

#endif
