#ifndef LLMOS_FORWARD_H
#define LLMOS_FORWARD_H
#include "attention.h"
#include "pool.h"
#include "sample.h"
#include "types.h"

/* --- forward.c: a whole step of a Llama-like decoder in one call ---------------------------------------- */

/* One decoder layer; linear weights as pack.c makes them. */
typedef struct {
    const float *input_norm; /* [hidden_size] */
    llmos_weight qkv;        /* [(num_heads + 2 num_kv_heads) head_dim, hidden_size]: queries, keys, values */
    const float *q_norm;     /* [head_dim], or null */
    const float *k_norm;
    llmos_weight output;     /* [hidden_size, num_heads head_dim] */
    const float *post_norm;  /* [hidden_size] */
    llmos_weight gate_up;    /* [2 intermediate_size, hidden_size]: gate, up */
    llmos_weight down;       /* [hidden_size, intermediate_size] */
} llmos_layer;

/* A model; everything it points to is the caller's, and stays in place. */
typedef struct {
    int32_t num_layers;
    int32_t hidden_size;
    int32_t intermediate_size;
    int32_t vocab_size;
    float epsilon;             /* of the norms */
    int32_t embedding_format;  /* LLMOS_FP32, LLMOS_FP16 or LLMOS_BF16 */
    const void *embedding;     /* [vocab_size][hidden_size] */
    const llmos_layer *layers; /* [num_layers] */
    const float *final_norm;   /* [hidden_size] */
    llmos_weight head;         /* [vocab_size, hidden_size] */
    const float *cosines;      /* [max_positions][head_dim / 2] */
    const float *sines;
    int64_t weight_bytes;      /* that a step reads */
} llmos_model;

/* One step. */
typedef struct {
    int32_t num_tokens;
    const int32_t *token_ids;    /* [num_tokens], each inside the vocabulary */
    int32_t num_spans;
    const llmos_span *spans;     /* [num_spans], one behind the other without gaps */
    const int32_t *page_table;   /* see llmos_span */
    int32_t num_greedy;          /* samples of which only the best token is wanted */
    int32_t num_samples;         /* those, and behind them the ones that are drawn */
    const int32_t *samples;      /* [num_samples] tokens that the vocabulary is projected for */
    const llmos_draw *draws;     /* [num_samples - num_greedy] */
    float *logits;               /* [num_samples - num_greedy][vocab_size] */
    llmos_choice *choices;       /* [num_samples]; of greedy ones, the token is the lowest id of a largest logit */
    int32_t num_hidden;
    const int32_t *hidden_tokens; /* [num_hidden] tokens whose last hidden state is wanted, behind the final norm */
    float *hidden;               /* [num_hidden][hidden_size] */
    int64_t *busy;               /* null, or [LLMOS_NUM_PHASES]: nanoseconds that threads spent in each kind of
                                  * phase, one thread after the other, are added */
} llmos_step;

/* Kinds of phases, for measurements. */
enum { LLMOS_NUM_PHASES = 16 };
const char *llmos_phase_name(int32_t phase);

/* Bytes of scratch that llmos_forward needs for steps of up to so many tokens and samples. */
int64_t llmos_forward_scratch_bytes(const llmos_pool *pool, const llmos_model *model, const llmos_kv *kv,
                                    int32_t num_tokens, int32_t num_samples);

/* Run a step: writes keys and values of all its tokens, choices, logits and hidden states. The bits of a token's
 * results depend on itself and the tokens it sees, not on what else is in the step nor on the threads. For
 * num_bad of a greedy sample to be right, the head's weights must be finite.
 *
 * kv describes layer 0; those of the others follow, llmos_kv_layer_bytes apart. scratch is 64-byte aligned.
 */
void llmos_forward(llmos_pool *pool, const llmos_model *model, const llmos_kv *kv, const llmos_step *step,
                   void *scratch);

#endif
