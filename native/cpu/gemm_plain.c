/* Products in portable C: the fallback, and what the other variants' integers must equal. */
#include "_gemm.h"

#include <math.h>

static float float_weight(const llmos_weight *w, const char *tile, int32_t k, int32_t c)
{
    if (w->format == LLMOS_FP32)
        return ((const float *)tile)[(int64_t)k * COLUMNS + c];
    if (w->format == LLMOS_FP16)
        return fp16_to_float(((const uint16_t *)tile)[(int64_t)k * COLUMNS + c]);
    return bf16_to_float(((const uint16_t *)tile)[(int64_t)k * COLUMNS + c / 32 * 32 + c % 16 * 2 + c / 16 % 2]);
}

static void float_row(const llmos_product *p, const char *tile, int32_t row, float *sums)
{
    const float *x = (const float *)p->x + row * p->ldx;
    float weights[COLUMNS];
    for (int32_t c = 0; c < COLUMNS; c++)
        sums[c] = 0;
    for (int32_t k = 0; k < p->w->k; k++) {
        for (int32_t c = 0; c < COLUMNS; c++)
            weights[c] = float_weight(p->w, tile, k, c);
        for (int32_t c = 0; c < COLUMNS; c++)
            sums[c] += x[k] * weights[c];
    }
}

static void integer_row(const llmos_product *p, const char *tile, int32_t row, int32_t n0, float *sums)
{
    const llmos_weight *w = p->w;
    const int8_t *x = (const int8_t *)p->x + row * p->ldx;
    const uint8_t *at = (const uint8_t *)tile, *scales = NULL;
    int32_t totals[COLUMNS] = {0};
    for (int32_t k = 0; k < w->k; k += 8) {
        if (w->format == LLMOS_W4A8 && k % GROUP == 0) {
            scales = at;
            at += 2 * COLUMNS;
        }
        for (int32_t c = 0; c < COLUMNS; c++)
            for (int32_t i = 0; i < 8; i++) {
                int32_t weight;
                if (w->format == LLMOS_W8A8)
                    weight = at[i / 4 * 4 * COLUMNS + c * 4 + i % 4];
                else
                    weight = (at[c * 4 + i % 4] >> i / 4 * 4 & 15) * scales[c] + scales[COLUMNS + c];
                totals[c] += weight * x[k + i];
            }
        at += (w->format == LLMOS_W8A8 ? 8 : 4) * COLUMNS;
    }
    for (int32_t c = 0; c < COLUMNS && n0 + c < w->n; c++)
        sums[c] = (float)(totals[c] - 128 * p->xsum[row]) * (w->scale[n0 + c] * p->xscale[row]);
}

static void tile(const llmos_product *p, int32_t n0)
{
    const llmos_weight *w = p->w;
    const char *data = tile_data(w, n0);
    float sums[COLUMNS];
    for (int32_t row = 0; row < p->m; row++) {
        if (w->format == LLMOS_W8A8 || w->format == LLMOS_W4A8)
            integer_row(p, data, row, n0, sums);
        else
            float_row(p, data, row, sums);
        float *y = p->y + row * p->ldy + n0;
        for (int32_t c = 0; c < COLUMNS && n0 + c < w->n; c++) {
            float value = w->bias ? sums[c] + w->bias[n0 + c] : sums[c];
            y[c] = p->accumulate ? y[c] + value : value;
        }
    }
}

static float largest(const float *values, int32_t count)
{
    float best = -INFINITY;
    for (int32_t i = 0; i < count; i++)
        best = values[i] > best ? values[i] : best;
    return best;
}

const llmos_gemm_kernels llmos_gemm_plain = {NULL, tile, largest};
