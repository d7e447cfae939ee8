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

/* The tiles of one chunk, [from, to), in the order in which they are read: keys, values, then the first keys of the
 * next chunk or of the next item. While one is used, one some places behind it is fetched: the pieces that lie
 * together in a page are too short for the processor to foresee the next.
 */
typedef struct {
    const char *keys[2 * CHUNK_KEYS + TILES_AHEAD];
    const float *key_scales[2 * CHUNK_KEYS + TILES_AHEAD]; /* int8 only */
    const char **values; /* into the same arrays: values[tile] belong to keys[tile] */
    const float **value_scales;
    int32_t from, to;
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

/* Where the tiles of an item's chunk at `chunk` lie. `next` is worked on behind the item. */
INLINE void locate_tiles(attention_tiles *tiles, const llmos_kv *kv, const int32_t *pages, attention_item item,
                         attention_item next, int32_t is_fetched, int32_t chunk, int32_t chunk_keys, const int format)
{
    int32_t dim = kv->head_dim, size = kv->tokens_per_page, width = size < 16 ? size : 16;
    int32_t bytes = kv_item_bytes(format), is_int8 = format == LLMOS_INT8;
    int64_t head_bytes = (int64_t)size * (dim * bytes + (is_int8 ? 4 : 0));
    int32_t low = first_seen(kv, item), end = end_seen(item);
    int32_t last = end - chunk < chunk_keys ? end - chunk : chunk_keys;
    tiles->from = chunk < low ? (low - chunk) / width : 0;
    tiles->to = (last + width - 1) / width;
    int32_t num_tiles = tiles->to - tiles->from;
    tiles->values = tiles->keys + num_tiles;
    tiles->fetch_tile = tiles->keys + tiles->from + (is_fetched ? TILES_AHEAD : 0);
    tiles->fetch_end = tiles->keys + tiles->to + num_tiles + TILES_AHEAD;
    tiles->fetch_offset = 0, tiles->tile_bytes = width * dim * bytes;
    tiles->value_scales = tiles->key_scales + num_tiles;
    int32_t position = chunk + tiles->from * width, vpn = item.span->pages + position / size, slot = position % size;
    for (int32_t i = 0; i < num_tiles + TILES_AHEAD; i++) {
        int64_t page = pages ? pages[vpn] : vpn;
        int64_t base = page * kv->page_bytes + item.head * head_bytes, numbers = base + (int64_t)slot * dim * bytes;
        int64_t scales = base + (int64_t)size * dim + slot * 4;
        int32_t at = tiles->from + i + (i < num_tiles ? 0 : num_tiles); /* keys that follow stand behind the values */
        tiles->keys[at] = (const char *)kv->keys + numbers;
        if (is_int8)
            tiles->key_scales[at] = (const float *)((const char *)kv->keys + scales);
        if (i < num_tiles) {
            tiles->values[at] = (const char *)kv->values + numbers;
            if (is_int8)
                tiles->value_scales[at] = (const float *)((const char *)kv->values + scales);
        }
        position += width, slot += width;
        if (slot >= size)
            slot = 0, vpn++;
        if (position < end)
            continue;
        item = next, end = end_seen(item);
        position = first_seen(kv, item) / width * width;
        vpn = item.span->pages + position / size, slot = position % size;
    }
}
