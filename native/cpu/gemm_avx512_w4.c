/* W4A8 with AVX-512 and VNNI. For three rows and more, in integers,
 *
 *   y = sum over groups of scale (sum of code x) + (offset - 128) (sum of x)
 *
 * which is the sum of (code scale + offset - 128) x, bit by bit: codes go into VPDPBUSD as they are, and what decoding
 * does to every weight is done once in 128 k, to a sum. On the way a sum may pass 2^31; it wraps, and the last one is
 * right. For one row or two memory is the limit, and decoding costs nothing; for very many rows, each weight is
 * decoded once.
 */
#include "_gemm_avx512.h"

#if defined(__x86_64__)

enum {
    DECODED_ROWS = 2, /* most that decode in registers */
    ROWS = 11,        /* of a register tile of 32 columns */
    DEPTH = 512,      /* k of half a tile, before the other half's: both read the same lines, from the first cache */
    AHEAD = 4096,     /* bytes that are fetched before they are read */
    GROUP_BYTES = 2 * COLUMNS + GROUP * COLUMNS / 2
};

/* --- codes to weights ---------------------------------------------------------------------------------- */

INLINE __m512i widen(const char *data)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)data));
}

/* Scales as words and offsets as bytes, as often as a vector of 16 columns by 4 k needs them. */
INLINE __m512i spread_scales(const char *data)
{
    __m512i scale = widen(data);
    return _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
}

INLINE __m512i spread_offsets(const char *data)
{
    __m512i offset = widen(data);
    offset = _mm512_or_si512(offset, _mm512_slli_epi32(offset, 8));
    return _mm512_or_si512(offset, _mm512_slli_epi32(offset, 16));
}

INLINE integers load_scales(const char *group)
{
    return (integers){spread_scales(group), spread_scales(group + 16), spread_scales(group + 32),
                      spread_scales(group + 48)};
}

INLINE integers load_offsets(const char *group)
{
    group += COLUMNS;
    return (integers){spread_offsets(group), spread_offsets(group + 16), spread_offsets(group + 32),
                      spread_offsets(group + 48)};
}

INLINE __m512i low_nibbles(__m512i codes)
{
    return _mm512_and_si512(codes, _mm512_set1_epi8(15));
}

/* w + 128 of codes in 0..15. A word holds two, and 15 * 17 fits a byte: nothing carries between them. */
INLINE __m512i decode(__m512i codes, __m512i scale, __m512i offset)
{
    return _mm512_add_epi8(_mm512_mullo_epi16(low_nibbles(codes), scale), offset);
}

INLINE integers decode_four(integers codes, integers scales, integers offsets)
{
    return (integers){decode(codes.a, scales.a, offsets.a), decode(codes.b, scales.b, offsets.b),
                      decode(codes.c, scales.c, offsets.c), decode(codes.d, scales.d, offsets.d)};
}

INLINE integers high_nibbles(integers codes)
{
    return (integers){_mm512_srli_epi16(codes.a, 4), _mm512_srli_epi16(codes.b, 4),
                      _mm512_srli_epi16(codes.c, 4), _mm512_srli_epi16(codes.d, 4)};
}

TARGET void llmos_w4_unpack_avx512(const char *data, int64_t count, char *bytes)
{
    for (int64_t k0 = 0; k0 < count; k0 += GROUP) {
        const integers scales = load_scales(data), offsets = load_offsets(data);
        const int64_t end = k0 + GROUP < count ? k0 + GROUP : count;
        data += 2 * COLUMNS;
        for (int64_t i = k0; i < end; i += 8, data += 4 * COLUMNS, bytes += 8 * COLUMNS) {
            const integers codes = load_integers(data);
            prefetch(data + AHEAD, 4 * COLUMNS);
            save_integers(bytes, decode_four(codes, scales, offsets));
            save_integers(bytes + 4 * COLUMNS, decode_four(high_nibbles(codes), scales, offsets));
        }
    }
}

/* One row or two: from codes to weights in registers. */
INLINE void decoded_rows(int rows, const llmos_product *p, const char *data, int32_t n0)
{
    const int64_t ldx = p->ldx, k = padded_k(p->w->k);
    const int8_t *x = p->x;
    integers s0 = {0}, s1 = {0};
    for (int64_t i = 0; i < k;) {
        const integers scales = load_scales(data), offsets = load_offsets(data);
        const int64_t end = i + GROUP < k ? i + GROUP : k;
        for (data += 2 * COLUMNS; i < end; i += 8, data += 4 * COLUMNS) {
            const integers codes = load_integers(data);
            const integers low = decode_four(codes, scales, offsets);
            const integers high = decode_four(high_nibbles(codes), scales, offsets);
            prefetch(data + AHEAD, 4 * COLUMNS);
            s0 = dot(dot(s0, low, four_of(x + i)), high, four_of(x + i + 4));
            if (rows > 1)
                s1 = dot(dot(s1, low, four_of(x + ldx + i)), high, four_of(x + ldx + i + 4));
        }
    }
    const columns to = columns_of(p, n0);
    store_integers(p, 0, to, s0);
    if (rows > 1)
        store_integers(p, 1, to, s1);
}

/* --- sums of codes ------------------------------------------------------------------------------------- */

/* Sums of a row in 32 columns. */
typedef struct {
    __m512i a, b;
} pairs;

/* Half a tile, and what belongs to it. */
typedef struct {
    int32_t column;          /* first one in the tile: 0 or 32 */
    char *totals;            /* [rows][COLUMNS] int32, half of each row used */
    const int32_t *row_sums; /* [rows][num_groups] of x, a group each: 16 bits and their sign */
    int64_t num_groups;
} half;

static int64_t num_groups_of(const llmos_product *p)
{
    return num_blocks(p->w->k, GROUP);
}

/* Behind the totals, where more rows have their decoded weights. */
static int32_t *row_sums_of(const llmos_product *p)
{
    return (int32_t *)(p->scratch + (int64_t)p->m * COLUMNS * 4);
}

TARGET void llmos_w4_begin_avx512(const llmos_product *p)
{
    const int64_t k = padded_k(p->w->k);
    int32_t *sums = row_sums_of(p);
    if (p->m <= DECODED_ROWS)
        return;
    for (int32_t row = 0; row < p->m; row++) {
        const int8_t *x = (const int8_t *)p->x + row * p->ldx;
        for (int64_t group = 0; group < k; group += GROUP) {
            __m512i sum = _mm512_setzero_si512();
            for (int64_t i = group; i < group + GROUP && i < k; i += 64) {
                const __mmask64 mask = k - i < 64 ? ((__mmask64)1 << (k - i)) - 1 : ~(__mmask64)0;
                sum = dot_vector(sum, _mm512_set1_epi8(1), _mm512_maskz_loadu_epi8(mask, x + i));
            }
            *sums++ = _mm512_reduce_add_epi32(sum);
        }
    }
}

/* offset - 128 in the low word of each column, 0 in the high one: for VPDPWSSD with a sum of x and its sign. */
INLINE __m512i offset_words(const char *offsets)
{
    return _mm512_maskz_sub_epi16(0x55555555, widen(offsets), _mm512_set1_epi32(128));
}

/* Adds a group's share to the totals of a row in 16 columns. */
INLINE void add_group(char *total, __m512i codes, __m512i scales, __m512i offsets, int32_t row_sum)
{
    __m512i sum = _mm512_dpwssd_epi32(_mm512_load_si512(total), offsets, _mm512_set1_epi32(row_sum));
    _mm512_store_si512(total, _mm512_add_epi32(sum, _mm512_mullo_epi32(codes, scales)));
}

#define WITH_ROWS(rows, function, ...)           \
    switch (rows) {                              \
    case 3: function(3, __VA_ARGS__); break;     \
    case 4: function(4, __VA_ARGS__); break;     \
    case 5: function(5, __VA_ARGS__); break;     \
    case 6: function(6, __VA_ARGS__); break;     \
    case 7: function(7, __VA_ARGS__); break;     \
    case 8: function(8, __VA_ARGS__); break;     \
    case 9: function(9, __VA_ARGS__); break;     \
    case 10: function(10, __VA_ARGS__); break;   \
    default: function(11, __VA_ARGS__); break;   \
    }

#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10)

/* Add k from k0 to k1 to the totals of `rows` rows from `row` on; `data` is the group of k0. Fetches as many bytes
 * from `fetch` on as it reads.
 */
INLINE void code_rows(int rows, const llmos_product *p, half to, const char *data, int64_t k0, int64_t k1,
                      int32_t row, const char *fetch)
{
    const int64_t ldx = p->ldx;
    const int8_t *x = (const int8_t *)p->x + row * ldx;
    const int32_t *row_sums = to.row_sums + row * to.num_groups;
    char *totals = to.totals + (int64_t)row * COLUMNS * 4;
    for (int64_t group = k0; group < k1; group += GROUP, data += GROUP_BYTES) {
        pairs s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0}, s8 = {0}, s9 = {0},
              s10 = {0};
        const int64_t end = group + GROUP < k1 ? group + GROUP : k1;
        const char *codes = data + 2 * COLUMNS + 4 * to.column;
        for (int64_t i = group; i < end; codes += 4 * COLUMNS, fetch += 2 * COLUMNS) {
            const __m512i a = _mm512_loadu_si512(codes), b = _mm512_loadu_si512(codes + 64);
            pairs nibbles = {low_nibbles(a), low_nibbles(b)};
            prefetch(fetch, 2 * COLUMNS);
#define ADD(r) \
    if (rows > r) { \
        const __m512i four = four_of(x + r * ldx + i); \
        s##r = (pairs){dot_vector(s##r.a, nibbles.a, four), dot_vector(s##r.b, nibbles.b, four)}; \
    }
            EACH_ROW(ADD)
            i += 4;
            nibbles = (pairs){low_nibbles(_mm512_srli_epi16(a, 4)), low_nibbles(_mm512_srli_epi16(b, 4))};
            EACH_ROW(ADD)
            i += 4;
        }
        const char *scale = data + to.column, *offset = scale + COLUMNS;
        const pairs scales = {widen(scale), widen(scale + 16)};
        const pairs offsets = {offset_words(offset), offset_words(offset + 16)};
#define TOTAL(r) \
    if (rows > r) { \
        const int32_t row_sum = row_sums[r * to.num_groups + group / GROUP]; \
        add_group(totals + r * COLUMNS * 4, s##r.a, scales.a, offsets.a, row_sum); \
        add_group(totals + r * COLUMNS * 4 + 64, s##r.b, scales.b, offsets.b, row_sum); \
    }
        EACH_ROW(TOTAL)
        __asm__ volatile("" ::: "memory"); /* or else gcc keeps totals from group to group, on the stack */
    }
#undef ADD
#undef TOTAL
}

TARGET static void code_block(int32_t rows, const llmos_product *p, half to, const char *data, int64_t k0,
                              int64_t k1, int32_t row, const char *fetch)
{
    WITH_ROWS(rows, code_rows, p, to, data, k0, k1, row, fetch)
}

TARGET static void store_totals(const llmos_product *p, int32_t n0)
{
    const columns to = columns_of(p, n0);
    for (int32_t row = 0; row < p->m; row++)
        store_exact(p, row, to, load_integers(p->scratch + (int64_t)row * COLUMNS * 4));
}

TARGET static void code_tile(const llmos_product *p, const char *data, int32_t n0)
{
    const int64_t k = padded_k(p->w->k), depth_bytes = DEPTH / GROUP * GROUP_BYTES;
    const int32_t blocks = num_blocks(p->m, ROWS);
    const char *fetch = data + depth_bytes;
    memset(p->scratch, 0, (size_t)p->m * COLUMNS * 4);
    fetch_results(p, 0, p->m, n0);
    for (int64_t k0 = 0; k0 < k; k0 += DEPTH, data += depth_bytes) {
        const int64_t k1 = k0 + DEPTH < k ? k0 + DEPTH : k;
        for (int32_t column = 0; column < COLUMNS; column += COLUMNS / 2) {
            const half to = {column, p->scratch + column * 4, row_sums_of(p), num_groups_of(p)};
            for (int32_t i = 0; i < blocks; i++) {
                const int32_t row = block_start(p->m, blocks, i);
                code_block(block_start(p->m, blocks, i + 1) - row, p, to, data, k0, k1, row, fetch);
            }
            fetch += (k1 - k0) * COLUMNS / 4;
        }
    }
    store_totals(p, n0);
}

TARGET void llmos_w4_tile_avx512(const llmos_product *p, const char *data, int32_t n0)
{
    if (p->m == 1)
        decoded_rows(1, p, data, n0);
    else if (p->m == DECODED_ROWS)
        decoded_rows(DECODED_ROWS, p, data, n0);
    else
        code_tile(p, data, n0);
}

#endif
