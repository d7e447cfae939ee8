/* From the last hidden states of samples to their tokens. */
#include "_forward.h"

#include "_scores.h"

#include <math.h>

enum {
    RECOUNT_COLUMNS = LLMOS_TILE_COLUMNS,
    SURVEY_COLUMNS = 512, /* looked at together, right after they were written: of a few rows they are in the cache */
};

_Static_assert(LLMOS_TILE_COLUMNS % LLMOS_SEGMENT == 0, "items begin where segments do");

static int32_t num_drawn(const forward *f)
{
    return f->step->num_samples - f->step->num_greedy;
}

static float *survey_of(const forward *f, int32_t row)
{
    return f->surveys + (int64_t)row * llmos_num_segments(f->model->head.n);
}

/* Logits of the rows that are drawn from, in columns [n0, n1), and what a draw asks of them first. All are written: a
 * weight is relative to the largest logit of the whole row, so that sums cannot begin before that is known.
 */
static void project_drawn(const forward *f, int32_t item, int32_t n0, int32_t n1, private_memory *own)
{
    const llmos_weight *w = &f->model->head;
    int32_t rows = num_drawn(f), *num_bad = f->num_bad + (int64_t)item * rows;
    input from = input_row(f, f->shared, f->step->num_greedy);
    for (int32_t i = 0; i < rows; i++)
        num_bad[i] = 0;
    for (int32_t first = n0; first < n1; first += SURVEY_COLUMNS) {
        int32_t end = n1 - first < SURVEY_COLUMNS ? n1 : first + SURVEY_COLUMNS;
        llmos_gemm(w, is_quantised(w) ? (void *)from.q : from.x, f->ld, from.scale, from.sum, rows, f->step->logits,
                   w->n, 0, first, end, own->kernel);
        for (int32_t i = 0; i < rows; i++)
            num_bad[i] += llmos_survey(f->step->logits + (int64_t)i * w->n + first, end - first,
                                       survey_of(f, i) + first / LLMOS_SEGMENT);
    }
}

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
    if (greedy < step->num_samples)
        project_drawn(f, item, n0, n1, own);
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
    int32_t n = f->model->head.n, num_bad = 0;
    for (int32_t i = 0; i < f->num_head_items; i++)
        num_bad += f->num_bad[(int64_t)i * num_drawn(f) + item];
    llmos_sample_surveyed(step->logits + (int64_t)item * n, n, survey_of(f, item), num_bad, step->draws + item,
                          step->choices + step->num_greedy + item, own->kernel);
}
