#ifndef LLMOS_SAMPLE_H
#define LLMOS_SAMPLE_H
#include "types.h"

/* --- sample.c: from one row of logits to a token --------------------------------------------------------- */

/* A step from scores to the tokens that may be drawn. */
typedef struct {
    int32_t kind;    /* one of the following */
    double value;    /* of temperatures: what scores are divided by; otherwise the limit */
    double spread;   /* of a dynamic temperature: it is value - spread to value + spread, */
    double exponent; /* by the part of the greatest entropy that there is, to this power */
} llmos_cut;

enum {
    LLMOS_TEMPERATURE,
    LLMOS_DYNAMIC_TEMPERATURE,
    LLMOS_TOP_N_SIGMA, /* standard deviations from the best score */
    LLMOS_TOP_K,
    LLMOS_TYPICAL_P, /* those nearest to the average log-probability, that together have this probability */
    LLMOS_TOP_P,
    LLMOS_MIN_P, /* of the best one's probability */
    LLMOS_XTC,   /* of those with this probability or more, all but the least likely go */
};

/* How a token is drawn; the order is that of the fields: what is allowed, penalties, bias, bans, and then either
 * temperature, top-k, top-p, min-p, or the cuts. Ids are inside the vocabulary, and no list but that of biases names
 * an id twice.
 */
typedef struct {
    int32_t num_allowed;       /* 0: all are */
    const int64_t *allowed_ids;
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
    int32_t by_cuts;           /* then of the four above only whether the temperature is 0 counts */
    int32_t num_cuts;
    const llmos_cut *cuts;
    int32_t mirostat;          /* after the cuts: version 1 or 2; 0: off */
    double tau;
    double eta;
    double mu;
    double uniform;            /* the random number, in [0, 1) */
    int32_t given;             /* draw nothing: tell of this token; -1: draw */
    int32_t num_top;           /* log-probabilities besides the token's own; -1: none at all */
    int32_t is_processed;      /* of what is drawn from, which takes by_cuts, instead of the raw logits */
    int32_t *top_ids;          /* [num_top], most likely first, lowest id first among equals */
    double *top_logprobs;      /* [num_top] */
} llmos_draw;

typedef struct {
    int32_t token;   /* -1: no token is allowed */
    int32_t num_bad; /* logits that are not finite; unless 0, the rest means nothing */
    int32_t num_top; /* how many are in top_ids: fewer than asked for where fewer can be drawn */
    int32_t rank;    /* of a given token: 1 is the best */
    double logprob;  /* of the token, where num_top is not -1 */
    double mu;       /* for the next draw, with mirostat */
} llmos_choice;

int64_t llmos_sample_scratch_bytes(int32_t vocab_size);

/* Draw a token from logits [vocab_size]. The running sum of kept probabilities, in the order of ids, first exceeds
 * draw->uniform at the token. All sums are fp64, in an order that only the
 * row decides, and no product is fused with a sum: bits depend neither on threads nor on the variant.
 *
 * scratch is 64-byte aligned.
 */
void llmos_sample(const float *logits, int32_t vocab_size, const llmos_draw *draw, llmos_choice *choice, void *scratch);

/* What every draw asks of a row first, of n logits from a multiple of 64 on: the largest of each 64 of them, to
 * surveyed [(n + 63) / 64]; -0 counts as 0. Returns how many are not finite; then the largest mean nothing.
 */
int32_t llmos_survey(const float *logits, int32_t n, float *surveyed);

/* llmos_sample for a row that was surveyed, in one piece or in several: surveyed [(vocab_size + 63) / 64]. */
void llmos_sample_surveyed(const float *logits, int32_t vocab_size, const float *surveyed, int32_t num_bad,
                           const llmos_draw *draw, llmos_choice *choice, void *scratch);

/* --- repeats.c: where the end of a text has been before ---------------------------------------------------- */

/* lengths[i] = how many tokens before tokens[i] equal the last ones of all, up to a limit: the largest such k with
 * tokens[i - k .. i) = tokens[n - k .. n). lengths[0] is 0.
 */
void llmos_repeats(const int32_t *tokens, int32_t n, int32_t limit, int32_t *lengths);

#endif
