/* Products of a layer, and what prepares their inputs. */
#include "_forward.h"

#include "activation.h"
#include "norm.h"
#include "quantise.h"

static const llmos_weight *weight_of(const forward *f, int32_t kind, int32_t layer)
{
    const llmos_layer *at = &f->model->layers[layer];
    switch (kind) {
    case PREPARE_QKV:
    case QKV:
        return &at->qkv;
    case PREPARE_OUTPUT:
    case OUTPUT:
        return &at->output;
    case PREPARE_GATE_UP:
    case GATE_UP:
        return &at->gate_up;
    default:
        return &at->down;
    }
}

/* Quantise rows where the weight wants that. */
static void quantise(const forward *f, const llmos_weight *w, const float *x, int64_t ldx, int32_t m, input to)
{
    if (is_quantised(w))
        llmos_quantise_rows(x, ldx, m, w->k, to.q, f->ld, to.scale, to.sum);
}

/* Normalise rows, to what the weight wants. */
static void normalise(const forward *f, const llmos_weight *w, const float *x, const float *norm, int32_t m, input to)
{
    const llmos_model *model = f->model;
    int32_t hidden = model->hidden_size;
    if (is_quantised(w))
        llmos_rms_norm_int8(x, hidden, norm, model->epsilon, m, hidden, to.q, f->ld, to.scale, to.sum);
    else
        llmos_rms_norm(x, hidden, norm, model->epsilon, m, hidden, to.x, f->ld);
}

void llmos_forward_prepare(const forward *f, int32_t kind, int32_t layer, int32_t t0, int32_t t1, input to)
{
    const llmos_layer *at = &f->model->layers[layer];
    const float *x = f->x + (int64_t)t0 * f->model->hidden_size;
    int32_t m = t1 - t0;
    switch (kind) {
    case PREPARE_QKV:
        normalise(f, &at->qkv, x, at->input_norm, m, to);
        break;
    case PREPARE_GATE_UP:
        normalise(f, &at->gate_up, x, at->post_norm, m, to);
        break;
    case PREPARE_OUTPUT:
        quantise(f, &at->output, f->mixed + t0 * f->mixed_ld, f->mixed_ld, m, to);
        break;
    case PREPARE_DOWN:
        quantise(f, &at->down, f->active + t0 * f->active_ld, f->active_ld, m, to);
        break;
    }
}

void llmos_forward_prepare_samples(const forward *f, int32_t first, int32_t last)
{
    const llmos_model *model = f->model;
    for (int32_t i = first; i < last; i++) {
        const float *x = f->x + (int64_t)f->step->samples[i] * model->hidden_size;
        normalise(f, &model->head, x, model->final_norm, 1, input_row(f, f->shared, i));
    }
}

void llmos_forward_tell_hidden(const forward *f, int32_t first, int32_t last)
{
    const llmos_model *model = f->model;
    int32_t hidden = model->hidden_size;
    for (int32_t i = first; i < last; i++)
        llmos_rms_norm(f->x + (int64_t)f->step->hidden_tokens[i] * hidden, hidden, model->final_norm, model->epsilon, 1,
                       hidden, f->step->hidden + (int64_t)i * hidden, hidden);
}

/* The input of a product of few rows, in the thread's own memory: prepared with the first item that it does. */
static input prepare_own(const forward *f, int32_t kind, int32_t layer, int32_t phase, private_memory *own)
{
    if (own->prepared == phase)
        return own->rows;
    int64_t began = f->step->busy ? now() : 0;
    llmos_forward_prepare(f, kind - 1, layer, 0, f->step->num_tokens, own->rows);
    own->prepared = phase;
    if (f->step->busy) {
        int64_t taken = now() - began;
        own->busy[kind - 1] += taken;
        own->busy[kind] -= taken; /* which the item that this belongs to will count */
    }
    return own->rows;
}

/* Gate columns of an item of gate_up: whole tiles, and few enough for the stripe. */
static int32_t gate_columns(const forward *f, const llmos_weight *w, int32_t m)
{
    int32_t num_tiles = (w->n / 2 + LLMOS_TILE_COLUMNS - 1) / LLMOS_TILE_COLUMNS;
    int32_t most = (int32_t)(STRIPE_BYTES / ((int64_t)m * 2 * LLMOS_TILE_COLUMNS * 4));
    int32_t tiles = item_columns(f, w, m) / (2 * LLMOS_TILE_COLUMNS);
    tiles = tiles < most ? tiles : most;
    tiles = tiles < num_tiles ? tiles : num_tiles;
    return (tiles > 0 ? tiles : 1) * LLMOS_TILE_COLUMNS;
}

static int32_t gate_items(const forward *f, const llmos_weight *w, int32_t m)
{
    int32_t columns = gate_columns(f, w, m);
    return (w->n / 2 + columns - 1) / columns;
}

/* Gates of some columns, the ups that belong to them, and the activation: what lies between never leaves the
 * cache. Tiles that both halves of the weight have a share in are computed for each of them.
 */
static void multiply_gates(const forward *f, int32_t layer, int32_t phase, int32_t item, private_memory *own)
{
    enum { TILE = LLMOS_TILE_COLUMNS };
    const llmos_weight *w = &f->model->layers[layer].gate_up;
    int32_t m = f->step->num_tokens, inner = f->model->intermediate_size, columns = gate_columns(f, w, m);
    int32_t g0 = item * columns, g1 = inner - g0 < columns ? inner : g0 + columns;
    int32_t gate_end = (g1 + TILE - 1) / TILE * TILE, up_end = (inner + g1 + TILE - 1) / TILE * TILE;
    int32_t u0 = (inner + g0) / TILE * TILE;
    gate_end = gate_end < w->n ? gate_end : w->n;
    up_end = up_end < w->n ? up_end : w->n;
    int64_t ld = 2 * columns + TILE;
    float *gate = own->stripe, *up = gate + (gate_end - g0);
    input from = m <= PRIVATE_ROWS ? prepare_own(f, GATE_UP, layer, phase, own) : f->shared;
    const void *x = is_quantised(w) ? (void *)from.q : from.x;
    llmos_gemm(w, x, f->ld, from.scale, from.sum, m, gate - g0, ld, 0, g0, gate_end, own->kernel);
    llmos_gemm(w, x, f->ld, from.scale, from.sum, m, up - u0, ld, 0, u0, up_end, own->kernel);
    int64_t began = f->step->busy ? now() : 0;
    llmos_silu_mul(gate, up + (inner + g0 - u0), ld, m, g1 - g0, f->active + g0, f->active_ld);
    if (f->step->busy) {
        int64_t taken = now() - began;
        own->busy[ACTIVATE] += taken;
        own->busy[GATE_UP] -= taken;
    }
}

/* The other products of a layer. */
static void multiply(const forward *f, int32_t kind, int32_t layer, int32_t phase, int32_t item,
                     private_memory *own)
{
    const llmos_weight *w = weight_of(f, kind, layer);
    int32_t m = f->step->num_tokens, columns = item_columns(f, w, m);
    int32_t n0 = item * columns, n1 = w->n - n0 < columns ? w->n : n0 + columns;
    input from = m <= PRIVATE_ROWS ? prepare_own(f, kind, layer, phase, own) : f->shared;
    const void *x = is_quantised(w) ? (void *)from.q : from.x;
    int64_t ldx = f->ld;
    if (kind != QKV && !is_quantised(w)) {
        x = kind == OUTPUT ? f->mixed : f->active;
        ldx = kind == OUTPUT ? f->mixed_ld : f->active_ld;
    }
    float *y = kind == QKV ? f->qkv : f->x;
    int64_t ldy = kind == QKV ? f->qkv_ld : f->model->hidden_size;
    llmos_gemm(w, x, ldx, from.scale, from.sum, m, y, ldy, kind != QKV, n0, n1, own->kernel);
}

int32_t llmos_forward_product_items(const forward *f, int32_t kind, int32_t layer)
{
    const llmos_weight *w = weight_of(f, kind, layer);
    int32_t m = f->step->num_tokens;
    return kind == GATE_UP ? gate_items(f, w, m) : column_items(f, w, m);
}

void llmos_forward_multiply(const forward *f, int32_t kind, int32_t layer, int32_t phase, int32_t item,
                            private_memory *own)
{
    if (kind == GATE_UP)
        multiply_gates(f, layer, phase, item, own);
    else
        multiply(f, kind, layer, phase, item, own);
}

bool llmos_forward_is_quantised(const forward *f, int32_t kind, int32_t layer)
{
    return is_quantised(weight_of(f, kind, layer));
}
