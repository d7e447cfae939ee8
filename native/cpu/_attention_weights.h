/* Scores to weights, whatever the format; included by _attention.h. */

/* A row's scores of keys [from, to), from a multiple of 16 on: -inf for those around them. Returned is the largest. */
INLINE float mask_scores(float *scores, int32_t from, int32_t to)
{
    vf lowest = vf_set(-INFINITY), largest = lowest;
    for (int32_t i = from & ~15; i < to; i += 16) {
        vf x = vf_load(scores + i);
        if (i < from || i + 16 > to) {
            x = vf_select(x, lowest, i < from ? from - i : 0, i + 16 > to ? to - i : 16);
            vf_store(scores + i, x);
        }
        largest = vf_max(x, largest);
    }
    return vf_largest(largest);
}

/* Take a chunk's largest score: what a row has summed is rescaled to the new maximum, which is returned. */
INLINE float raise_best(const attention_scratch_t *s, int32_t row, float largest)
{
    float before = s->best[row], best = largest > before ? largest : before, factor[16];
    vf carry = vf_exp2(vf_set(before - best));
    float *sums = s->sums + row * s->sum_stride;
    for (int64_t i = 0; i < s->sum_stride; i += 16)
        vf_store(sums + i, vf_mul(vf_load(sums + i), carry));
    vf_store(factor, carry);
    s->best[row] = best;
    s->total[row] *= factor[0];
    return best;
}

/* Turn a row's scores of keys [from, to) into weights. */
INLINE void weigh_row(const attention_scratch_t *s, int32_t row, int32_t from, int32_t to)
{
    float *scores = s->scores + (int64_t)row * SCORE_STRIDE;
    vf base = vf_set(raise_best(s, row, mask_scores(scores, from, to))), sum = vf_set(0.0f);
    for (int32_t i = from & ~15; i < to; i += 16) {
        vf weight = vf_exp2(vf_sub(vf_load(scores + i), base));
        sum = vf_add(sum, weight);
        vf_store(scores + i, weight);
    }
    s->total[row] += vf_sum(sum);
}
