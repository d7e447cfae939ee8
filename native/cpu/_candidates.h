#ifndef LLMOS_CANDIDATES_H
#define LLMOS_CANDIDATES_H
#include "sample.h"

#include "_kernels.h"

#include <stdbool.h>

/* Between sample.c, sample_cuts.c and candidates.c: tokens that may be kept, and choices among them. */

/* A token that may be kept, or a segment and its largest score. */
typedef struct {
    double score;
    double weight;
    int32_t id;
} llmos_candidate;

typedef struct {
    const llmos_kernels *kernels;
    int32_t num_segments;
    float *surveyed;       /* [num_segments] for rows that nobody surveyed before */
    double *adjusted;      /* [num_segments][LLMOS_SEGMENT] */
    double *maxima;        /* [num_segments] */
    double *sums;          /* [num_segments] */
    llmos_candidate *candidates; /* [num_segments][LLMOS_SEGMENT], ids ascend */
    llmos_candidate *order;      /* a copy that may be permuted */
    int32_t num_candidates;
} llmos_sample_memory;

/* The order of tokens: largest score first, lowest id first among equals. */
static inline bool llmos_is_before(const llmos_candidate *a, const llmos_candidate *b)
{
    return a->score > b->score || (a->score == b->score && a->id < b->id);
}

static inline double llmos_score_of(const llmos_scores *scores, int32_t id)
{
    return scores->adjusted != NULL ? scores->adjusted[id] : (double)scores->raw[id];
}

/* Put a few in order. */
void llmos_sort_few(llmos_candidate *of, int32_t count);

/* The candidate at which the running sum in the order reaches a goal: of weights, or of ones. The last one if none
 * does. Those before it end up at the front. There is at least one candidate.
 */
llmos_candidate llmos_cut_at(llmos_candidate *of, int32_t count, bool by_weight, double goal);

/* A score that at least `count` tokens have or exceed, and few more: the count-th largest of the segments' maxima, or of
 * those of shorter stretches where there are not many segments.
 */
double llmos_score_of_rank(const llmos_scores *scores, int32_t count, llmos_sample_memory *at);

/* List the tokens with such scores and weights. */
void llmos_collect(const llmos_scores *scores, llmos_weighting by, double least_score, double least_weight,
                   llmos_sample_memory *at);

/* Keep those up to where the running sum reaches a goal. */
void llmos_keep_up_to(bool by_weight, double goal, llmos_sample_memory *at);

/* The sum of their weights, in the order of ids. */
double llmos_candidates_weight(const llmos_sample_memory *at);

/* The first one, in the order of ids, at which the running sum of weights exceeds a part of the whole: a part in [0, 1)
 * of a whole above 0.
 */
int32_t llmos_draw_candidate(double uniform, const llmos_sample_memory *at);

/* --- sample_cuts.c ---------------------------------------------------------------------------------------- */

/* Draw a token through cuts in the order asked for, or by mirostat; fills in what `choice` tells of it. */
void llmos_draw_by_cuts(const llmos_scores *scores, double largest, const llmos_draw *draw, llmos_choice *choice,
                        llmos_sample_memory *at);

#endif
