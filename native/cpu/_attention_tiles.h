/* Tiles of keys and values: where they lie, and fetching them ahead; included by _attention.h. */

/* A work item: tokens [first, first + n) of a span, one kv head. */
typedef struct {
    const llmos_span *span;
    int32_t first, n, head;
} attention_item;

INLINE attention_item item_of(const llmos_kv *kv, const llmos_span *span, int32_t index)
{
    int32_t tokens = attention_tile_tokens(kv), first = index / kv->num_kv_heads * tokens;
    int32_t left = span->num_tokens - first;
    return (attention_item){span, first, left < tokens ? left : tokens, index % kv->num_kv_heads};
}

/* The first position that any of an item's tokens sees, and the one behind the last. */
INLINE int32_t first_seen(const llmos_kv *kv, attention_item item)
{
    int32_t begin = item.span->start + item.first + 1 - kv->window;
    return kv->window && begin > 0 ? begin : 0;
}
INLINE int32_t end_seen(attention_item item)
{
    return item.span->start + item.first + item.n;
}

/* The tiles of one chunk, [from, to), in the order in which they are read: keys, values, then those of the next chunk
 * or of the next item. While one is used, the one `ahead` places behind it is fetched: the pieces that lie together in
 * a page are too short for the processor to foresee the next. A short chunk fetches no further than the next one, place
 * by place: what lies behind that is not known yet, and nothing must be passed over.
 */
typedef struct {
    const char *keys[2 * CHUNK_KEYS + TILES_AHEAD];
    const float *key_scales[2 * CHUNK_KEYS + TILES_AHEAD]; /* int8 only */
    const char **values; /* into the same arrays: values[tile] belong to keys[tile] */
    const float **value_scales;
    int32_t from, to, ahead;
    const char *const *fetch_tile, *const *fetch_end; /* int8: what fetch_next is at */
    int32_t fetch_offset, tile_bytes;
} attention_tiles;

/* Into the second-level cache: a first-level one has too few misses under way at a time to keep memory busy. */
INLINE void fetch_lines(const char *at, int32_t size_bytes)
{
#pragma GCC unroll 8
    for (int32_t i = 0; i < size_bytes; i += 64)
        __builtin_prefetch(at + i, 0, 2);
}

/* Fetch the next lines of the chunk's tiles. int8 spends as long on weights as on keys or values: memory would rest if
 * those alone fetched.
 */
INLINE void fetch_next(attention_tiles *tiles, int32_t num_lines)
{
    if (tiles->fetch_tile >= tiles->fetch_end)
        return;
    fetch_lines(*tiles->fetch_tile + tiles->fetch_offset, 64 * num_lines);
    tiles->fetch_offset += 64 * num_lines;
    if (tiles->fetch_offset >= tiles->tile_bytes)
        tiles->fetch_offset = 0, tiles->fetch_tile++;
}

/* Positions [from, to) of a span, and where the first of them lies. */
typedef struct {
    int32_t from, to, vpn, slot;
} attention_run;

/* What an item reads of the chunk at `chunk`, whole tiles. */
INLINE attention_run run_of(const llmos_kv *kv, attention_item item, int32_t chunk, int32_t chunk_keys, int32_t width)
{
    int32_t low = first_seen(kv, item) / width * width, end = end_seen(item);
    int32_t from = chunk > low ? chunk : low, to = chunk + chunk_keys < end ? chunk + chunk_keys : end;
    return (attention_run){from, to, item.span->pages + from / kv->tokens_per_page, from % kv->tokens_per_page};
}

/* Where the tiles of an item's chunk at `chunk` lie. `next` is worked on behind the item. */
INLINE void locate_tiles(attention_tiles *tiles, const llmos_kv *kv, const int32_t *pages, attention_item item,
                         attention_item next, int32_t is_fetched, int32_t chunk, int32_t chunk_keys, const int format)
{
    int32_t dim = kv->head_dim, size = kv->tokens_per_page, width = size < 16 ? size : 16;
    int32_t bytes = kv_item_bytes(format), is_int8 = format == LLMOS_INT8;
    int64_t head_bytes = (int64_t)size * (dim * bytes + (is_int8 ? 4 : 0));
    attention_run run = run_of(kv, item, chunk, chunk_keys, width);
    tiles->from = (run.from - chunk) / width;
    tiles->to = (run.to - chunk + width - 1) / width;
    int32_t num_tiles = tiles->to - tiles->from, ahead = 2 * num_tiles < TILES_AHEAD ? 2 * num_tiles : TILES_AHEAD;
    tiles->ahead = ahead;
    tiles->values = tiles->keys + num_tiles;
    tiles->fetch_tile = tiles->keys + tiles->from + (is_fetched ? ahead : 0);
    tiles->fetch_end = tiles->keys + tiles->to + num_tiles + ahead;
    tiles->fetch_offset = 0, tiles->tile_bytes = width * dim * bytes;
    tiles->value_scales = tiles->key_scales + num_tiles;
    for (int32_t tile = tiles->from; tile < tiles->to; tile++) {
        int64_t page = pages ? pages[run.vpn] : run.vpn, base = page * kv->page_bytes + item.head * head_bytes;
        int64_t numbers = base + (int64_t)run.slot * dim * bytes, scales = base + (int64_t)size * dim + run.slot * 4;
        tiles->keys[tile] = (const char *)kv->keys + numbers;
        tiles->values[tile] = (const char *)kv->values + numbers;
        if (is_int8) {
            tiles->key_scales[tile] = (const float *)((const char *)kv->keys + scales);
            tiles->value_scales[tile] = (const float *)((const char *)kv->values + scales);
        }
        run.slot += width;
        if (run.slot >= size)
            run.slot = 0, run.vpn++;
    }
    if (run.to == end_seen(item)) {
        item = next;
        chunk = first_seen(kv, item) / chunk_keys * chunk_keys;
    } else
        chunk += chunk_keys;
    attention_run following = run_of(kv, item, chunk, chunk_keys, width);
    const char **to = tiles->values + tiles->to, **end = to + ahead;
    const float **to_scales = tiles->value_scales + tiles->to;
    for (int32_t is_value = 0; is_value < 2; is_value++) {
        const char *segment = is_value ? kv->values : kv->keys;
        run = following;
        for (; run.from < run.to && to < end; run.from += width) {
            int64_t page = pages ? pages[run.vpn] : run.vpn, base = page * kv->page_bytes + item.head * head_bytes;
            *to++ = segment + base + (int64_t)run.slot * dim * bytes;
            if (is_int8)
                *to_scales++ = (const float *)(segment + base + (int64_t)size * dim + run.slot * 4);
            run.slot += width;
            if (run.slot >= size)
                run.slot = 0, run.vpn++;
        }
    }
    for (; to < end; to++) {
        *to = to[-1];
        if (is_int8)
            to_scales[0] = to_scales[-1], to_scales++;
    }
}
