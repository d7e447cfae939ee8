/* Scores to weights, whatever the format; included by _attention.h. */

/* Turn a row's scores of keys [from, to) into weights; what it has summed is rescaled to the new maximum. Weights of
 * int8 values take these values' scales with them; returned is the largest of them.
 */
INLINE float weigh_row(const attention_scratch_t *s, attention_tiles *tiles, int32_t row, int32_t from, int32_t to,
                       int32_t width, int32_t num_lines, const int is_int8)
{
    float *scores = s->scores + (int64_t)row * SCORE_STRIDE;
    int32_t first = from & ~15;
    vf zero = vf_set(0.0f), lowest = vf_set(-INFINITY), largest = lowest;
    for (int32_t i = first; i < to; i += 16) {
        vf x = vf_load(scores + i);
        if (i < from || i + 16 > to) {
            x = vf_select(x, lowest, i < from ? from - i : 0, i + 16 > to ? to - i : 16);
            vf_store(scores + i, x);
        }
        largest = vf_max(x, largest);
    }
    float before = s->best[row], best = vf_largest(largest);
    best = best > before ? best : before;
    vf base = vf_set(best), sum = zero, carry = vf_exp2(vf_set(before - best));
    largest = zero;
    for (int32_t i = first; i < to; i += 16) {
        vf weight = vf_exp2(vf_sub(vf_load(scores + i), base));
        sum = vf_add(sum, weight);
        if (is_int8) {
            fetch_next(tiles, num_lines);
            float scales[16] = {0};
            if (width < 16)
                for (int32_t j = 0; j < 16 && i + j < to; j++)
                    scales[j] = i + j < from ? 0.0f : tiles->value_scales[(i + j) / width][(i + j) % width];
            weight = vf_mul(weight, vf_load(width < 16 ? scales : tiles->value_scales[i / 16]));
            if (i < from || i + 16 > to) /* what is not seen may have any scale */
                weight = vf_select(weight, zero, i < from ? from - i : 0, i + 16 > to ? to - i : 16);
            largest = vf_max(weight, largest);
        }
        vf_store(scores + i, weight);
    }
    float factor[16];
    vf_store(factor, carry);
    s->best[row] = best;
    s->total[row] = s->total[row] * factor[0] + vf_sum(sum);
    float *sums = s->sums + row * s->sum_stride;
    for (int64_t i = 0; i < s->sum_stride; i += 16)
        vf_store(sums + i, vf_mul(vf_load(sums + i), carry));
    return is_int8 ? vf_largest(largest) : 0.0f;
}
