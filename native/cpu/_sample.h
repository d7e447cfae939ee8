/* What sampling does to every logit; included by _variant_kernels.h behind _simd.h.
 *
 * Plain loops of fixed length, which the compiler turns into instructions of the variant: fp64, and without fused
 * products every variant has the same bits.
 */
#include "_power.h"

/* The scores of a segment, in place or in `buffer`; -infinity behind the last. Where they lie is computed once: Python's
 * flags let signed integers wrap around, so that gcc makes no vectors of a loop over raw[first + i].
 */
INLINE const double *segment_scores(const llmos_scores *from, int32_t segment, double *buffer)
{
    int64_t first = (int64_t)segment * LLMOS_SEGMENT, left = from->n - first;
    if (from->adjusted != NULL)
        return from->adjusted + first;
    const float *raw = from->raw + first;
    if (left >= LLMOS_SEGMENT) {
        for (int i = 0; i < LLMOS_SEGMENT; i++)
            buffer[i] = (double)raw[i];
        return buffer;
    }
    for (int i = 0; i < LLMOS_SEGMENT; i++)
        buffer[i] = i < left ? (double)raw[i] : -(double)INFINITY;
    return buffer;
}

INLINE void weigh(const double *scores, llmos_weighting by, double *weights)
{
    for (int i = 0; i < LLMOS_SEGMENT; i++)
        weights[i] = power_of_two((scores[i] - by.largest) * by.slope);
}

static void segment_maxima(const llmos_scores *from, double *maxima)
{
    double buffer[LLMOS_SEGMENT], largest[LLMOS_SEGMENT / 2];
    for (int32_t segment = 0; segment * LLMOS_SEGMENT < from->n; segment++) {
        const double *scores = segment_scores(from, segment, buffer);
        for (int i = 0; i < LLMOS_SEGMENT / 2; i++)
            largest[i] = scores[i] > scores[i + LLMOS_SEGMENT / 2] ? scores[i] : scores[i + LLMOS_SEGMENT / 2];
#pragma GCC unroll 8
        for (int half = LLMOS_SEGMENT / 4; half; half /= 2)
            for (int i = 0; i < half; i++)
                largest[i] = largest[i] > largest[i + half] ? largest[i] : largest[i + half];
        maxima[segment] = largest[0];
    }
}

static int32_t count_not_finite(const float *x, int32_t n)
{
    int32_t num_bad = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        num_bad += (bits & 0x7f800000u) == 0x7f800000u;
    }
    return num_bad;
}

/* What is not finite is only seen here; then all are looked at again and counted. */
static int32_t survey(const float *logits, int32_t n, float *surveyed)
{
    vf bits = vf_set(0.0f);
    for (int32_t first = 0; first < n; first += LLMOS_SEGMENT) {
        const float *from = logits + first;
        float last[LLMOS_SEGMENT];
        if (n - first < LLMOS_SEGMENT) {
            for (int i = 0; i < LLMOS_SEGMENT; i++)
                last[i] = from[i < n - first ? i : 0];
            from = last;
        }
        vf a = vf_load(from), b = vf_load(from + 16), c = vf_load(from + 32), d = vf_load(from + 48);
        bits = vf_larger_bits(vf_larger_bits(vf_abs(a), vf_abs(b)), bits);
        bits = vf_larger_bits(vf_larger_bits(vf_abs(c), vf_abs(d)), bits);
        *surveyed++ = vf_largest(vf_max(vf_max(a, b), vf_max(c, d))) + 0.0f; /* of two zeros the positive one */
    }
    return vf_largest_bits(bits) < 0x7f800000u ? 0 : count_not_finite(logits, n);
}

static void segment_sums(const llmos_scores *from, llmos_weighting by, double *sums)
{
    double buffer[LLMOS_SEGMENT], weights[LLMOS_SEGMENT];
    for (int32_t segment = 0; segment * LLMOS_SEGMENT < from->n; segment++) {
        weigh(segment_scores(from, segment, buffer), by, weights);
#pragma GCC unroll 8
        for (int half = LLMOS_SEGMENT / 2; half; half /= 2)
            for (int i = 0; i < half; i++)
                weights[i] += weights[i + half];
        sums[segment] = weights[0];
    }
}

static void weigh_segment(const llmos_scores *from, int32_t segment, llmos_weighting by, double *scores,
                          double *weights)
{
    double buffer[LLMOS_SEGMENT];
    const double *given = segment_scores(from, segment, buffer);
    memcpy(scores, given, sizeof buffer);
    weigh(given, by, weights);
}
