/* A whole step of a Llama-like decoder: phases that a pool of threads works through.
 *
 * Every phase is split over rows, heads or output columns, never over a sum, and every kernel gives a row the
 * same bits whatever rows are beside it: results depend neither on the number of threads nor on company.
 *
 * Few rows: what comes before a product (norm, activation, quantisation) is so cheap that each thread does it
 * for itself, which saves a phase. Many rows: it is a phase of its own.
 */
#include "forward.h"

#include "_pool.h"
#include "activation.h"
#include "gemm.h"
#include "norm.h"
#include "quantise.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

enum {
    ALIGNMENT = 64,
    PRIVATE_ROWS = 8,        /* up to so many rows, each thread prepares them for itself */
    ROW_BLOCK = 8,           /* rows of an item, where rows are what is split */
    ROTATE_BLOCK = 32,       /* the same where a prompt's keys are written */
    ITEM_BYTES = 64 << 10,   /* of weights: an item reads more, so that handing it out costs nothing */
    ITEMS_PER_THREAD = 4,    /* so that a thread which is taken off its core does not hold up the others */
    ATTENTION_ITEMS_PER_THREAD = 16,
    STRIPE_BYTES = 256 << 10, /* of gates and ups of an item: they stay in the second-level cache */
    LONE_BYTES = 1 << 20,    /* a step whose rows read fewer bytes of weights runs on one thread */
    RECOUNT_COLUMNS = LLMOS_TILE_COLUMNS,
};

/* The phases of a layer. */
enum {
    PREPARE_QKV,
    QKV,
    ROTATE,
    ATTEND,
    PREPARE_OUTPUT,
    OUTPUT,
    PREPARE_GATE_UP,
    GATE_UP,
    PREPARE_DOWN,
    DOWN,
    NUM_LAYER_PHASES
};

/* The others, counted from behind the last layer's; the very first phase looks the embeddings up. */
enum { PREPARE_HEAD, HEAD, SAMPLE, NUM_LAST_PHASES };

/* Parts of other phases that are timed apart. */
enum { ACTIVATE = LLMOS_NUM_PHASES - 1 };

/* The same in the order of llmos_step.busy: a layer's, the last ones, the first, parts. */
static const char *const phase_names[LLMOS_NUM_PHASES] = {
    "prepare_qkv", "qkv",          "rotate", "attend",       "prepare_output", "output", "prepare_gate_up",
    "gate_up",     "prepare_down", "down",   "prepare_head", "head",           "sample", "embed",
    "activate",
};

const char *llmos_phase_name(int32_t phase)
{
    return phase_names[phase];
}

/* Activations as a product takes them: x fp32, or int8 with a scale and a sum for each row. */
typedef struct {
    float *x;
    int8_t *q;
    float *scale;
    int32_t *sum;
} input;

/* A thread's own scratch. */
typedef struct {
    int32_t prepared; /* the phase whose input is in `rows`, or -1 */
    input rows;       /* [PRIVATE_ROWS] */
    float *stripe;    /* gates and ups of an item, [num_tokens] */
    void *kernel;
    int64_t busy[LLMOS_NUM_PHASES];
} private_memory;

typedef struct {
    const llmos_model *model;
    const llmos_kv *kv;
    const llmos_step *step;
    int32_t num_threads;
    int64_t kv_layer_bytes;
    int64_t ld;      /* of inputs: the widest of any product, padded; float and int8 alike */
    int64_t qkv_ld;
    int64_t mixed_ld;
    int64_t active_ld;
    float *x;        /* [num_tokens][hidden_size] the residual stream */
    float *qkv;      /* [num_tokens][qkv_ld] */
    float *mixed;    /* [num_tokens][mixed_ld] what attention gives */
    float *active;   /* [num_tokens][active_ld] silu(gate) * up */
    input shared;    /* [num_tokens or num_samples][ld] */
    int32_t num_attention_items;
    int32_t attention_block; /* of those, in an item of ours */
    int32_t num_head_items;
    float *values;   /* [num_head_items][num_greedy] the largest logit of the item's columns, */
    int32_t *ids;    /* and its column */
    private_memory *threads;
} forward;

/* --- memory ---------------------------------------------------------------------------------------------- */

/* Takes from a block of memory, or, without one, only counts. */
typedef struct {
    char *base;
    int64_t used;
} block;

static void *take(block *from, int64_t size)
{
    void *at = from->base == NULL ? NULL : from->base + from->used;
    from->used += (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

/* A row length whose rows do not all fall into the same sets of a cache. */
static int64_t padded(int64_t columns)
{
    int64_t ld = (columns + 63) & ~(int64_t)63;
    return ld % 256 == 0 ? ld + 16 : ld;
}

static input take_input(block *from, int64_t rows, int64_t ld)
{
    return (input){take(from, rows * ld * 4), take(from, rows * ld), take(from, rows * 4), take(from, rows * 4)};
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t qkv_columns(const llmos_kv *kv)
{
    return ((int64_t)kv->num_heads + 2 * kv->num_kv_heads) * kv->head_dim;
}

static int64_t mixed_columns(const llmos_kv *kv)
{
    return (int64_t)kv->num_heads * kv->head_dim;
}

static int64_t kernel_scratch_bytes(const llmos_model *model, const llmos_kv *kv, int32_t num_tokens,
                                    int32_t num_samples)
{
    int64_t size = llmos_attention_scratch_bytes(kv);
    for (int32_t i = 0; i < model->num_layers; i++) {
        const llmos_layer *layer = &model->layers[i];
        size = larger(size, llmos_gemm_scratch_bytes(&layer->qkv, num_tokens));
        size = larger(size, llmos_gemm_scratch_bytes(&layer->output, num_tokens));
        size = larger(size, llmos_gemm_scratch_bytes(&layer->gate_up, num_tokens));
        size = larger(size, llmos_gemm_scratch_bytes(&layer->down, num_tokens));
    }
    if (num_samples > 0)
        size = larger(size, llmos_sample_scratch_bytes(model->vocab_size));
    return larger(size, llmos_gemm_scratch_bytes(&model->head, num_samples));
}

static int32_t column_items(const forward *f, const llmos_weight *w, int32_t m);

static int64_t lay_out(forward *f, void *scratch, int32_t num_threads, int32_t num_tokens, int32_t num_samples)
{
    const llmos_model *model = f->model;
    block memory = {scratch, 0};
    int64_t rows = larger(num_tokens, num_samples);
    f->num_threads = num_threads;
    f->qkv_ld = padded(qkv_columns(f->kv));
    f->mixed_ld = padded(mixed_columns(f->kv));
    f->active_ld = padded(model->intermediate_size);
    f->ld = padded(larger(larger(model->hidden_size, model->intermediate_size), mixed_columns(f->kv)));
    f->x = take(&memory, (int64_t)num_tokens * model->hidden_size * 4);
    f->qkv = take(&memory, num_tokens * f->qkv_ld * 4);
    f->mixed = take(&memory, num_tokens * f->mixed_ld * 4);
    f->active = take(&memory, num_tokens * f->active_ld * 4);
    f->shared = take_input(&memory, rows, f->ld);
    f->num_head_items = column_items(f, &model->head, 8); /* as many as there ever are */
    int64_t parts = (int64_t)f->num_head_items * num_samples;
    f->values = take(&memory, parts * 4);
    f->ids = take(&memory, parts * 4);
    f->threads = take(&memory, num_threads * (int64_t)sizeof *f->threads);
    for (int32_t i = 0; i < num_threads; i++) {
        private_memory own = {-1, take_input(&memory, PRIVATE_ROWS, f->ld), NULL, NULL, {0}};
        own.stripe = take(&memory, STRIPE_BYTES + (int64_t)num_tokens * 3 * LLMOS_TILE_COLUMNS * 4);
        own.kernel = take(&memory, kernel_scratch_bytes(model, f->kv, num_tokens, num_samples));
        if (scratch != NULL)
            f->threads[i] = own;
    }
    return memory.used;
}

int64_t llmos_forward_scratch_bytes(const llmos_pool *pool, const llmos_model *model, const llmos_kv *kv,
                                    int32_t num_tokens, int32_t num_samples)
{
    forward f = {.model = model, .kv = kv};
    return lay_out(&f, NULL, llmos_pool_size(pool), num_tokens, num_samples);
}

/* --- preparing the inputs of products -------------------------------------------------------------------- */

static bool is_quantised(const llmos_weight *w)
{
    return w->format == LLMOS_W8A8 || w->format == LLMOS_W4A8;
}

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

static input input_row(const forward *f, input from, int32_t row)
{
    return (input){from.x + row * f->ld, from.q + row * f->ld, from.scale + row, from.sum + row};
}

/* Prepare tokens [t0, t1) for a product of a layer, at the first rows of `to`. */
static void prepare(const forward *f, int32_t kind, int32_t layer, int32_t t0, int32_t t1, input to)
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

static void prepare_samples(const forward *f, int32_t first, int32_t last)
{
    const llmos_model *model = f->model;
    for (int32_t i = first; i < last; i++) {
        const float *x = f->x + (int64_t)f->step->samples[i] * model->hidden_size;
        normalise(f, &model->head, x, model->final_norm, 1, input_row(f, f->shared, i));
    }
}

/* --- products -------------------------------------------------------------------------------------------- */

/* Columns of an item of a product with m rows: whole tiles. */
static int32_t item_columns(const forward *f, const llmos_weight *w, int32_t m)
{
    int32_t num_tiles = (w->n + LLMOS_TILE_COLUMNS - 1) / LLMOS_TILE_COLUMNS;
    if (f->num_threads == 1)
        return num_tiles * LLMOS_TILE_COLUMNS;
    int64_t tile_bytes = llmos_packed_bytes(w->format, LLMOS_TILE_COLUMNS, w->k) * (m < 8 ? m : 8);
    int32_t least = (int32_t)((ITEM_BYTES + tile_bytes - 1) / tile_bytes);
    int32_t tiles = num_tiles / (f->num_threads * ITEMS_PER_THREAD);
    tiles = tiles > least ? tiles : least;
    return tiles * LLMOS_TILE_COLUMNS;
}

static int32_t column_items(const forward *f, const llmos_weight *w, int32_t m)
{
    int32_t columns = item_columns(f, w, m);
    return (w->n + columns - 1) / columns;
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* The input of a product of few rows, in the thread's own memory: prepared with the first item that it does. */
static input prepare_own(const forward *f, int32_t kind, int32_t layer, int32_t phase, private_memory *own)
{
    if (own->prepared == phase)
        return own->rows;
    int64_t began = f->step->busy ? now() : 0;
    prepare(f, kind - 1, layer, 0, f->step->num_tokens, own->rows);
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

/* Project samples onto columns of the vocabulary. */
static void project(const forward *f, int32_t item, private_memory *own)
{
    const llmos_step *step = f->step;
    const llmos_weight *w = &f->model->head;
    int32_t columns = item_columns(f, w, step->num_samples), greedy = step->num_greedy;
    int32_t n0 = item * columns, n1 = w->n - n0 < columns ? w->n : n0 + columns;
    int64_t part = (int64_t)item * greedy;
    input from = f->shared;
    if (greedy > 0)
        llmos_gemm_argmax(w, is_quantised(w) ? (void *)from.q : from.x, f->ld, from.scale, from.sum, greedy, n0, n1,
                          f->values + part, f->ids + part, own->kernel);
    if (greedy == step->num_samples)
        return;
    from = input_row(f, from, greedy);
    llmos_gemm(w, is_quantised(w) ? (void *)from.q : from.x, f->ld, from.scale, from.sum, step->num_samples - greedy,
               step->logits, w->n, 0, n0, n1, own->kernel);
}

static bool is_finite(const forward *f, int32_t sample)
{
    input row = input_row(f, f->shared, sample);
    if (is_quantised(&f->model->head))
        return isfinite(*row.scale);
    float zero = 0.0f;
    for (int32_t i = 0; i < f->model->hidden_size; i++)
        zero += row.x[i] * 0.0f; /* NaN for infinities too */
    return zero == 0.0f;
}

/* How many logits of a greedy sample are not finite: they were never written, so compute them again. */
static int32_t count_bad(const forward *f, int32_t sample)
{
    const llmos_weight *w = &f->model->head;
    input row = input_row(f, f->shared, sample);
    float logits[RECOUNT_COLUMNS];
    int32_t num_bad = 0;
    for (int32_t n0 = 0; n0 < w->n; n0 += RECOUNT_COLUMNS) {
        int32_t n1 = w->n - n0 < RECOUNT_COLUMNS ? w->n : n0 + RECOUNT_COLUMNS;
        llmos_gemm(w, is_quantised(w) ? (void *)row.q : row.x, f->ld, row.scale, row.sum, 1, logits - n0, w->n, 0, n0,
                   n1, f->threads[0].kernel);
        for (int32_t j = 0; j < n1 - n0; j++)
            num_bad += !isfinite(logits[j]);
    }
    return num_bad;
}

/* The choices of greedy samples, from what the items found. */
static void choose(const forward *f)
{
    const llmos_step *step = f->step;
    for (int32_t i = 0; i < step->num_greedy; i++) {
        float value = -INFINITY;
        llmos_choice choice = {0, 0, 0.0};
        for (int32_t item = 0; item < f->num_head_items; item++) {
            int64_t part = (int64_t)item * step->num_greedy + i;
            if (f->values[part] > value) { /* items ascend, so of equals the lowest id stays */
                value = f->values[part];
                choice.token = f->ids[part];
            }
        }
        if (!(isfinite(value) && is_finite(f, i)))
            choice.num_bad = count_bad(f, i);
        step->choices[i] = choice;
    }
}

static void draw(const forward *f, int32_t item, private_memory *own)
{
    const llmos_step *step = f->step;
    int32_t n = f->model->head.n;
    llmos_sample(step->logits + (int64_t)item * n, n, step->draws + item, step->choices + step->num_greedy + item,
                 own->kernel);
}

/* --- the job --------------------------------------------------------------------------------------------- */

static int32_t row_items(int32_t num_rows)
{
    return (num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
}

/* Tokens of a prompt lie in tiles of 16, a number of each in one cache line: two threads must not share a tile. */
static int32_t rotate_block(int32_t num_tokens)
{
    return num_tokens < 4 * ROTATE_BLOCK ? ROW_BLOCK : ROTATE_BLOCK;
}

static llmos_kv kv_of_layer(const forward *f, int32_t layer)
{
    llmos_kv kv = *f->kv;
    kv.keys = (char *)kv.keys + layer * f->kv_layer_bytes;
    kv.values = (char *)kv.values + layer * f->kv_layer_bytes;
    return kv;
}

static int32_t count_items(void *context, int32_t phase)
{
    const forward *f = context;
    const llmos_step *step = f->step;
    int32_t num_tokens = step->num_tokens, last = phase - 1 - f->model->num_layers * NUM_LAYER_PHASES;
    if (phase == 0)
        return row_items(num_tokens);
    if (last >= 0) {
        if (step->num_samples == 0)
            return 0;
        if (last == SAMPLE)
            return step->num_samples - step->num_greedy;
        return last == PREPARE_HEAD ? row_items(step->num_samples) : f->num_head_items;
    }
    int32_t layer = (phase - 1) / NUM_LAYER_PHASES, kind = (phase - 1) % NUM_LAYER_PHASES;
    switch (kind) {
    case ROTATE:
        return (num_tokens + rotate_block(num_tokens) - 1) / rotate_block(num_tokens);
    case ATTEND:
        return (f->num_attention_items + f->attention_block - 1) / f->attention_block;
    case GATE_UP:
        return gate_items(f, weight_of(f, kind, layer), num_tokens);
    case PREPARE_OUTPUT:
    case PREPARE_DOWN:
        if (!is_quantised(weight_of(f, kind, layer)))
            return 0;
        /* fall through */
    case PREPARE_QKV:
    case PREPARE_GATE_UP:
        return num_tokens <= PRIVATE_ROWS ? 0 : row_items(num_tokens);
    default:
        return column_items(f, weight_of(f, kind, layer), num_tokens);
    }
}

static void run_item(void *context, int32_t phase, int32_t item, int32_t thread)
{
    const forward *f = context;
    const llmos_model *model = f->model;
    const llmos_step *step = f->step;
    private_memory *own = &f->threads[thread];
    int32_t first = item * ROW_BLOCK, last = phase - 1 - model->num_layers * NUM_LAYER_PHASES;
    int32_t num_rows = last >= 0 ? step->num_samples : step->num_tokens;
    int32_t end = num_rows - first < ROW_BLOCK ? num_rows : first + ROW_BLOCK;
    if (phase == 0) {
        llmos_embed(model->embedding, model->embedding_format, model->hidden_size, step->token_ids + first,
                    end - first, f->x + (int64_t)first * model->hidden_size, model->hidden_size);
        return;
    }
    if (last == PREPARE_HEAD) {
        prepare_samples(f, first, end);
        return;
    }
    if (last == HEAD) {
        project(f, item, own);
        return;
    }
    if (last == SAMPLE) {
        draw(f, item, own);
        return;
    }
    int32_t layer = (phase - 1) / NUM_LAYER_PHASES, kind = (phase - 1) % NUM_LAYER_PHASES;
    llmos_kv kv = kv_of_layer(f, layer);
    switch (kind) {
    case ROTATE: {
        first = item * rotate_block(num_rows);
        end = num_rows - first < rotate_block(num_rows) ? num_rows : first + rotate_block(num_rows);
        llmos_rope rope = {model->cosines, model->sines, model->layers[layer].q_norm, model->layers[layer].k_norm,
                           model->epsilon};
        llmos_rope_write_kv(&kv, &rope, step->spans, step->num_spans, step->page_table, f->qkv, f->qkv_ld, first, end);
        break;
    }
    case ATTEND: {
        int32_t i0 = item * f->attention_block, left = f->num_attention_items - i0;
        int32_t i1 = i0 + (left < f->attention_block ? left : f->attention_block);
        llmos_attention(&kv, step->spans, step->num_spans, step->page_table, f->qkv, f->qkv_ld, f->mixed, f->mixed_ld,
                        i0, i1, own->kernel);
        break;
    }
    case GATE_UP:
        multiply_gates(f, layer, phase, item, own);
        break;
    case QKV:
    case OUTPUT:
    case DOWN:
        multiply(f, kind, layer, phase, item, own);
        break;
    default:
        prepare(f, kind, layer, first, end, input_row(f, f->shared, first));
    }
}

/* run_item for a step that wants to know where its time goes. */
static void run_timed_item(void *context, int32_t phase, int32_t item, int32_t thread)
{
    const forward *f = context;
    int32_t last = phase - 1 - f->model->num_layers * NUM_LAYER_PHASES;
    int32_t kind = phase == 0  ? NUM_LAYER_PHASES + NUM_LAST_PHASES
                   : last >= 0 ? NUM_LAYER_PHASES + last
                               : (phase - 1) % NUM_LAYER_PHASES;
    int64_t began = now();
    run_item(context, phase, item, thread);
    f->threads[thread].busy[kind] += now() - began;
}

void llmos_forward(llmos_pool *pool, const llmos_model *model, const llmos_kv *kv, const llmos_step *step,
                   void *scratch)
{
    forward f = {.model = model, .kv = kv, .step = step, .kv_layer_bytes = llmos_kv_layer_bytes(kv)};
    int32_t rows = step->num_tokens < 8 ? step->num_tokens : 8;
    int32_t num_threads = model->weight_bytes * rows < LONE_BYTES ? 1 : llmos_pool_size(pool);
    lay_out(&f, scratch, num_threads, step->num_tokens, step->num_samples);
    if (step->num_samples > 0)
        f.num_head_items = column_items(&f, &model->head, step->num_samples);
    f.num_attention_items = llmos_attention_items(kv, step->spans, step->num_spans);
    f.attention_block = f.num_attention_items / (num_threads * ATTENTION_ITEMS_PER_THREAD) + 1;
    llmos_job job = {1 + model->num_layers * NUM_LAYER_PHASES + NUM_LAST_PHASES, count_items,
                     step->busy ? run_timed_item : run_item};
    llmos_pool_run(pool, &job, &f, num_threads);
    choose(&f);
    for (int32_t thread = 0; step->busy && thread < num_threads; thread++)
        for (int32_t phase = 0; phase < LLMOS_NUM_PHASES; phase++)
            step->busy[phase] += f.threads[thread].busy[phase];
}
