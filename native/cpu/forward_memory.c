/* Where the numbers of a step lie. */
#include "_forward.h"

#include "_pool.h"
#include "_scores.h"

#include <stddef.h>

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

int64_t llmos_forward_lay_out(forward *f, void *scratch, int32_t num_threads, int32_t num_tokens, int32_t num_samples)
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
    f->surveys = take(&memory, num_samples * (int64_t)llmos_num_segments(model->vocab_size) * 4);
    f->num_bad = take(&memory, parts * 4);
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
    return llmos_forward_lay_out(&f, NULL, llmos_pool_size(pool), num_tokens, num_samples);
}
