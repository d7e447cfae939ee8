/* Weights from row-major to packed and back; _gemm.h says where each number lies. */
#include "_gemm.h"

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

static int64_t bf16_slot(int32_t k, int32_t c)
{
    return (int64_t)k * COLUMNS + c / 32 * 32 + c % 16 * 2 + c / 16 % 2;
}

static int64_t int8_slot(int32_t k, int32_t c)
{
    return (int64_t)(k / 4) * 4 * COLUMNS + c * 4 + k % 4;
}

/* A group's scales; its offsets follow, then its codes. */
static int64_t group_slot(int32_t g)
{
    return (int64_t)g * (2 * COLUMNS + GROUP * COLUMNS / 2);
}

static int64_t int4_slot(int32_t k, int32_t c)
{
    return group_slot(k / GROUP) + 2 * COLUMNS + (int64_t)(k % GROUP / 8) * 4 * COLUMNS + c * 4 + k % 4;
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

static float largest_magnitude(const float *row, int32_t k)
{
    float largest = 0;
    for (int32_t i = 0; i < k; i++)
        largest = fabsf(row[i]) > largest ? fabsf(row[i]) : largest;
    return largest;
}

/* Four at a time: this is what packing spends its time in. */
typedef float floats __attribute__((vector_size(16)));
typedef int32_t masks __attribute__((vector_size(16)));

static const floats fifteen = {15, 15, 15, 15};

/* Codes, still fp32: adding and taking away 1.5 * 2^23 rounds to integers, halves to even. */
static inline floats codes_of(floats values, float inverse, float low)
{
    floats codes = (values - low) * inverse;
    codes = (floats)((masks)codes & (codes > 0));
    masks over = codes > fifteen;
    codes = (floats)(((masks)fifteen & over) | ((masks)codes & ~over));
    return codes + 12582912.0f - 12582912.0f;
}

static float error_of(const floats *values, int32_t scale, int32_t start)
{
    const float inverse = 1.0f / (float)scale, low = (float)start;
    floats errors[2] = {{0}, {0}};
    for (int32_t i = 0; i < GROUP / 4; i++) {
        floats off = values[i] - (codes_of(values[i], inverse, low) * (float)scale + low);
        errors[i % 2] += off * off;
    }
    errors[0] += errors[1];
    return errors[0][0] + errors[0][1] + errors[0][2] + errors[0][3];
}

/* The best scale and offset for values in -119..119: of the range divided by 15, rounded down and up, and of all
 * the places where codes of that scale can lie in the range, or the range among the codes.
 */
static void search_group(const floats *values, int32_t low, int32_t high, int32_t *scale, int32_t *start)
{
    float best = INFINITY;
    for (int32_t s = (high - low) / 15; s <= (high - low + 14) / 15; s++) {
        int32_t step = s < 1 ? 1 : s, slack = high - low - 15 * step;
        int32_t from = slack < 0 ? low + slack : low, to = slack > 0 ? low + slack : low;
        for (int32_t at = from; at <= to; at++) {
            if (at < -128 || at + 15 * step > 127)
                continue;
            float error = error_of(values, step, at);
            if (error < best) {
                best = error;
                *scale = step;
                *start = at;
            }
        }
    }
}

static void pack_int4_row(char *tile, int32_t c, int32_t k, const float *row, float inverse)
{
    uint8_t *groups = (uint8_t *)tile;
    for (int32_t k0 = 0; k0 < k; k0 += GROUP) {
        floats values[GROUP / 4];
        int32_t count = k - k0 < GROUP ? k - k0 : GROUP, low = 127, high = -128, step = 1, start = 0;
        for (int32_t i = 0; i < GROUP; i++) { /* past the end, the last one again: it changes no range */
            float value = row[k0 + (i < count ? i : count - 1)] * inverse;
            int32_t whole = (int32_t)lrintf(value);
            low = whole < low ? whole : low;
            high = whole > high ? whole : high;
            values[i / 4][i % 4] = value;
        }
        search_group(values, low, high, &step, &start);
        groups[group_slot(k0 / GROUP) + c] = (uint8_t)step;
        groups[group_slot(k0 / GROUP) + COLUMNS + c] = (uint8_t)(start + 128);
        for (int32_t i = 0; i < count; i++) {
            floats codes = codes_of(values[i / 4], 1.0f / (float)step, (float)start);
            put_int4(tile, k0 + i, c, (int32_t)codes[i % 4]);
        }
    }
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

static void pack_row(int32_t format, int32_t k, const float *row, char *tile, int32_t c, float *scale)
{
    float limit = format == LLMOS_W8A8 ? 127.0f : 119.0f; /* 119: codes times scales stay within 127 */
    float largest = 0, inverse = 0;
    if (format == LLMOS_W8A8 || format == LLMOS_W4A8) {
        largest = largest_magnitude(row, k);
        inverse = largest > 0 ? limit / largest : 0;
        *scale = largest / limit;
    }
    switch (format) {
    case LLMOS_FP32:
        for (int32_t i = 0; i < k; i++)
            ((float *)tile)[(int64_t)i * COLUMNS + c] = row[i];
        return;
    case LLMOS_FP16:
        for (int32_t i = 0; i < k; i++)
            ((uint16_t *)tile)[(int64_t)i * COLUMNS + c] = float_to_fp16(row[i]);
        return;
    case LLMOS_BF16:
        for (int32_t i = 0; i < k; i++)
            ((uint16_t *)tile)[bf16_slot(i, c)] = float_to_bf16(row[i]);
        return;
    case LLMOS_W8A8:
        for (int32_t i = 0; i < k; i++)
            ((uint8_t *)tile)[int8_slot(i, c)] = (uint8_t)(lrintf(row[i] * inverse) + 128);
        return;
    default:
        pack_int4_row(tile, c, k, row, inverse);
    }
}

void llmos_pack_rows(int32_t format, int32_t n, int32_t k, int32_t n0, int32_t n1,
                     const float *rows, int64_t ld, void *data, float *scale)
{
    int64_t size_bytes = tile_bytes(format, k);
    (void)n;
    for (int32_t row = n0; row < n1; row++) {
        char *tile = (char *)data + row / COLUMNS * size_bytes;
        float unused;
        if (row % COLUMNS == 0)
            clear_tile(format, k, tile);
        pack_row(format, k, rows + (row - n0) * ld, tile, row % COLUMNS, scale ? scale + row : &unused);
    }
}

void llmos_pack_int8(int32_t n, int32_t k, int32_t n0, int32_t n1, const int8_t *rows, int64_t ld, void *data)
{
    int64_t size_bytes = tile_bytes(LLMOS_W8A8, k);
    (void)n;
    for (int32_t row = n0; row < n1; row++) {
        char *tile = (char *)data + row / COLUMNS * size_bytes;
        if (row % COLUMNS == 0)
            clear_tile(LLMOS_W8A8, k, tile);
        for (int32_t i = 0; i < k; i++)
            ((uint8_t *)tile)[int8_slot(i, row % COLUMNS)] = (uint8_t)(rows[(row - n0) * ld + i] + 128);
    }
}

void llmos_pack_int4(int32_t n, int32_t k, int32_t n0, int32_t n1, const uint8_t *codes, int64_t ld,
                     const uint8_t *group_scale, const uint8_t *group_offset, void *data)
{
    int64_t size_bytes = tile_bytes(LLMOS_W4A8, k);
    int32_t groups = num_blocks(k, GROUP);
    (void)n;
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
