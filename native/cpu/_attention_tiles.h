/* Tiles of keys and values: where they lie, and fetching them ahead; included by _attention.h. */

/* The tiles of one chunk, [from, to), in the order in which they are read: keys, values, then the first keys of the
 * next chunk. While one is used, one some places behind it is fetched: the pieces that lie together in a
 * page are too short for the processor to foresee the next.
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

/* Places between the tile in use and the one that is fetched: what lies between stays in the first cache. */
INLINE int32_t tiles_ahead(int32_t format)
{
    return format == LLMOS_INT8 ? TILES_AHEAD : format == LLMOS_FP32 ? 2 : 4;
}

INLINE void fetch_lines(const char *at, int32_t size_bytes)
{
#pragma GCC unroll 8
    for (int32_t i = 0; i < size_bytes; i += 64)
        __builtin_prefetch(at + i);
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

/* Where the tiles of the chunk at `chunk` lie that hold positions [low, end), of one head. */
INLINE void locate_tiles(attention_tiles *tiles, const llmos_kv *kv, const int32_t *pages, int32_t first_page,
                         int32_t head, int32_t chunk, int32_t chunk_keys, int32_t low, int32_t end, const int format)
{
    int32_t dim = kv->head_dim, size = kv->tokens_per_page, width = size < 16 ? size : 16;
    int32_t item = kv_item_bytes(format), is_int8 = format == LLMOS_INT8;
    int64_t head_bytes = (int64_t)size * (dim * item + (is_int8 ? 4 : 0));
    int32_t last = end - chunk < chunk_keys ? end - chunk : chunk_keys;
    tiles->from = chunk < low ? (low - chunk) / width : 0;
    tiles->to = (last + width - 1) / width;
    int32_t num_tiles = tiles->to - tiles->from;
    tiles->values = tiles->keys + num_tiles;
    tiles->fetch_tile = tiles->keys + tiles->from + (chunk > low ? tiles_ahead(format) : 0);
    tiles->fetch_end = tiles->keys + tiles->to + num_tiles + tiles_ahead(format);
    tiles->fetch_offset = 0, tiles->tile_bytes = width * dim * item;
    tiles->value_scales = tiles->key_scales + num_tiles;
    int32_t position = chunk + tiles->from * width, vpn = first_page + position / size, slot = position % size;
    for (int32_t i = 0; i < num_tiles + tiles_ahead(format); i++) {
        int64_t page = pages ? pages[vpn] : vpn;
        int64_t base = page * kv->page_bytes + head * head_bytes, numbers = base + (int64_t)slot * dim * item;
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
        if (position + width >= end) /* nothing follows: what is there is fetched again */
            continue;
        position += width, slot += width;
        if (slot >= size)
            slot = 0, vpn++;
    }
}
