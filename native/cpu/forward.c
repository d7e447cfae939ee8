/* A whole step of a Llama-like decoder: phases that a pool of threads works through.
 *
 * Every phase is split over rows, heads or output columns, never over a sum, and every kernel gives a row the
 * same bits whatever rows are beside it: results depend neither on the number of threads nor on company.
 *
 * Few rows: what comes before a product (norm, activation, quantisation) is so cheap that each thread does it
 * for itself, which saves a phase. Many rows: it is a phase of its own.
 */
#include "_forward.h"

#include "_pool.h"
#include "activation.h"

/* Of the phases in the order of llmos_step.busy: a layer's, the last ones, the first, parts of others. */
static const char *const phase_names[LLMOS_NUM_PHASES] = {
    "prepare_qkv", "qkv",          "rotate", "attend",       "prepare_output", "output", "prepare_gate_up",
    "gate_up",     "prepare_down", "down",   "prepare_head", "head",           "sample", "hidden",
    "embed",       "activate",
};

const char *llmos_phase_name(int32_t phase)
{
    return phase_names[phase];
}

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
    if (last == HIDDEN)
        return row_items(step->num_hidden);
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
    case PREPARE_OUTPUT:
    case PREPARE_DOWN:
        if (!llmos_forward_is_quantised(f, kind, layer))
            return 0;
        /* fall through */
    case PREPARE_QKV:
    case PREPARE_GATE_UP:
        return num_tokens <= PRIVATE_ROWS ? 0 : row_items(num_tokens);
    default:
        return llmos_forward_product_items(f, kind, layer);
    }
}

static void run_item(void *context, int32_t phase, int32_t item, int32_t thread)
{
    const forward *f = context;
    const llmos_model *model = f->model;
    const llmos_step *step = f->step;
    private_memory *own = &f->threads[thread];
    int32_t first = item * ROW_BLOCK, last = phase - 1 - model->num_layers * NUM_LAYER_PHASES;
    int32_t num_rows = last == HIDDEN ? step->num_hidden : last >= 0 ? step->num_samples : step->num_tokens;
    int32_t end = num_rows - first < ROW_BLOCK ? num_rows : first + ROW_BLOCK;
    if (phase == 0) {
        llmos_embed(model->embedding, model->embedding_format, model->hidden_size, step->token_ids + first,
                    end - first, f->x + (int64_t)first * model->hidden_size, model->hidden_size);
        return;
    }
    if (last == PREPARE_HEAD) {
        llmos_forward_prepare_samples(f, first, end);
        return;
    }
    if (last == HEAD) {
        llmos_forward_project(f, item, own);
        return;
    }
    if (last == SAMPLE) {
        llmos_forward_draw(f, item, own);
        return;
    }
    if (last == HIDDEN) {
        llmos_forward_tell_hidden(f, first, end);
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
    case QKV:
    case OUTPUT:
    case GATE_UP:
    case DOWN:
        llmos_forward_multiply(f, kind, layer, phase, item, own);
        break;
    default:
        llmos_forward_prepare(f, kind, layer, first, end, input_row(f, f->shared, first));
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
    llmos_forward_lay_out(&f, scratch, num_threads, step->num_tokens, step->num_samples);
    if (step->num_samples > 0)
        f.num_head_items = column_items(&f, &model->head, step->num_samples);
    f.num_attention_items = llmos_attention_items(kv, step->spans, step->num_spans);
    f.attention_block = f.num_attention_items / (num_threads * ATTENTION_ITEMS_PER_THREAD) + 1;
    llmos_job job = {1 + model->num_layers * NUM_LAYER_PHASES + NUM_LAST_PHASES, count_items,
                     step->busy ? run_timed_item : run_item};
    llmos_pool_run(pool, &job, &f, num_threads);
    llmos_forward_choose(&f);
    for (int32_t thread = 0; step->busy && thread < num_threads; thread++)
        for (int32_t phase = 0; phase < LLMOS_NUM_PHASES; phase++)
            step->busy[phase] += f.threads[thread].busy[phase];
}
