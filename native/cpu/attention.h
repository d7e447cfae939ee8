#ifndef LLMOS_ATTENTION_H
#define LLMOS_ATTENTION_H
#include "types.h"

/* --- kv.c: where keys and values lie, rotation, and writing --------------------------------------------- */

/* One layer's keys and values. A page holds tokens_per_page consecutive tokens of all layers, keys and values in
 * frames of their own. With P = tokens_per_page, D = head_dim, W = min(16, P), slot = position % P, and in
 * elements of the format, key d of a head lies at
 *
 *     page * page_bytes, + head * P * D + slot / W * D * W + d * W + slot % W          (fp32, fp16, bf16)
 *     page * page_bytes, + head * (P * D + 4 P) + slot / W * D * W + d / 4 * 4 * W + slot % W * 4 + d % 4  (int8)
 *
 * past the layer's first key: tiles of W tokens, transposed, so that one load brings the same d of W tokens. A
 * value lies at
 *
 *     page * page_bytes, + head * P * D + slot * D + d                                 (fp32, fp16, bf16)
 *     page * page_bytes, + head * (P * D + 4 P) + (slot - g) * D + d * G + g           (int8)
 *
 * past the first value, where g is slot % W % 4, and G is 4 or, for the last tokens of a tile whose W is not a
 * multiple of 4, how many they are: four tokens' d lie together. P is a multiple of 16 or less than that; D is a
 * multiple of 8, at most 256. An int8 head's numbers are followed by P fp32 scales; int8 keys are stored with 128
 * added.
 */
typedef struct {
    int32_t format;          /* LLMOS_FP32, LLMOS_FP16, LLMOS_BF16 or LLMOS_INT8 */
    int32_t num_heads;       /* of queries */
    int32_t num_kv_heads;    /* divides num_heads */
    int32_t head_dim;
    int32_t tokens_per_page;
    int32_t window;          /* a token sees its last `window` positions, itself included; 0: all */
    int64_t page_bytes;      /* from one page to the next; a multiple of 64 */
    void *keys;              /* of this layer in page 0; 64-byte aligned */
    void *values;
} llmos_kv;

/* One row of a step: consecutive tokens of one space. */
typedef struct {
    int32_t start;      /* absolute position of its first token */
    int32_t num_tokens; /* at least 1 */
    int32_t first;      /* its first token in the step's flat arrays */
    int32_t pages;      /* of its page numbers in `page_table`, the index of that of virtual page 0; without a
                         * table, the page number itself, and those of the next virtual pages follow it */
} llmos_span;

/* Bytes of one layer in a frame; a multiple of 64 for pages of 16 tokens and more. */
int64_t llmos_kv_layer_bytes(const llmos_kv *kv);

/* 0, or EINVAL for a shape that the functions below cannot serve. */
int32_t llmos_kv_check(const llmos_kv *kv);

/* How llmos_rope_write_kv prepares keys and queries. */
typedef struct {
    const float *cos;    /* [positions][head_dim / 2] */
    const float *sin;
    const float *q_norm; /* [head_dim] weights of an RMSNorm of every head, or null */
    const float *k_norm;
    float epsilon;
} llmos_rope;

/* For the step's flat tokens [t0, t1): (normalise and) rotate queries and keys, and write keys and values.
 * qkv: [tokens][ld], ld >= (num_heads + 2 num_kv_heads) * head_dim: query heads, key heads, value heads. The
 * queries are changed in place; of keys and values the contents are undefined afterwards.
 * int8: scale = max|x| / 127, number = round half to even(x / scale); the scale of an all-zero head is 0.
 */
void llmos_rope_write_kv(const llmos_kv *kv, const llmos_rope *rope, const llmos_span *spans, int32_t num_spans,
                         const int32_t *page_table, float *qkv, int64_t ld, int32_t t0, int32_t t1);

/* --- attention.c ---------------------------------------------------------------------------------------- */

/* Work items of a step: one for each (tile of a span's tokens, kv head). Their cost varies: give them out one
 * by one.
 */
int32_t llmos_attention_items(const llmos_kv *kv, const llmos_span *spans, int32_t num_spans);

/* Scratch of one thread. */
int64_t llmos_attention_scratch_bytes(const llmos_kv *kv);

/* Causal attention for items [i0, i1): softmax(q k / sqrt(head_dim)) v, in fp32. int8: exact integer products of
 * queries of 8 bits, one scale for each query and head, and of weights times their values' scales of 16 bits, one
 * scale for each query, head and chunk: such a product is off by 2^-17 of the chunk's largest weight times its largest
 * scale at most. The step's own keys are already written.
 * q: the flat tokens' rotated queries, [tokens][ldq] (the rows of qkv will do); out: [tokens][ldo], query heads
 * in order. scratch is 64-byte aligned.
 *
 * The bits of a token's result depend on its query and the keys and values that it sees, on nothing else. Slots
 * that it does not see may hold anything, and pages past its last position need not exist. Keys are joined in
 * chunks of 256 (W divides it; else of the largest multiple of W below) at absolute positions:
 *     m' = max(m, m_j)      l' = l exp(m - m') + sum_j exp(s - m')      o' likewise;      result = o / l
 * Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2023,
 * "Flash-Decoding"; Dao et al. 2022, arXiv:2205.14135.
 */
void llmos_attention(const llmos_kv *kv, const llmos_span *spans, int32_t num_spans, const int32_t *page_table,
                     const float *q, int64_t ldq, float *out, int64_t ldo, int32_t i0, int32_t i1, void *scratch);

#endif
