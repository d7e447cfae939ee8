/* From one row of logits to a token.
 *
 * Two passes see every logit: a survey finds the largest of each segment, which a step does while it projects the
 * vocabulary; one sums weights segment by segment, and not every draw needs it. After that only segments that can hold
 * a kept token are looked at: cuts are made on a list of candidates, by partition instead of by sorting.
 */
#include "_candidates.h"

#include <float.h>
#include <math.h>
#include <stddef.h>

int64_t llmos_sample_scratch_bytes(int32_t vocab_size)
{
    int64_t num_segments = llmos_num_segments(vocab_size);
    size_t each = LLMOS_SEGMENT * (sizeof(double) + 2 * sizeof(llmos_candidate)) + 2 * sizeof(double) + sizeof(float);
    return num_segments * (int64_t)each;
}

static llmos_sample_memory lay_out(int32_t vocab_size, void *scratch)
{
    int32_t num_segments = llmos_num_segments(vocab_size);
    int64_t padded = (int64_t)num_segments * LLMOS_SEGMENT;
    double *adjusted = scratch, *maxima = adjusted + padded, *sums = maxima + num_segments;
    llmos_candidate *candidates = (llmos_candidate *)(sums + num_segments);
    return (llmos_sample_memory){
        llmos_kernels_now(), num_segments, (float *)(candidates + 2 * padded), adjusted,
        maxima,              sums,         candidates,                         candidates + padded,
        0,
    };
}

/* --- scores ---------------------------------------------------------------------------------------------- */

/* Source: Keskar et al. 2019, "CTRL", arXiv:1909.05858 (repetition penalty). */
static void adjust(const float *logits, int32_t n, const llmos_draw *draw, const llmos_sample_memory *at)
{
    double *scores = at->adjusted;
    int32_t num_known = draw->num_allowed > 0 ? 0 : n;
    for (int32_t i = 0; i < num_known; i++)
        scores[i] = (double)logits[i];
    for (int32_t i = num_known; i < at->num_segments * LLMOS_SEGMENT; i++)
        scores[i] = -INFINITY;
    for (int32_t i = 0; i < draw->num_allowed; i++)
        scores[draw->allowed_ids[i]] = (double)logits[draw->allowed_ids[i]];
    for (int32_t i = 0; i < draw->num_seen; i++) {
        double *score = scores + draw->seen_ids[i];
        *score = *score > 0 ? *score / draw->repetition_penalty : *score * draw->repetition_penalty;
        *score -= draw->frequency_penalty * (double)draw->num_output[i];
        *score -= draw->presence_penalty * (draw->num_output[i] > 0);
    }
    for (int32_t i = 0; i < draw->num_bias; i++)
        scores[draw->bias_ids[i]] += draw->bias_values[i];
    for (int32_t i = 0; i < draw->num_banned; i++)
        scores[draw->banned_ids[i]] = -INFINITY;
}

static double largest_of(const llmos_sample_memory *at)
{
    double largest = at->maxima[0];
    for (int32_t i = 1; i < at->num_segments; i++)
        largest = at->maxima[i] > largest ? at->maxima[i] : largest;
    return largest;
}

/* Fill maxima in from a survey of raw logits; returns the largest. */
static double take_survey(const float *surveyed, llmos_sample_memory *at)
{
    for (int32_t i = 0; i < at->num_segments; i++)
        at->maxima[i] = (double)surveyed[i];
    return largest_of(at);
}

static int32_t lowest_id(const llmos_scores *scores, double score, const llmos_sample_memory *at)
{
    int32_t segment = 0;
    while (at->maxima[segment] != score)
        segment++;
    int32_t id = segment * LLMOS_SEGMENT;
    while (llmos_score_of(scores, id) != score)
        id++;
    return id;
}

/* --- drawing --------------------------------------------------------------------------------------------- */

static double total_weight(const llmos_scores *scores, llmos_weighting by, const llmos_sample_memory *at)
{
    double total = 0.0;
    at->kernels->segment_sums(scores, by, at->sums);
    for (int32_t i = 0; i < at->num_segments; i++)
        total += at->sums[i];
    return total;
}

/* Below the total even where the product rounds up to it: a token of weight 0 is never reached. */
static double target_of(const llmos_draw *draw, double total)
{
    double target = draw->uniform * total;
    return target < total ? target : nextafter(total, 0.0);
}

/* Without cuts: the segment by its sum, the token within it. */
static int32_t draw_from_all(const llmos_scores *scores, llmos_weighting by, const llmos_draw *draw,
                             llmos_sample_memory *at)
{
    double score[LLMOS_SEGMENT], weight[LLMOS_SEGMENT];
    double target = target_of(draw, total_weight(scores, by, at)), reached = 0.0;
    int32_t segment = 0, id = 0;
    while (reached + at->sums[segment] <= target)
        reached += at->sums[segment++];
    at->kernels->weigh_segment(scores, segment, by, score, weight);
    for (int32_t i = 0; i < LLMOS_SEGMENT; i++) {
        if (weight[i] > 0.0)
            id = segment * LLMOS_SEGMENT + i; /* the last such if the sum rounds to less than its segment's */
        reached += weight[i];
        if (reached > target)
            break;
    }
    return id;
}

static void collect_heavy(const llmos_scores *scores, llmos_weighting by, double least_weight, llmos_sample_memory *at)
{
    enum { MARGIN = 1 }; /* so that rounding cannot leave out what is at the limit */
    double least_score = least_weight > 0.0 ? by.largest + (log2(least_weight) - MARGIN) / by.slope : -INFINITY;
    llmos_collect(scores, by, least_score, least_weight, at);
}

/* Source: Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2019, arXiv:1904.09751 (top-p);
 * Nguyen et al. 2024, arXiv:2407.01082 (min-p).
 */
static int32_t draw_token(const llmos_scores *scores, double largest, const llmos_draw *draw, llmos_sample_memory *at)
{
    double slope = 0x1.71547652b82fep+0 / draw->temperature; /* log2(e) */
    llmos_weighting by = {largest, slope <= DBL_MAX ? slope : DBL_MAX}; /* infinity times 0 would be NaN */
    bool has_top_k = draw->top_k > 0 && draw->top_k < scores->n, has_top_p = draw->top_p < 1.0;
    if (!has_top_k && !has_top_p && !(draw->min_p > 0.0))
        return draw_from_all(scores, by, draw, at);
    if (has_top_k) {
        llmos_collect(scores, by, llmos_score_of_rank(scores, draw->top_k, at), 0.0, at);
        llmos_keep_up_to(false, draw->top_k, at);
        if (has_top_p)
            llmos_keep_up_to(true, draw->top_p * llmos_candidates_weight(at), at);
    } else if (has_top_p) {
        /* few tokens hold most of the weight as a rule: take more only where they do not */
        static const double least_weights[] = {0x1p-6, 0x1p-10, 0x1p-14, 0x1p-20, 0.0};
        double goal = draw->top_p * total_weight(scores, by, at);
        int32_t i = 0;
        do
            collect_heavy(scores, by, least_weights[i], at);
        while (least_weights[i++] > 0.0 && llmos_candidates_weight(at) < goal);
        llmos_keep_up_to(true, goal, at);
    } else {
        collect_heavy(scores, by, draw->min_p, at);
    }
    for (int32_t i = 0; i < at->num_candidates; i++)
        if (at->candidates[i].weight < draw->min_p)
            at->candidates[i].weight = 0.0;
    return llmos_draw_candidate(draw->uniform, at);
}

/* Log-probabilities of raw logits. */
static void write_logprobs(const llmos_scores *raw, double largest, const llmos_draw *draw, llmos_choice *choice,
                           llmos_sample_memory *at)
{
    llmos_weighting by = {largest, 0x1.71547652b82fep+0};
    double log_total = log(total_weight(raw, by, at));
    choice->logprob = (double)raw->raw[choice->token] - largest - log_total;
    choice->num_top = draw->num_top;
    if (draw->num_top == 0)
        return;
    llmos_collect(raw, by, llmos_score_of_rank(raw, draw->num_top, at), 0.0, at);
    llmos_cut_at(at->candidates, at->num_candidates, false, draw->num_top);
    llmos_sort_few(at->candidates, draw->num_top);
    for (int32_t i = 0; i < draw->num_top; i++) {
        draw->top_ids[i] = at->candidates[i].id;
        draw->top_logprobs[i] = at->candidates[i].score - largest - log_total;
    }
}

/* Of a token that is there already: its log-probability and its rank. */
static void assess(const llmos_scores *raw, double largest, const llmos_draw *draw, llmos_choice *choice,
                   llmos_sample_memory *at)
{
    choice->token = draw->given;
    choice->rank = 1;
    for (int32_t i = 0; i < raw->n; i++)
        choice->rank += raw->raw[i] > raw->raw[draw->given];
    write_logprobs(raw, largest, draw, choice, at);
}

int32_t llmos_survey(const float *logits, int32_t n, float *surveyed)
{
    return llmos_kernels_now()->survey(logits, n, surveyed);
}

void llmos_sample(const float *logits, int32_t vocab_size, const llmos_draw *draw, llmos_choice *choice, void *scratch)
{
    float *surveyed = lay_out(vocab_size, scratch).surveyed;
    int32_t num_bad = llmos_survey(logits, vocab_size, surveyed);
    llmos_sample_surveyed(logits, vocab_size, surveyed, num_bad, draw, choice, scratch);
}

void llmos_sample_surveyed(const float *logits, int32_t vocab_size, const float *surveyed, int32_t num_bad,
                           const llmos_draw *draw, llmos_choice *choice, void *scratch)
{
    llmos_sample_memory at = lay_out(vocab_size, scratch);
    llmos_scores raw = {logits, NULL, vocab_size}, scores = raw;
    *choice = (llmos_choice){.token = -1, .num_bad = num_bad};
    if (num_bad > 0)
        return;
    double largest = take_survey(surveyed, &at);
    if (draw->given >= 0) {
        assess(&raw, largest, draw, choice, &at);
        return;
    }
    if (draw->num_seen > 0 || draw->num_bias > 0 || draw->num_banned > 0 || draw->num_allowed > 0) {
        adjust(logits, vocab_size, draw, &at);
        scores.adjusted = at.adjusted;
        at.kernels->segment_maxima(&scores, at.maxima);
        largest = largest_of(&at);
    }
    if (!(largest > -INFINITY))
        return;
    if (draw->by_cuts) {
        llmos_draw_by_cuts(&scores, largest, draw, choice, &at);
        if (draw->is_processed)
            return;
    } else if (draw->temperature > 0.0) {
        choice->token = draw_token(&scores, largest, draw, &at);
    } else {
        choice->token = lowest_id(&scores, largest, &at);
    }
    if (draw->num_top >= 0)
        write_logprobs(&raw, take_survey(surveyed, &at), draw, choice, &at);
}
