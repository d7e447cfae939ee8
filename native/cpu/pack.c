/* Weights from row-major to packed and back; _gemm.h says where each number lies. */
#include "_pack.h"

#include <math.h>

enum { MAX_INTEGER_K = 65536 }; /* 255 * 127 * k stays below 2^31 */

static uint16_t float_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40); /* still NaN */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint16_t float_to_fp16(float value)
{
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (bits >= 0x477ff000) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) { /* below 2^-14: let the addition round to a multiple of 2^-24 */
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        return (uint16_t)(sign | (uint32_t)lrintf(magnitude * 0x1p24f));
    }
    return (uint16_t)(sign | ((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13));
}

int64_t llmos_packed_bytes(int32_t format, int32_t n, int32_t k)
{
    int quantised = format == LLMOS_W8A8 || format == LLMOS_W4A8;
    if (n < 1 || k < 1 || format < 0 || format > LLMOS_W4A8 || format == LLMOS_INT8)
        return -1;
    if (quantised && k > MAX_INTEGER_K)
        return -1;
    return (int64_t)num_blocks(n, COLUMNS) * tile_bytes(format, k);
}

static void put_int4(char *tile, int32_t k, int32_t c, int32_t code)
{
    uint8_t *at = (uint8_t *)tile + int4_slot(k, c);
    *at = (uint8_t)(k % 8 < 4 ? (*at & 0xf0) | code : (*at & 0x0f) | code << 4);
}

static int32_t get_int4(const char *tile, int32_t k, int32_t c)
{
    uint8_t byte = *((const uint8_t *)tile + int4_slot(k, c));
    return k % 8 < 4 ? byte & 15 : byte >> 4;
}

/* A tile of weights that are all zero. */
static void clear_tile(int32_t format, int32_t k, char *tile)
{
    int32_t padded = padded_k(k);
    memset(tile, format == LLMOS_W8A8 ? 128 : 0, (size_t)tile_bytes(format, k));
    if (format == LLMOS_W4A8)
        for (int32_t k0 = 0; k0 < padded; k0 += GROUP) {
            memset(tile + group_slot(k0 / GROUP), 1, COLUMNS);
            memset(tile + group_slot(k0 / GROUP) + COLUMNS, 128, COLUMNS);
        }
}

static const llmos_pack_kernels *kernels_of(int32_t variant)
{
#if defined(LLMOS_PACKS_X86)
    if (variant == LLMOS_AVX512)
        return &llmos_pack_avx512;
    if (variant == LLMOS_AVX2)
        return &llmos_pack_avx2;
#endif
    (void)variant;
    return &llmos_pack_plain;
}

static float number_at(int32_t row_format, const void *row, int32_t k)
{
    if (row_format == LLMOS_FP32)
        return ((const float *)row)[k];
    uint16_t bits = ((const uint16_t *)row)[k];
    return row_format == LLMOS_FP16 ? fp16_to_float(bits) : bf16_to_float(bits);
}

static void pack_float_row(int32_t format, int32_t row_format, const void *row, int32_t k, char *tile, int32_t c)
{
    for (int32_t i = 0; i < k; i++) {
        float value = number_at(row_format, row, i);
        if (format == LLMOS_FP32)
            ((float *)tile)[(int64_t)i * COLUMNS + c] = value;
        else if (format == LLMOS_FP16)
            ((uint16_t *)tile)[(int64_t)i * COLUMNS + c] = float_to_fp16(value);
        else
            ((uint16_t *)tile)[bf16_slot(i, c)] = float_to_bf16(value);
    }
}

void llmos_pack_rows_variant(int32_t variant, int32_t format, int32_t k, int32_t n0, int32_t n1, int32_t row_format,
                             const void *rows, int64_t ld, void *data, float *scale)
{
    const llmos_pack_kernels *kernels = kernels_of(variant);
    const int64_t row_bytes = ld * (row_format == LLMOS_FP32 ? 4 : 2), size_bytes = tile_bytes(format, k);
    for (int32_t i = n0; i < n1; i++) {
        const char *row = (const char *)rows + (i - n0) * row_bytes;
        char *tile = (char *)data + i / COLUMNS * size_bytes;
        int32_t c = i % COLUMNS;
        if (c == 0)
            clear_tile(format, k, tile);
        if (format == LLMOS_W8A8)
            scale[i] = kernels->int8_row(row_format, row, k, tile, c);
        else if (format == LLMOS_W4A8)
            scale[i] = kernels->int4_row(row_format, row, k, tile, c);
        else
            pack_float_row(format, row_format, row, k, tile, c);
    }
}

void llmos_pack_rows(int32_t format, int32_t k, int32_t n0, int32_t n1, int32_t row_format, const void *rows,
                     int64_t ld, void *data, float *scale)
{
    llmos_pack_rows_variant(llmos_best_variant(), format, k, n0, n1, row_format, rows, ld, data, scale);
}

void llmos_pack_int8(int32_t k, int32_t n0, int32_t n1, const int8_t *rows, int64_t ld, void *data)
{
    int64_t size_bytes = tile_bytes(LLMOS_W8A8, k);
    for (int32_t row = n0; row < n1; row++) {
        char *tile = (char *)data + row / COLUMNS * size_bytes;
        if (row % COLUMNS == 0)
            clear_tile(LLMOS_W8A8, k, tile);
        for (int32_t i = 0; i < k; i++)
            ((uint8_t *)tile)[int8_slot(i, row % COLUMNS)] = (uint8_t)(rows[(row - n0) * ld + i] + 128);
    }
}

void llmos_pack_int4(int32_t k, int32_t n0, int32_t n1, const uint8_t *codes, int64_t ld,
                     const uint8_t *group_scale, const uint8_t *group_offset, void *data)
{
    int64_t size_bytes = tile_bytes(LLMOS_W4A8, k);
    int32_t groups = num_blocks(k, GROUP);
    for (int32_t row = n0; row < n1; row++) {
        char *tile = (char *)data + row / COLUMNS * size_bytes;
        int32_t c = row % COLUMNS;
        if (c == 0)
            clear_tile(LLMOS_W4A8, k, tile);
        for (int32_t g = 0; g < groups; g++) {
            tile[group_slot(g) + c] = (char)group_scale[(int64_t)(row - n0) * groups + g];
            tile[group_slot(g) + COLUMNS + c] = (char)group_offset[(int64_t)(row - n0) * groups + g];
        }
        for (int32_t i = 0; i < k; i++)
            put_int4(tile, i, c, codes[(row - n0) * ld + i]);
    }
}

static int32_t integer_at(const llmos_weight *w, int32_t row, int32_t k)
{
    const char *tile = tile_data(w, row);
    int32_t c = row % COLUMNS;
    if (w->format == LLMOS_W8A8)
        return ((const uint8_t *)tile)[int8_slot(k, c)] - 128;
    const uint8_t *group = (const uint8_t *)tile + group_slot(k / GROUP);
    return get_int4(tile, k, c) * group[c] + group[COLUMNS + c] - 128;
}

static float value_at(const llmos_weight *w, int32_t row, int32_t k)
{
    const char *tile = tile_data(w, row);
    int32_t c = row % COLUMNS;
    switch (w->format) {
    case LLMOS_FP32:
        return ((const float *)tile)[(int64_t)k * COLUMNS + c];
    case LLMOS_FP16:
        return fp16_to_float(((const uint16_t *)tile)[(int64_t)k * COLUMNS + c]);
    case LLMOS_BF16:
        return bf16_to_float(((const uint16_t *)tile)[bf16_slot(k, c)]);
    default:
        return (float)integer_at(w, row, k) * w->scale[row];
    }
}

void llmos_unpack_rows(const llmos_weight *w, int32_t n0, int32_t n1, float *rows, int64_t ld)
{
    for (int32_t row = n0; row < n1; row++)
        for (int32_t k = 0; k < w->k; k++)
            rows[(row - n0) * ld + k] = value_at(w, row, k);
}

void llmos_unpack_int8(const llmos_weight *w, int32_t n0, int32_t n1, int8_t *rows, int64_t ld)
{
    for (int32_t row = n0; row < n1; row++)
        for (int32_t k = 0; k < w->k; k++)
            rows[(row - n0) * ld + k] = (int8_t)integer_at(w, row, k);
}
