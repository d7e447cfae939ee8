/* Products with AVX-512 and VNNI: a register tile of up to 6 rows by 64 columns, 24 accumulators.
 *
 * Weights are the unsigned operand of VPDPBUSD (w + 128), activations the signed one, broadcast four k at a time;
 * 128 times the row's sum is taken away at the end.
 */
#include "_gemm_avx512.h"

#if defined(__x86_64__)
#include <math.h>

enum {
    ROWS = 6,         /* of a register tile */
    AHEAD = 4096,     /* bytes that are fetched before they are read */
    FEW_BLOCKS = 3    /* of rows: memory is the limit, and what comes next must not be fetched too early */
};

/* Part of a tile: k from k0 to k1, weights at data. While it is computed, what will be read after it is fetched
 * from memory, in order, `fetch_step` bytes for each step of the inner loop: neither memory nor arithmetic waits.
 */
typedef struct {
    const char *data;
    int64_t k0, k1;
    const char *fetch;
    int64_t fetch_step;
} panel;

/* Calls `function` with its first argument, the number of rows, a constant. */
#define WITH_ROWS(rows, function, ...)           \
    switch (rows) {                              \
    case 1: function(1, __VA_ARGS__); break;     \
    case 2: function(2, __VA_ARGS__); break;     \
    case 3: function(3, __VA_ARGS__); break;     \
    case 4: function(4, __VA_ARGS__); break;     \
    case 5: function(5, __VA_ARGS__); break;     \
    default: function(6, __VA_ARGS__); break;    \
    }

#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)

/* --- floating point ------------------------------------------------------------------------------------ */

INLINE __m512 half_floats(const uint16_t *data)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)data));
}

INLINE floats load_partial(const float *data)
{
    return (floats){_mm512_loadu_ps(data), _mm512_loadu_ps(data + 16), _mm512_loadu_ps(data + 32),
                    _mm512_loadu_ps(data + 48)};
}

INLINE void save_partial(float *data, floats sums)
{
    _mm512_storeu_ps(data, sums.a);
    _mm512_storeu_ps(data + 16, sums.b);
    _mm512_storeu_ps(data + 32, sums.c);
    _mm512_storeu_ps(data + 48, sums.d);
}

/* The 64 weights of one k as fp32. */
INLINE floats load_floats(int32_t format, const char *data)
{
    const uint16_t *halves = (const uint16_t *)data;
    if (format == LLMOS_FP32)
        return load_partial((const float *)data);
    if (format == LLMOS_FP16)
        return (floats){half_floats(halves), half_floats(halves + 16), half_floats(halves + 32),
                        half_floats(halves + 48)};
    const __m512i low = _mm512_loadu_si512(data), high = _mm512_loadu_si512(data + 64);
    const __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000);
    return (floats){_mm512_castsi512_ps(_mm512_slli_epi32(low, 16)),
                    _mm512_castsi512_ps(_mm512_and_si512(low, upper)),
                    _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)),
                    _mm512_castsi512_ps(_mm512_and_si512(high, upper))};
}

INLINE floats multiply_add(floats sums, floats weights, __m512 x)
{
    return (floats){_mm512_fmadd_ps(x, weights.a, sums.a), _mm512_fmadd_ps(x, weights.b, sums.b),
                    _mm512_fmadd_ps(x, weights.c, sums.c), _mm512_fmadd_ps(x, weights.d, sums.d)};
}

/* `rows` rows from `row` on. Sums of earlier panels come from partial, and go there from all but the last one. */
INLINE void float_rows(int rows, int32_t format, const llmos_product *p, panel part, int32_t row, int32_t n0)
{
    const int64_t ldx = p->ldx, step = COLUMNS * (format == LLMOS_FP32 ? 4 : 2);
    const float *x = (const float *)p->x + row * ldx;
    float *partial = (float *)p->scratch + (int64_t)row * COLUMNS;
    const char *data = part.data, *fetch = part.fetch;
    floats s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0};
    if (part.k1 == p->w->k)
        fetch_results(p, row, rows, n0);
    if (part.k0 > 0) {
#define LOAD(r) \
    if (rows > r) \
        s##r = load_partial(partial + r * COLUMNS);
        EACH_ROW(LOAD)
    }
    for (int64_t k = part.k0; k < part.k1; k++, data += step, fetch += part.fetch_step) {
        const floats weights = load_floats(format, data);
        prefetch(fetch, step);
#define ADD(r) \
    if (rows > r) \
        s##r = multiply_add(s##r, weights, _mm512_set1_ps(x[r * ldx + k]));
        EACH_ROW(ADD)
    }
    if (part.k1 == p->w->k) {
        const columns to = columns_of(p, n0);
#define STORE(r) \
    if (rows > r) \
        store_row(p, row + r, to, s##r);
        EACH_ROW(STORE)
    } else {
#define SAVE(r) \
    if (rows > r) \
        save_partial(partial + r * COLUMNS, s##r);
        EACH_ROW(SAVE)
    }
#undef LOAD
#undef ADD
#undef STORE
#undef SAVE
}

TARGET static void float_block(int32_t rows, const llmos_product *p, panel part, int32_t row, int32_t n0)
{
    if (p->w->format == LLMOS_FP32) {
        WITH_ROWS(rows, float_rows, LLMOS_FP32, p, part, row, n0)
    } else if (p->w->format == LLMOS_FP16) {
        WITH_ROWS(rows, float_rows, LLMOS_FP16, p, part, row, n0)
    } else {
        WITH_ROWS(rows, float_rows, LLMOS_BF16, p, part, row, n0)
    }
}

/* --- integers ------------------------------------------------------------------------------------------ */

#define INTEGER_SUMS integers s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0};
#define ADD_FOUR(r) \
    if (rows > r) \
        s##r = dot(s##r, weights, four_of(x + r * ldx + i));
#define STORE_INTEGERS(r) \
    if (rows > r) \
        store_integers(p, row + r, to, s##r);

INLINE void w8_rows(int rows, const llmos_product *p, panel part, int32_t row, int32_t n0)
{
    const int64_t ldx = p->ldx;
    const int8_t *x = (const int8_t *)p->x + row * ldx;
    char *partial = p->scratch + (int64_t)row * COLUMNS * 4;
    const char *data = part.data, *fetch = part.fetch;
    INTEGER_SUMS
    if (part.k1 >= p->w->k)
        fetch_results(p, row, rows, n0);
    if (part.k0 > 0) {
#define LOAD(r) \
    if (rows > r) \
        s##r = load_integers(partial + r * COLUMNS * 4);
        EACH_ROW(LOAD)
    }
    for (int64_t i = part.k0; i < part.k1; i += 4, data += 4 * COLUMNS, fetch += part.fetch_step) {
        const integers weights = load_integers(data);
        prefetch(fetch, 4 * COLUMNS);
        EACH_ROW(ADD_FOUR)
    }
    if (part.k1 >= p->w->k) {
        const columns to = columns_of(p, n0);
        EACH_ROW(STORE_INTEGERS)
    } else {
#define SAVE(r) \
    if (rows > r) \
        save_integers(partial + r * COLUMNS * 4, s##r);
        EACH_ROW(SAVE)
    }
#undef LOAD
#undef SAVE
}

TARGET static void w8_block(int32_t rows, const llmos_product *p, panel part, int32_t row, int32_t n0)
{
    WITH_ROWS(rows, w8_rows, p, part, row, n0)
}

/* --- tiles --------------------------------------------------------------------------------------------- */

/* Bytes of `depth` k of a tile, whole groups of them if there are groups. */
static int64_t depth_bytes(int32_t format, int64_t depth)
{
    return format == LLMOS_FP32   ? depth * COLUMNS * 4
           : format == LLMOS_W8A8 ? depth * COLUMNS
           : format == LLMOS_W4A8 ? depth * COLUMNS / 2 + depth / GROUP * 2 * COLUMNS
                                  : depth * COLUMNS * 2;
}

/* The k of a panel; whole groups. */
static int64_t panel_depth(int32_t format, int32_t blocks)
{
    int64_t size_bytes = blocks <= FEW_BLOCKS ? 16 << 10 : 128 << 10;
    if (format == LLMOS_W4A8)
        return blocks <= FEW_BLOCKS ? 512 : 2048;
    return size_bytes / depth_bytes(format, 1);
}

static void panel_blocks(const llmos_product *p, panel part, int32_t n0)
{
    int is_integer = p->w->format == LLMOS_W8A8 || p->w->format == LLMOS_W4A8;
    int32_t blocks = num_blocks(p->m, ROWS);
    int64_t steps = (part.k1 - part.k0) / (is_integer ? 4 : 1);
    for (int32_t i = 0; i < blocks; i++) {
        int32_t row = block_start(p->m, blocks, i), rows = block_start(p->m, blocks, i + 1) - row;
        (is_integer ? w8_block : float_block)(rows, p, part, row, n0);
        part.fetch += steps * part.fetch_step;
    }
}

/* Few rows: weights come from memory and are used once. */
static void narrow_tile(const llmos_product *p, const char *data, int32_t n0)
{
    int32_t format = p->w->format;
    int64_t k = format == LLMOS_W8A8 ? padded_k(p->w->k) : p->w->k;
    int64_t step = format == LLMOS_FP32 || format == LLMOS_W8A8 ? 4 * COLUMNS : 2 * COLUMNS;
    panel_blocks(p, (panel){data, 0, k, data + AHEAD, step}, n0);
}

/* Many rows: a panel of weights stays in the cache for all of them. */
static void wide_tile(const llmos_product *p, const char *data, int32_t n0)
{
    const llmos_weight *w = p->w;
    int is_integer = w->format == LLMOS_W8A8 || w->format == LLMOS_W4A8;
    int64_t k = is_integer ? padded_k(w->k) : w->k, depth = panel_depth(w->format, num_blocks(p->m, ROWS));
    int64_t size_bytes = depth_bytes(w->format, depth);
    int64_t steps = depth / (is_integer ? 4 : 1) * num_blocks(p->m, ROWS);
    char *bytes = p->scratch + (int64_t)p->m * COLUMNS * 4;
    for (int64_t k0 = 0; k0 < k; k0 += depth, data += size_bytes) {
        panel part = {data, k0, k0 + depth < k ? k0 + depth : k, data + size_bytes,
                      (size_bytes + steps - 1) / steps};
        if (w->format == LLMOS_W4A8) {
            llmos_w4_unpack_avx512(data, part.k1 - k0, bytes);
            part.data = bytes;
        }
        panel_blocks(p, part, n0);
    }
}

static void begin(const llmos_product *p)
{
    if (p->w->format == LLMOS_W4A8 && p->m <= W4_MOST_ROWS)
        llmos_w4_begin_avx512(p);
}

static void tile(const llmos_product *p, int32_t n0)
{
    if (p->w->format == LLMOS_W4A8 && p->m <= W4_MOST_ROWS)
        llmos_w4_tile_avx512(p, tile_data(p->w, n0), n0);
    else
        (p->m <= ROWS ? narrow_tile : wide_tile)(p, tile_data(p->w, n0), n0);
}

TARGET static float largest(const float *values, int32_t count)
{
    __m512 best = _mm512_set1_ps(-INFINITY);
    for (int32_t i = 0; i < count; i += 16) {
        __mmask16 mask = column_mask(count, i);
        /* the second operand where one is NaN */
        best = _mm512_max_ps(_mm512_mask_loadu_ps(best, mask, values + i), best);
    }
    return _mm512_reduce_max_ps(best);
}

const llmos_gemm_kernels llmos_gemm_avx512 = {begin, tile, largest};
#endif
