/* Products with packed weights: from calls to tiles, and the argmax of a slice of the vocabulary. */
#include "_gemm.h"

#include <math.h>

enum {
    ARGMAX_COLUMNS = 512, /* looked at together: long enough to forget the call, short enough for the cache */
    ALIGNMENT = 64
};

static const llmos_gemm_kernels *kernels_of(int32_t variant)
{
#if defined(__x86_64__)
    if (variant == LLMOS_AVX512)
        return &llmos_gemm_avx512;
    if (variant == LLMOS_AVX2)
        return &llmos_gemm_avx2;
#endif
    (void)variant;
    return &llmos_gemm_plain;
}

static int64_t argmax_bytes(int32_t m)
{
    return (int64_t)m * ARGMAX_COLUMNS * (int64_t)sizeof(float);
}

int64_t llmos_gemm_scratch_bytes(const llmos_weight *w, int32_t m)
{
    /* a tile's partial sums for every row, its weights as bytes, sums of x; the variants share them out */
    int64_t row_bytes = COLUMNS * 4 + (w->format == LLMOS_W4A8 ? (int64_t)num_blocks(w->k, GROUP) * 4 : 0);
    return argmax_bytes(m) + m * row_bytes + (int64_t)padded_k(w->k) * COLUMNS + ALIGNMENT;
}

static void begin(const llmos_gemm_kernels *kernels, const llmos_product *p)
{
    if (kernels->begin)
        kernels->begin(p);
}

static void run(const llmos_gemm_kernels *kernels, const llmos_product *p, int32_t n0, int32_t n1)
{
    for (int32_t n = n0; n < n1; n += COLUMNS)
        kernels->tile(p, n);
}

void llmos_gemm_variant(int32_t variant, const llmos_weight *w, const void *x, int64_t ldx,
                        const float *xscale, const int32_t *xsum, int32_t m, float *y, int64_t ldy,
                        int32_t accumulate, int32_t n0, int32_t n1, void *scratch)
{
    llmos_product p = {w, x, ldx, xscale, xsum, m, y, ldy, accumulate, scratch};
    const llmos_gemm_kernels *kernels = kernels_of(variant);
    begin(kernels, &p);
    run(kernels, &p, n0, n1);
}

void llmos_gemm(const llmos_weight *w, const void *x, int64_t ldx, const float *xscale, const int32_t *xsum,
                int32_t m, float *y, int64_t ldy, int32_t accumulate, int32_t n0, int32_t n1, void *scratch)
{
    llmos_gemm_variant(llmos_best_variant(), w, x, ldx, xscale, xsum, m, y, ldy, accumulate, n0, n1, scratch);
}

void llmos_gemm_argmax_variant(int32_t variant, const llmos_weight *w, const void *x, int64_t ldx,
                               const float *xscale, const int32_t *xsum, int32_t m, int32_t n0, int32_t n1,
                               float *value, int32_t *index, void *scratch)
{
    const llmos_gemm_kernels *kernels = kernels_of(variant);
    float *tile = scratch;
    char *rest = (char *)scratch + argmax_bytes(m);
    for (int32_t i = 0; i < m; i++) {
        value[i] = -INFINITY;
        index[i] = n0;
    }
    llmos_product p = {w, x, ldx, xscale, xsum, m, tile, ARGMAX_COLUMNS, 0, rest};
    begin(kernels, &p);
    for (int32_t from = n0; from < n1; from += ARGMAX_COLUMNS) {
        int32_t end = from + ARGMAX_COLUMNS < n1 ? from + ARGMAX_COLUMNS : n1;
        p.y = tile - from;
        run(kernels, &p, from, end);
        for (int32_t i = 0; i < m; i++) {
            const float *row = tile + (int64_t)i * ARGMAX_COLUMNS;
            float largest = kernels->largest(row, end - from);
            if (!(largest > value[i]))
                continue;
            value[i] = largest;
            index[i] = from;
            while (row[index[i] - from] != largest)
                index[i]++;
        }
    }
}

void llmos_gemm_argmax(const llmos_weight *w, const void *x, int64_t ldx, const float *xscale,
                       const int32_t *xsum, int32_t m, int32_t n0, int32_t n1,
                       float *value, int32_t *index, void *scratch)
{
    llmos_gemm_argmax_variant(llmos_best_variant(), w, x, ldx, xscale, xsum, m, n0, n1, value, index, scratch);
}
