#ifndef LLMOS_KERNELS_H
#define LLMOS_KERNELS_H
#include "_scores.h"
#include "activation.h"
#include "attention.h"
#include "kernels.h"
#include "norm.h"

/* What every variant implements: the bodies of _attention.h, _kv.h, _norm.h, _activation.h and _sample.h, compiled
 * once for each by kernels_<variant>.c.
 */
typedef struct {
    void (*rms_norm)(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k, float *y,
                     int64_t ldy);
    void (*rms_norm_int8)(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k,
                          int8_t *q, int64_t ldq, float *scale, int32_t *sum);
    void (*silu_mul)(const float *gate, const float *up, int64_t ld, int32_t m, int32_t size, float *y, int64_t ldy);
    void (*embed)(const void *table, int32_t format, int32_t dim, const int32_t *ids, int32_t m, float *y,
                  int64_t ldy);
    void (*rope_write_kv)(const llmos_kv *kv, const llmos_rope *rope, const llmos_span *spans, int32_t num_spans,
                          const int32_t *page_table, float *qkv, int64_t ld, int32_t t0, int32_t t1);
    void (*attention)(const llmos_kv *kv, const llmos_span *spans, int32_t num_spans, const int32_t *page_table,
                      const float *q, int64_t ldq, float *out, int64_t ldo, int32_t i0, int32_t i1, void *scratch);
    int32_t (*survey)(const float *logits, int32_t n, float *surveyed);
    void (*segment_maxima)(const llmos_scores *from, double *maxima);
    void (*segment_sums)(const llmos_scores *from, llmos_weighting by, double *sums);
    void (*weigh_segment)(const llmos_scores *from, int32_t segment, llmos_weighting by, double *scores,
                          double *weights);
} llmos_kernels;

/* Only gcc compiles one file for several targets the way these do. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LLMOS_HAS_X86
extern const llmos_kernels llmos_kernels_avx2, llmos_kernels_avx512;
#endif
extern const llmos_kernels llmos_kernels_plain;

/* Those in use. */
const llmos_kernels *llmos_kernels_now(void);

#endif
