#ifndef LLMOS_FORWARD_INTERNAL_H
#define LLMOS_FORWARD_INTERNAL_H
#include "forward.h"
#include "gemm.h"

#include <stdbool.h>
#include <time.h>

/* Between forward.c and the parts of a step: forward_memory.c, forward_products.c and forward_samples.c. */

enum {
    ALIGNMENT = 64,
    PRIVATE_ROWS = 8,        /* up to so many rows, each thread prepares them for itself */
    ROW_BLOCK = 8,           /* rows of an item, where rows are what is split */
    ROTATE_BLOCK = 32,       /* the same where a prompt's keys are written */
    ITEM_BYTES = 64 << 10,   /* of weights: an item reads more, so that handing it out costs nothing */
    ITEMS_PER_THREAD = 4,    /* so that a thread which is taken off its core does not hold up the others */
    ATTENTION_ITEMS_PER_THREAD = 16,
    STRIPE_BYTES = 256 << 10, /* of gates and ups of an item: they stay in the second-level cache */
    LONE_BYTES = 1 << 20,    /* a step whose rows read fewer bytes of weights runs on one thread */
};

/* The phases of a layer. */
enum {
    PREPARE_QKV,
    QKV,
    ROTATE,
    ATTEND,
    PREPARE_OUTPUT,
    OUTPUT,
    PREPARE_GATE_UP,
    GATE_UP,
    PREPARE_DOWN,
    DOWN,
    NUM_LAYER_PHASES
};

/* The others, counted from behind the last layer's; the very first phase looks the embeddings up. */
enum { PREPARE_HEAD, HEAD, SAMPLE, HIDDEN, NUM_LAST_PHASES };

/* Parts of other phases that are timed apart. */
enum { ACTIVATE = LLMOS_NUM_PHASES - 1 };

/* Activations as a product takes them: x fp32, or int8 with a scale and a sum for each row. */
typedef struct {
    float *x;
    int8_t *q;
    float *scale;
    int32_t *sum;
} input;

/* A thread's own scratch. */
typedef struct {
    int32_t prepared; /* the phase whose input is in `rows`, or -1 */
    input rows;       /* [PRIVATE_ROWS] */
    float *stripe;    /* gates and ups of an item, [num_tokens] */
    void *kernel;
    int64_t busy[LLMOS_NUM_PHASES];
} private_memory;

typedef struct {
    const llmos_model *model;
    const llmos_kv *kv;
    const llmos_step *step;
    int32_t num_threads;
    int64_t kv_layer_bytes;
    int64_t ld;      /* of inputs: the widest of any product, padded; float and int8 alike */
    int64_t qkv_ld;
    int64_t mixed_ld;
    int64_t active_ld;
    float *x;        /* [num_tokens][hidden_size] the residual stream */
    float *qkv;      /* [num_tokens][qkv_ld] */
    float *mixed;    /* [num_tokens][mixed_ld] what attention gives */
    float *active;   /* [num_tokens][active_ld] silu(gate) * up */
    input shared;    /* [num_tokens or num_samples][ld] */
    int32_t num_attention_items;
    int32_t attention_block; /* of those, in an item of ours */
    int32_t num_head_items;
    float *values;   /* [num_head_items][num_greedy] the largest logit of the item's columns, */
    int32_t *ids;    /* and its column */
    float *surveys;  /* [num_drawn][num_segments] the largest of each 64 logits of a row that is drawn from */
    int32_t *num_bad; /* [num_head_items][num_drawn] those of the item's columns that are not finite */
    private_memory *threads;
} forward;

static inline bool is_quantised(const llmos_weight *w)
{
    return w->format == LLMOS_W8A8 || w->format == LLMOS_W4A8;
}

static inline input input_row(const forward *f, input from, int32_t row)
{
    return (input){from.x + row * f->ld, from.q + row * f->ld, from.scale + row, from.sum + row};
}

/* Columns of an item of a product with m rows: whole tiles. */
static inline int32_t item_columns(const forward *f, const llmos_weight *w, int32_t m)
{
    int32_t num_tiles = (w->n + LLMOS_TILE_COLUMNS - 1) / LLMOS_TILE_COLUMNS;
    if (f->num_threads == 1)
        return num_tiles * LLMOS_TILE_COLUMNS;
    int64_t tile_bytes = llmos_packed_bytes(w->format, LLMOS_TILE_COLUMNS, w->k) * (m < 8 ? m : 8);
    int32_t least = (int32_t)((ITEM_BYTES + tile_bytes - 1) / tile_bytes);
    int32_t tiles = num_tiles / (f->num_threads * ITEMS_PER_THREAD);
    tiles = tiles > least ? tiles : least;
    return tiles * LLMOS_TILE_COLUMNS;
}

static inline int32_t column_items(const forward *f, const llmos_weight *w, int32_t m)
{
    int32_t columns = item_columns(f, w, m);
    return (w->n + columns - 1) / columns;
}

static inline int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* --- forward_memory.c ------------------------------------------------------------------------------------- */

/* Where everything of a step lies in its scratch; without one, only how many bytes that takes. */
int64_t llmos_forward_lay_out(forward *f, void *scratch, int32_t num_threads, int32_t num_tokens,
                              int32_t num_samples);

/* --- forward_products.c ----------------------------------------------------------------------------------- */

/* Prepare tokens [t0, t1) for a product of a layer, at the first rows of `to`. */
void llmos_forward_prepare(const forward *f, int32_t kind, int32_t layer, int32_t t0, int32_t t1, input to);

/* Prepare samples [first, last) for the vocabulary's. */
void llmos_forward_prepare_samples(const forward *f, int32_t first, int32_t last);

/* Write hidden states [first, last) that the step wants. */
void llmos_forward_tell_hidden(const forward *f, int32_t first, int32_t last);

/* Items of a product: QKV, OUTPUT, GATE_UP (with its activation) or DOWN. */
int32_t llmos_forward_product_items(const forward *f, int32_t kind, int32_t layer);

/* One of them. */
void llmos_forward_multiply(const forward *f, int32_t kind, int32_t layer, int32_t phase, int32_t item,
                            private_memory *own);

/* Whether a product of a layer takes int8. */
bool llmos_forward_is_quantised(const forward *f, int32_t kind, int32_t layer);

/* --- forward_samples.c ------------------------------------------------------------------------------------ */

/* Project all samples onto an item's columns of the vocabulary. */
void llmos_forward_project(const forward *f, int32_t item, private_memory *own);

/* Draw a token from the logits of one sample behind the greedy ones. */
void llmos_forward_draw(const forward *f, int32_t item, private_memory *own);

/* The choices of greedy samples, from what the items found. */
void llmos_forward_choose(const forward *f);

#endif
