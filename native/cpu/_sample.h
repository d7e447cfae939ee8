/* What sampling does to every logit; included by kernels_<variant>.c behind _simd.h.
 *
 * Plain loops of fixed length, which the compiler turns into instructions of the variant: fp64, and without fused
 * products every variant has the same bits.
 */

/* The scores of a segment, in place or in `buffer`; -infinity behind the last. */
INLINE const double *segment_scores(const llmos_scores *from, int32_t segment, double *buffer)
{
    int32_t first = segment * LLMOS_SEGMENT, left = from->n - first;
    if (from->adjusted != NULL)
        return from->adjusted + first;
    if (left >= LLMOS_SEGMENT) {
        for (int i = 0; i < LLMOS_SEGMENT; i++)
            buffer[i] = (double)from->raw[first + i];
        return buffer;
    }
    for (int i = 0; i < LLMOS_SEGMENT; i++)
        buffer[i] = i < left ? (double)from->raw[first + i] : -(double)INFINITY;
    return buffer;
}

/* 2^y for y <= 0, within 2 units in the last place; 1 at 0, 0 below -1021 and for NaN.
 * 1 + y q(y) of degree 11 on [-1/2, 1/2], q through the Chebyshev nodes: 2e-17 off there, before rounding.
 */
INLINE double power_of_two(double y)
{
    double shifted = y + 0x1.8p52, part = y - (shifted - 0x1.8p52); /* the whole part is in the low bits */
    double p = 0x1.e9d3fe3952179p-32;
    p = p * part + 0x1.e6063f7217bc6p-28;
    p = p * part + 0x1.b524fae627834p-24;
    p = p * part + 0x1.62bfd47773353p-20;
    p = p * part + 0x1.ffcbfc670dcd4p-17;
    p = p * part + 0x1.430913096fd9fp-13;
    p = p * part + 0x1.5d87fe78a5276p-10;
    p = p * part + 0x1.3b2ab6fba1ddap-7;
    p = p * part + 0x1.c6b08d704a0c2p-5;
    p = p * part + 0x1.ebfbdff82c598p-3;
    p = p * part + 0x1.62e42fefa39efp-1;
    p = p * part + 1.0;
    uint64_t bits, whole;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&whole, &shifted, sizeof whole);
    bits = (bits + (whole << 52)) & -(uint64_t)(y >= -1021.0); /* a mask, no branch: loops stay vectors */
    memcpy(&p, &bits, sizeof p);
    return p;
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
