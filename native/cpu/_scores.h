#ifndef LLMOS_SCORES_H
#define LLMOS_SCORES_H
#include <stdint.h>

enum { LLMOS_SEGMENT = 64 }; /* scores that are looked at together, from a multiple of 64 on */

static inline int32_t llmos_num_segments(int32_t n)
{
    return (n + LLMOS_SEGMENT - 1) / LLMOS_SEGMENT;
}

/* What a token is drawn from: raw logits, or adjusted ones, which then reach to the end of the last segment, with
 * -infinity behind the vocabulary.
 */
typedef struct {
    const float *raw;
    const double *adjusted; /* or null */
    int32_t n;
} llmos_scores;

/* weight = 2^((score - largest) * slope) */
typedef struct {
    double largest;
    double slope;
} llmos_weighting;

#endif
