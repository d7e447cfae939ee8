#ifndef LLMOS_SAMPLE_H
#define LLMOS_SAMPLE_H
#include "types.h"

/* --- sample.c: from one row of logits to a token --------------------------------------------------------- */

/* How a token is drawn; the order is that of the fields: penalties, bias, bans, temperature, top-k, top-p, min-p.
 * Ids are inside the vocabulary, and no list names an id twice.
 */
typedef struct {
    double repetition_penalty;
    double frequency_penalty;
    double presence_penalty;
    int32_t num_seen;          /* tokens that the penalties are about */
    const int64_t *seen_ids;
    const int64_t *num_output; /* [num_seen] how often each is in the output */
    int32_t num_bias;
    const int64_t *bias_ids;
    const double *bias_values;
    int32_t num_banned;
    const int64_t *banned_ids;
    double temperature;        /* 0: the lowest id of the largest */
    int32_t top_k;             /* 0: off */
    double top_p;              /* 1: off */
    double min_p;              /* 0: off */
    double uniform;            /* the random number, in [0, 1) */
    int32_t num_top;           /* log-probabilities besides the token's own; -1: none at all */
    int32_t *top_ids;          /* [num_top], most likely first, lowest id first among equals */
    double *top_logprobs;      /* [num_top] */
} llmos_draw;

typedef struct {
    int32_t token;   /* -1: no token is allowed */
    int32_t num_bad; /* logits that are not finite; unless 0, the rest means nothing */
    double logprob;  /* of the token, where num_top is not -1 */
} llmos_choice;

int64_t llmos_sample_scratch_bytes(int32_t vocab_size);

/* Draw a token from logits [vocab_size]. The running sum of kept probabilities, in the order of ids, first exceeds
 * draw->uniform at the token; log-probabilities are of the raw logits. All sums are fp64, in an order that only the
 * row decides, and no product is fused with a sum: bits depend neither on threads nor on the variant.
 *
 * scratch is 64-byte aligned.
 */
void llmos_sample(const float *logits, int32_t vocab_size, const llmos_draw *draw, llmos_choice *choice, void *scratch);

#endif
