/* Tokens that may be kept: listed, weighed, and cut by partition instead of by sorting. */
#include "_candidates.h"

#include <math.h>
#include <string.h>

static void swap(llmos_candidate *a, llmos_candidate *b)
{
    llmos_candidate c = *a;
    *a = *b;
    *b = c;
}

void llmos_sort_few(llmos_candidate *of, int32_t count)
{
    for (int32_t i = 1; i < count; i++)
        for (int32_t j = i; j > 0 && llmos_is_before(of + j, of + j - 1); j--)
            swap(of + j, of + j - 1);
}

/* Move the candidate at `pivot` to where it belongs in the order; those before it go before it. */
static int32_t partition(llmos_candidate *of, int32_t first, int32_t last, int32_t pivot)
{
    int32_t place = first;
    swap(of + pivot, of + last - 1);
    for (int32_t i = first; i < last - 1; i++)
        if (llmos_is_before(of + i, of + last - 1))
            swap(of + i, of + place++);
    swap(of + place, of + last - 1);
    return place;
}

llmos_candidate llmos_cut_at(llmos_candidate *of, int32_t count, bool by_weight, double goal)
{
    enum { FEW = 16 };
    int32_t first = 0, last = count;
    uint32_t random = 1; /* so that no order of candidates is a bad one throughout */
    double reached = 0.0;
    while (last - first > FEW) {
        random = random * 1664525u + 1013904223u;
        int32_t pivot = first + (int32_t)((uint64_t)random * (uint32_t)(last - first) >> 32);
        int32_t place = partition(of, first, last, pivot);
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
    llmos_sort_few(of + first, last - first);
    for (; first < last; first++) {
        reached += by_weight ? of[first].weight : 1.0;
        if (reached >= goal)
            return of[first];
    }
    return of[last < count ? last : count - 1];
}

/* The largest scores of short stretches, in `order`; returns how many. */
static int32_t list_stretches(const llmos_scores *scores, llmos_candidate *order)
{
    enum { STRETCH = 8 };
    int32_t count = 0;
    for (int32_t first = 0; first < scores->n; first += STRETCH) {
        int32_t end = scores->n - first < STRETCH ? scores->n : first + STRETCH;
        double largest = llmos_score_of(scores, first);
        for (int32_t id = first + 1; id < end; id++) {
            double score = llmos_score_of(scores, id);
            largest = score > largest ? score : largest;
        }
        order[count++] = (llmos_candidate){largest, 0.0, first};
    }
    return count;
}

double llmos_score_of_rank(const llmos_scores *scores, int32_t count, llmos_sample_memory *at)
{
    int32_t num_listed = at->num_segments;
    /* the smallest of the maxima say little: half of all tokens may be above them */
    if (count > at->num_segments / 2) {
        num_listed = list_stretches(scores, at->order);
        if (count > num_listed)
            return -INFINITY;
    } else {
        for (int32_t i = 0; i < at->num_segments; i++)
            at->order[i] = (llmos_candidate){at->maxima[i], 0.0, i};
    }
    return llmos_cut_at(at->order, num_listed, false, count).score;
}

void llmos_collect(const llmos_scores *scores, llmos_weighting by, double least_score, double least_weight,
                   llmos_sample_memory *at)
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
                at->candidates[count++] = (llmos_candidate){score[i], weight[i], first + i};
    }
    at->num_candidates = count;
}

void llmos_keep_up_to(bool by_weight, double goal, llmos_sample_memory *at)
{
    memcpy(at->order, at->candidates, (size_t)at->num_candidates * sizeof *at->order);
    llmos_candidate last = llmos_cut_at(at->order, at->num_candidates, by_weight, goal);
    int32_t count = 0;
    for (int32_t i = 0; i < at->num_candidates; i++)
        if (!llmos_is_before(&last, at->candidates + i))
            at->candidates[count++] = at->candidates[i];
    at->num_candidates = count;
}

double llmos_candidates_weight(const llmos_sample_memory *at)
{
    double total = 0.0;
    for (int32_t i = 0; i < at->num_candidates; i++)
        total += at->candidates[i].weight;
    return total;
}

int32_t llmos_draw_candidate(double uniform, const llmos_sample_memory *at)
{
    double total = llmos_candidates_weight(at), reached = 0.0;
    double target = uniform * total;
    /* below the total even where the product rounds up to it: a token of weight 0 is never reached */
    target = target < total ? target : nextafter(total, 0.0);
    int32_t i = 0;
    while ((reached += at->candidates[i].weight) <= target)
        i++;
    return at->candidates[i].id;
}
