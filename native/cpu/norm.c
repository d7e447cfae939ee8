/* RMSNorm, by the variant in use. */
#include "norm.h"

#include "_kernels.h"

void llmos_rms_norm(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k,
                    float *y, int64_t ldy)
{
    llmos_kernels_now()->rms_norm(x, ldx, weight, epsilon, m, k, y, ldy);
}

void llmos_rms_norm_int8(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k,
                         int8_t *q, int64_t ldq, float *scale, int32_t *sum)
{
    llmos_kernels_now()->rms_norm_int8(x, ldx, weight, epsilon, m, k, q, ldq, scale, sum);
}
