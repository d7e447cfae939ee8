/* Rows to W8A8 and W4A8; included by pack_rows_<variant>.c behind _simd.h.
 *
 * Nothing is fused, and sums run in sixteen lanes that are added in a fixed order: so all variants choose alike.
 */
#include "_pack.h"

/* Adding it rounds a small number to an integer, halves to even, and leaves that in the low bits. */
#define TO_INTEGER 12582912.0f /* 1.5 * 2^23 */

enum { VECTORS = GROUP / 16, SHRINKS = 3, PLACES = 5 };

/* Sixteen numbers of a row from i on; past its end the last one again, which changes no range. */
INLINE vf load_numbers(int32_t row_format, const void *row, int32_t i, int32_t k)
{
    float wide[16];
    uint16_t narrow[16];
    if (i + 16 > k) {
        for (int32_t j = 0; j < 16; j++) {
            int32_t at = i + j < k ? i + j : k - 1;
            if (row_format == LLMOS_FP32)
                wide[j] = ((const float *)row)[at];
            else
                narrow[j] = ((const uint16_t *)row)[at];
        }
        row = row_format == LLMOS_FP32 ? (const void *)wide : narrow;
        i = 0;
    }
    if (row_format == LLMOS_FP32)
        return vf_load((const float *)row + i);
    return (row_format == LLMOS_FP16 ? vf_load_fp16 : vf_load_bf16)((const uint16_t *)row + i);
}

/* The largest magnitude, or NaN. */
INLINE float largest_magnitude(int32_t row_format, const void *row, int32_t k)
{
    vf largest = vf_set(0), doubt = vf_set(0); /* x - x is NaN for infinities too */
    for (int32_t i = 0; i < k; i += 16) {
        vf x = load_numbers(row_format, row, i, k);
        largest = vf_max(largest, vf_max(x, vf_sub(vf_set(0), x)));
        doubt = vf_add(doubt, vf_sub(x, x));
    }
    return vf_largest(largest) + vf_sum(doubt);
}

INLINE void store_bytes(vf integers, uint8_t *bytes)
{
    uint32_t bits[16];
    vf biased = vf_add(integers, vf_set(TO_INTEGER));
    memcpy(bits, &biased, sizeof bits);
    for (int32_t j = 0; j < 16; j++)
        bytes[j] = (uint8_t)bits[j];
}

/* What maps the largest magnitude to `limit`; 0 for numbers so small that they are 0. */
INLINE float inverse_of(float largest, float limit)
{
    float inverse = limit / largest;
    return inverse < INFINITY ? inverse : 0;
}

INLINE float int8_numbers(int32_t row_format, const void *row, int32_t k, char *tile, int32_t c)
{
    const float limit = 127, largest = largest_magnitude(row_format, row, k);
    const vf inverse = vf_set(inverse_of(largest, limit));
    if (!(largest < INFINITY))
        return largest;
    for (int32_t i = 0; i < k; i += 16) {
        uint8_t bytes[16];
        store_bytes(vf_mul(load_numbers(row_format, row, i, k), inverse), bytes);
        for (int32_t j = 0; j < 16; j++)
            bytes[j] = (uint8_t)(i + j < k ? bytes[j] + 128 : 128);
        for (int32_t j = 0; j < 16 && i + j < padded_k(k); j += 4)
            memcpy(tile + int8_slot(i + j, c), bytes + j, 4);
    }
    return largest / limit;
}

/* The code of a value, neither rounded nor cut: steps is the value divided by the step, start the value of code 0. */
INLINE vf place_of(vf steps, float inverse, int32_t start)
{
    return vf_sub(steps, vf_set((float)start * inverse));
}

INLINE vf cut(vf places)
{
    return vf_min(vf_set(15), vf_max(places, vf_set(0)));
}

INLINE vf whole_of(vf x)
{
    return vf_sub(vf_add(x, vf_set(TO_INTEGER)), vf_set(TO_INTEGER));
}

INLINE vf add_error(vf sum, vf places)
{
    vf off = vf_sub(places, whole_of(cut(places)));
    return vf_add(sum, vf_mul(off, off));
}

/* Squared errors of a group with each of five offsets. All at once: one alone waits for its own sum. */
INLINE void errors_of(const vf *values, int32_t step, const int32_t *starts, float *errors)
{
    const float inverse = 1.0f / (float)step;
    vf a = vf_set(0), b = a, c = a, d = a, e = a;
    for (int32_t i = 0; i < VECTORS; i++) {
        const vf steps = vf_mul(values[i], vf_set(inverse));
        a = add_error(a, place_of(steps, inverse, starts[0]));
        b = add_error(b, place_of(steps, inverse, starts[1]));
        c = add_error(c, place_of(steps, inverse, starts[2]));
        d = add_error(d, place_of(steps, inverse, starts[3]));
        e = add_error(e, place_of(steps, inverse, starts[4]));
    }
    const float area = (float)(step * step);
    errors[0] = vf_sum(a) * area;
    errors[1] = vf_sum(b) * area;
    errors[2] = vf_sum(c) * area;
    errors[3] = vf_sum(d) * area;
    errors[4] = vf_sum(e) * area;
}

/* A good scale and offset for values in -119..119: the one that covers the range, or is one or two less and cuts its
 * ends, at five places each. The best of all that there are has an error of 0.97 times this one's.
 */
INLINE void search_group(const vf *values, int32_t low, int32_t high, int32_t *scale, int32_t *offset)
{
    const int32_t widest = (high - low + 14) / 15;
    float best = INFINITY;
    for (int32_t shrink = 0; shrink < SHRINKS; shrink++) {
        const int32_t step = widest - shrink > 1 ? widest - shrink : 1, slack = high - low - 15 * step;
        int32_t starts[PLACES];
        float errors[PLACES];
        for (int32_t place = 0; place < PLACES; place++)
            starts[place] = low + slack * place / (PLACES - 1);
        errors_of(values, step, starts, errors);
        for (int32_t place = 0; place < PLACES; place++) {
            const int32_t start = starts[place];
            if (start < -128 || start + 15 * step > 127 || !(errors[place] < best))
                continue;
            best = errors[place];
            *scale = step;
            *offset = start;
        }
        if (step == 1)
            break;
    }
}

INLINE float int4_numbers(int32_t row_format, const void *row, int32_t k, char *tile, int32_t c)
{
    const float limit = 119, largest = largest_magnitude(row_format, row, k); /* codes times scales stay in 127 */
    const vf inverse = vf_set(inverse_of(largest, limit));
    if (!(largest < INFINITY))
        return largest;
    for (int32_t k0 = 0; k0 < k; k0 += GROUP) {
        vf values[VECTORS], low = vf_set(127), high = vf_set(-127);
        int32_t scale = 1, start = 0;
        uint8_t codes[GROUP], *group = (uint8_t *)tile + group_slot(k0 / GROUP);
        for (int32_t i = 0; i < VECTORS; i++) {
            values[i] = vf_mul(load_numbers(row_format, row, k0 + 16 * i, k), inverse);
            vf whole = whole_of(values[i]);
            low = vf_min(low, whole);
            high = vf_max(high, whole);
        }
        search_group(values, -(int32_t)vf_largest(vf_sub(vf_set(0), low)), (int32_t)vf_largest(high), &scale, &start);
        group[c] = (uint8_t)scale;
        group[COLUMNS + c] = (uint8_t)(start + 128);
        const float per_step = 1.0f / (float)scale;
        for (int32_t i = 0; i < VECTORS; i++)
            store_bytes(cut(place_of(vf_mul(values[i], vf_set(per_step)), per_step, start)), codes + 16 * i);
        if (k - k0 < GROUP)
            memset(codes + (k - k0), 0, (size_t)(GROUP - (k - k0)));
        for (int32_t i = 0; i < GROUP && k0 + i < padded_k(k); i += 8) {
            uint32_t first, second;
            memcpy(&first, codes + i, 4);
            memcpy(&second, codes + i + 4, 4);
            first |= second << 4;
            memcpy(tile + int4_slot(k0 + i, c), &first, 4);
        }
    }
    return largest / limit;
}

/* Once for each format of rows. */
static float int8_row(int32_t row_format, const void *row, int32_t k, char *tile, int32_t c)
{
    return row_format == LLMOS_FP32   ? int8_numbers(LLMOS_FP32, row, k, tile, c)
           : row_format == LLMOS_FP16 ? int8_numbers(LLMOS_FP16, row, k, tile, c)
                                      : int8_numbers(LLMOS_BF16, row, k, tile, c);
}

static float int4_row(int32_t row_format, const void *row, int32_t k, char *tile, int32_t c)
{
    return row_format == LLMOS_FP32   ? int4_numbers(LLMOS_FP32, row, k, tile, c)
           : row_format == LLMOS_FP16 ? int4_numbers(LLMOS_FP16, row, k, tile, c)
                                      : int4_numbers(LLMOS_BF16, row, k, tile, c);
}
