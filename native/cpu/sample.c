/* From one row of logits to a token.
 *
 * Two passes see every logit: one finds the largest of each segment, one sums weights segment by segment, and not
 * every draw needs the second. After that only segments that can hold a kept token are looked at: cuts are made
 * on a list of candidates, by partition instead of by sorting.
 */
#include "sample.h"

#include "_kernels.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* A token that may be kept, or a segment and its largest score. */
typedef struct {
    double score;
    double weight;
    int32_t id;
} candidate;

typedef struct {
    const llmos_kernels *kernels;
    int32_t num_segments;
    double *adjusted;      /* [num_segments][LLMOS_SEGMENT] */
    double *maxima;        /* [num_segments] */
    double *sums;          /* [num_segments] */
    candidate *candidates; /* [num_segments][LLMOS_SEGMENT], ids ascend */
    candidate *order;      /* a copy that may be permuted */
    int32_t num_candidates;
} memory;

static int32_t segments_of(int32_t vocab_size)
{
    return (vocab_size + LLMOS_SEGMENT - 1) / LLMOS_SEGMENT;
}

int64_t llmos_sample_scratch_bytes(int32_t vocab_size)
{
    int64_t num_segments = segments_of(vocab_size);
    return num_segments * (int64_t)(LLMOS_SEGMENT * (sizeof(double) + 2 * sizeof(candidate)) + 2 * sizeof(double));
}

static memory lay_out(int32_t vocab_size, void *scratch)
{
    int32_t num_segments = segments_of(vocab_size);
    int64_t padded = (int64_t)num_segments * LLMOS_SEGMENT;
    double *adjusted = scratch, *maxima = adjusted + padded, *sums = maxima + num_segments;
    candidate *candidates = (candidate *)(sums + num_segments);
    return (memory){llmos_kernels_now(), num_segments, adjusted, maxima, sums, candidates, candidates + padded, 0};
}

/* --- scores ---------------------------------------------------------------------------------------------- */

/* Source: Keskar et al. 2019, "CTRL", arXiv:1909.05858 (repetition penalty). */
static void adjust(const float *logits, int32_t n, const llmos_draw *draw, const memory *at)
{
    double *scores = at->adjusted;
    for (int32_t i = 0; i < n; i++)
        scores[i] = (double)logits[i];
    for (int32_t i = n; i < at->num_segments * LLMOS_SEGMENT; i++)
        scores[i] = -INFINITY;
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

static double score_of(const llmos_scores *scores, int32_t id)
{
    return scores->adjusted != NULL ? scores->adjusted[id] : (double)scores->raw[id];
}

/* Fill maxima in; returns the largest score. */
static double survey(const llmos_scores *scores, memory *at)
{
    at->kernels->segment_maxima(scores, at->maxima);
    double largest = at->maxima[0];
    for (int32_t i = 1; i < at->num_segments; i++)
        largest = at->maxima[i] > largest ? at->maxima[i] : largest;
    return largest;
}

static int32_t lowest_id(const llmos_scores *scores, double score, const memory *at)
{
    int32_t segment = 0;
    while (at->maxima[segment] != score)
        segment++;
    int32_t id = segment * LLMOS_SEGMENT;
    while (score_of(scores, id) != score)
        id++;
    return id;
}

/* --- candidates ------------------------------------------------------------------------------------------ */

/* The order of tokens: largest score first, lowest id first among equals. */
static bool is_before(const candidate *a, const candidate *b)
{
    return a->score > b->score || (a->score == b->score && a->id < b->id);
}

static void swap(candidate *a, candidate *b)
{
    candidate c = *a;
    *a = *b;
    *b = c;
}

static void sort_few(candidate *of, int32_t count)
{
    for (int32_t i = 1; i < count; i++)
        for (int32_t j = i; j > 0 && is_before(of + j, of + j - 1); j--)
            swap(of + j, of + j - 1);
}

/* Move the candidate at `pivot` to where it belongs in the order; those before it go before it. */
static int32_t partition(candidate *of, int32_t first, int32_t last, int32_t pivot)
{
    int32_t place = first;
    swap(of + pivot, of + last - 1);
    for (int32_t i = first; i < last - 1; i++)
        if (is_before(of + i, of + last - 1))
            swap(of + i, of + place++);
    swap(of + place, of + last - 1);
    return place;
}

/* The candidate at which the running sum in the order reaches a goal: of weights, or of ones. The last one if none
 * does. Those before it end up at the front.
 */
static candidate cut_at(candidate *of, int32_t count, bool by_weight, double goal)
{
    enum { FEW = 16 };
    int32_t first = 0, last = count;
    uint32_t random = 1; /* so that no order of candidates is a bad one throughout */
    double reached = 0.0;
    while (last - first > FEW) {
        random = random * 1664525u + 1013904223u;
        int32_t place = partition(of, first, last, first + (int32_t)((uint64_t)random * (uint32_t)(last - first) >> 32));
        double before = 0.0;
        for (int32_t i = first; i < place; i++)
            before += by_weight ? of[i].weight : 1.0;
        if (reached + before >= goal) {
            last = place;
            continue;
        }
        reached += before;
        reached += by_weight ? of[place].weight : 1.0;
        first = place + 1;
        if (reached >= goal)
            return of[place];
    }
    sort_few(of + first, last - first);
    for (; first < last; first++) {
        reached += by_weight ? of[first].weight : 1.0;
        if (reached >= goal)
            return of[first];
    }
    return of[last < count ? last : count - 1];
}

/* The count-th largest of the segments' maxima: at least so many tokens have that score or a larger one. */
static double score_of_rank(int32_t count, memory *at)
{
    if (count > at->num_segments)
        return -INFINITY;
    for (int32_t i = 0; i < at->num_segments; i++)
        at->order[i] = (candidate){at->maxima[i], 0.0, i};
    return cut_at(at->order, at->num_segments, false, count).score;
}

/* List the tokens with such scores and weights. */
static void collect(const llmos_scores *scores, llmos_weighting by, double least_score, double least_weight, memory *at)
{
    double score[LLMOS_SEGMENT], weight[LLMOS_SEGMENT];
    int32_t count = 0;
    for (int32_t segment = 0; segment < at->num_segments; segment++) {
        if (at->maxima[segment] < least_score)
            continue;
        int32_t first = segment * LLMOS_SEGMENT, left = scores->n - first;
        at->kernels->weigh_segment(scores, segment, by, score, weight);
        for (int32_t i = 0; i < LLMOS_SEGMENT && i < left; i++)
            if (score[i] >= least_score && weight[i] >= least_weight)
                at->candidates[count++] = (candidate){score[i], weight[i], first + i};
    }
    at->num_candidates = count;
}

static void collect_heavy(const llmos_scores *scores, llmos_weighting by, double least_weight, memory *at)
{
    enum { MARGIN = 1 }; /* so that rounding cannot leave out what is at the limit */
    double least_score = least_weight > 0.0 ? by.largest + (log2(least_weight) - MARGIN) / by.slope : -INFINITY;
    collect(scores, by, least_score, least_weight, at);
}

/* Keep those up to where the running sum reaches a goal. */
static void keep_up_to(bool by_weight, double goal, memory *at)
{
    memcpy(at->order, at->candidates, (size_t)at->num_candidates * sizeof *at->order);
    candidate last = cut_at(at->order, at->num_candidates, by_weight, goal);
    int32_t count = 0;
    for (int32_t i = 0; i < at->num_candidates; i++)
        if (!is_before(&last, at->candidates + i))
            at->candidates[count++] = at->candidates[i];
    at->num_candidates = count;
}

static double candidates_weight(const memory *at)
{
    double total = 0.0;
    for (int32_t i = 0; i < at->num_candidates; i++)
        total += at->candidates[i].weight;
    return total;
}

/* --- drawing --------------------------------------------------------------------------------------------- */

static double total_weight(const llmos_scores *scores, llmos_weighting by, const memory *at)
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
static int32_t draw_from_all(const llmos_scores *scores, llmos_weighting by, const llmos_draw *draw, memory *at)
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

/* Source: Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2019, arXiv:1904.09751 (top-p);
 * Nguyen et al. 2024, arXiv:2407.01082 (min-p).
 */
static int32_t draw_token(const llmos_scores *scores, double largest, const llmos_draw *draw, memory *at)
{
    double slope = 0x1.71547652b82fep+0 / draw->temperature; /* log2(e) */
    llmos_weighting by = {largest, slope <= DBL_MAX ? slope : DBL_MAX}; /* infinity times 0 would be NaN */
    bool has_top_k = draw->top_k > 0 && draw->top_k < scores->n, has_top_p = draw->top_p < 1.0;
    if (!has_top_k && !has_top_p && !(draw->min_p > 0.0))
        return draw_from_all(scores, by, draw, at);
    if (has_top_k) {
        collect(scores, by, score_of_rank(draw->top_k, at), 0.0, at);
        keep_up_to(false, draw->top_k, at);
        if (has_top_p)
            keep_up_to(true, draw->top_p * candidates_weight(at), at);
    } else if (has_top_p) {
        /* few tokens hold most of the weight as a rule: take more only where they do not */
        static const double least_weights[] = {0x1p-6, 0x1p-10, 0x1p-14, 0x1p-20, 0.0};
        double goal = draw->top_p * total_weight(scores, by, at);
        int32_t i = 0;
        do
            collect_heavy(scores, by, least_weights[i], at);
        while (least_weights[i++] > 0.0 && candidates_weight(at) < goal);
        keep_up_to(true, goal, at);
    } else {
        collect_heavy(scores, by, draw->min_p, at);
    }
    double total = 0.0, reached = 0.0;
    for (int32_t i = 0; i < at->num_candidates; i++) {
        if (at->candidates[i].weight < draw->min_p)
            at->candidates[i].weight = 0.0;
        total += at->candidates[i].weight;
    }
    double target = target_of(draw, total);
    int32_t i = 0;
    while ((reached += at->candidates[i].weight) <= target)
        i++;
    return at->candidates[i].id;
}

/* Log-probabilities of raw logits. */
static void write_logprobs(const llmos_scores *raw, double largest, const llmos_draw *draw, llmos_choice *choice,
                           memory *at)
{
    llmos_weighting by = {largest, 0x1.71547652b82fep+0};
    double log_total = log(total_weight(raw, by, at));
    choice->logprob = (double)raw->raw[choice->token] - largest - log_total;
    if (draw->num_top == 0)
        return;
    collect(raw, by, score_of_rank(draw->num_top, at), 0.0, at);
    cut_at(at->candidates, at->num_candidates, false, draw->num_top);
    sort_few(at->candidates, draw->num_top);
    for (int32_t i = 0; i < draw->num_top; i++) {
        draw->top_ids[i] = at->candidates[i].id;
        draw->top_logprobs[i] = at->candidates[i].score - largest - log_total;
    }
}

void llmos_sample(const float *logits, int32_t vocab_size, const llmos_draw *draw, llmos_choice *choice, void *scratch)
{
    memory at = lay_out(vocab_size, scratch);
    llmos_scores raw = {logits, NULL, vocab_size}, scores = raw;
    *choice = (llmos_choice){-1, at.kernels->count_not_finite(logits, vocab_size), 0.0};
    if (choice->num_bad > 0)
        return;
    if (draw->num_seen > 0 || draw->num_bias > 0 || draw->num_banned > 0) {
        adjust(logits, vocab_size, draw, &at);
        scores.adjusted = at.adjusted;
    }
    double largest = survey(&scores, &at);
    if (!(largest > -INFINITY))
        return;
    choice->token = draw->temperature > 0.0 ? draw_token(&scores, largest, draw, &at)
                                            : lowest_id(&scores, largest, &at);
    if (draw->num_top >= 0)
        write_logprobs(&raw, scores.adjusted != NULL ? survey(&raw, &at) : largest, draw, choice, &at);
}
