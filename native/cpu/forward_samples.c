/* From the last hidden states of samples to their tokens. */
#include "_forward.h"

#include <math.h>

enum { RECOUNT_COLUMNS = LLMOS_TILE_COLUMNS };

/* Project samples onto columns of the vocabulary. */
void llmos_forward_project(const forward *f, int32_t item, private_memory *own)
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
void llmos_forward_choose(const forward *f)
{
    const llmos_step *step = f->step;
    for (int32_t i = 0; i < step->num_greedy; i++) {
        float value = -INFINITY;
        llmos_choice choice = {.token = 0};
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

void llmos_forward_draw(const forward *f, int32_t item, private_memory *own)
{
    const llmos_step *step = f->step;
    int32_t n = f->model->head.n;
    llmos_sample(step->logits + (int64_t)item * n, n, step->draws + item, step->choices + step->num_greedy + item,
                 own->kernel);
}
