#ifndef LLMOS_ATTENTION_PLAN_H
#define LLMOS_ATTENTION_PLAN_H
#include "attention.h"

/* How attention is cut into tiles of queries and chunks of keys, and the scratch that takes. */

enum {
    CHUNK_KEYS = 256,            /* scores that a row holds at a time */
    SCORE_STRIDE = CHUNK_KEYS + 16, /* a tile narrower than 16 writes past its end */
    QUERY_STRIDE = 256 + 16,
    TILE_ROWS = 64, /* rows (token, head of the group) of an item, where the group is not larger */
    SHARED_ROWS = 24, /* rows that add the keys that all of them see together */
    TILES_AHEAD = 32, /* places between the tile in use and the one that is fetched */
    INT8_WEIGH_ROWS = 4 /* rows from which on int8 spends enough time on weights to fetch meanwhile */
};

static inline int32_t attention_group(const llmos_kv *kv)
{
    return kv->num_heads / kv->num_kv_heads;
}

/* Tokens of an item. */
static inline int32_t attention_tile_tokens(const llmos_kv *kv)
{
    int32_t tokens = TILE_ROWS / attention_group(kv);
    return tokens > 0 ? tokens : 1;
}

/* Rows of scratch: a multiple of 16, which keeps every part aligned. */
static inline int64_t attention_scratch_rows(const llmos_kv *kv)
{
    return ((int64_t)attention_tile_tokens(kv) * attention_group(kv) + 15) & ~15;
}

/* Floats of a row of sums: head_dim rounded up. */
static inline int64_t attention_sum_stride(const llmos_kv *kv)
{
    return (kv->head_dim + 15) & ~15;
}

#endif
