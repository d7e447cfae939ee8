/* What an item of attention keeps, and the sizes of register tiles; included by _attention.h. */
#include "_attention_plan.h"

#if defined(SIMD_AVX512) /* 32 registers */
enum { KEY_ROWS = 12, KEY_TILES = 2, FEW_ROWS = 4, FEW_TILES = 4, VALUE_ROWS = 6, VALUE_COLUMNS = 4,
       INT8_ROWS = 4, INT8_COLUMNS = 2 };
#else /* 16, half as wide */
enum { KEY_ROWS = 4, KEY_TILES = 1, FEW_ROWS = 2, FEW_TILES = 2, VALUE_ROWS = 4, VALUE_COLUMNS = 1,
       INT8_ROWS = 1, INT8_COLUMNS = 1 };
#endif

/* Heights of register tiles, largest first; those above `limit` compile to nothing. */
#define FOR_ROWS(limit, rows, CALL)                                                                                    \
    for (int32_t row = 0, left = rows; left > 0;) {                                                                    \
        if ((limit) >= 12 && left >= 12) { CALL(12); row += 12, left -= 12; }                                          \
        else if ((limit) >= 8 && left >= 8) { CALL(8); row += 8, left -= 8; }                                          \
        else if ((limit) >= 6 && left >= 6) { CALL(6); row += 6, left -= 6; }                                          \
        else if ((limit) >= 4 && left >= 4) { CALL(4); row += 4, left -= 4; }                                          \
        else if ((limit) >= 3 && left >= 3) { CALL(3); row += 3, left -= 3; }                                          \
        else if ((limit) >= 2 && left >= 2) { CALL(2); row += 2, left -= 2; }                                          \
        else { CALL(1); row += 1, left -= 1; }                                                                         \
    }

typedef struct {
    float *q;       /* [rows][QUERY_STRIDE], scaled; for int8 keys the bytes of pack_query_int8 */
    float *scores;  /* [rows][SCORE_STRIDE]; for int8 values then the bytes of weigh_row_int8 */
    float *sums;    /* [rows][sum_stride] */
    float *best;    /* [rows] largest score so far */
    float *total;   /* [rows] sum of weights so far */
    float *q_scale; /* [rows] int8 keys only */
    int32_t *q_sum; /* [rows] of a row's integers, times 128 */
    float *w_scale; /* [rows] of a row's weights of a chunk */
    int64_t sum_stride;
} attention_scratch_t;

static attention_scratch_t attention_scratch(const llmos_kv *kv, void *base)
{
    int64_t rows = attention_scratch_rows(kv), stride = attention_sum_stride(kv);
    attention_scratch_t s = {.q = base, .sum_stride = stride};
    s.scores = s.q + rows * QUERY_STRIDE;
    s.sums = s.scores + rows * SCORE_STRIDE;
    s.best = s.sums + rows * stride;
    s.total = s.best + rows;
    s.q_scale = s.total + rows;
    s.q_sum = (int32_t *)(s.q_scale + rows);
    s.w_scale = s.q_scale + 2 * rows;
    return s;
}
