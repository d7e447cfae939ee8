/* RMSNorm of rows, to fp32 or int8; included by _variant_kernels.h behind _simd.h. */

/* What a row is multiplied by. */
INLINE float norm_factor(const float *x, float epsilon, int32_t k)
{
    int32_t whole = k & ~15, pairs = k & ~31, rest = k - whole;
    vf even = vf_set(0.0f), odd = vf_set(0.0f);
    for (int32_t i = 0; i < pairs; i += 32) {
        vf a = vf_load(x + i), b = vf_load(x + i + 16);
        even = vf_fma(a, a, even);
        odd = vf_fma(b, b, odd);
    }
    if (pairs < whole) {
        vf a = vf_load(x + pairs);
        even = vf_fma(a, a, even);
    }
    if (rest) {
        vf a = vf_load_first(x + whole, rest);
        odd = vf_fma(a, a, odd);
    }
    return 1.0f / sqrtf(vf_sum(vf_add(even, odd)) / (float)k + epsilon);
}

/* Sixteen results, or the last ones with 0 behind them. */
INLINE vf norm_vector(const float *x, const float *weight, vf factor, int32_t i, int32_t k)
{
    if (i + 16 <= k)
        return vf_mul(vf_mul(vf_load(x + i), factor), vf_load(weight + i));
    return vf_mul(vf_mul(vf_load_first(x + i, k - i), factor), vf_load_first(weight + i, k - i));
}

static void rms_norm(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k, float *y,
                     int64_t ldy)
{
    int32_t whole = k & ~15;
    for (int32_t row = 0; row < m; row++, x += ldx, y += ldy) {
        vf factor = vf_set(norm_factor(x, epsilon, k));
        for (int32_t i = 0; i < whole; i += 16)
            vf_store(y + i, norm_vector(x, weight, factor, i, k));
        if (whole < k)
            vf_store_first(y + whole, norm_vector(x, weight, factor, whole, k), k - whole);
    }
}

/* A result as a whole number. In this order NaN does not pass. */
INLINE vf round_int8(vf a, vf inverse)
{
    return vf_round(vf_min(vf_max(vf_mul(a, inverse), vf_set(-127.0f)), vf_set(127.0f)));
}

/* Results are computed twice, once for the largest and once to be rounded: cheaper than to store and load them. */
static void rms_norm_int8(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k,
                          int8_t *q, int64_t ldq, float *scale, int32_t *sum)
{
    const vf zero = vf_set(0.0f);
    for (int32_t row = 0; row < m; row++, x += ldx, q += ldq) {
        vf factor = vf_set(norm_factor(x, epsilon, k)), even = zero, odd = zero;
        vf even_zero = zero, odd_zero = zero; /* NaN after NaN or an infinity, which a maximum may lose */
        int32_t i = 0;
        for (; i + 32 <= k; i += 32) {
            vf a = norm_vector(x, weight, factor, i, k), b = norm_vector(x, weight, factor, i + 16, k);
            even = vf_max(vf_abs(a), even);
            odd = vf_max(vf_abs(b), odd);
            even_zero = vf_fma(a, zero, even_zero);
            odd_zero = vf_fma(b, zero, odd_zero);
        }
        for (; i < k; i += 16) {
            vf a = norm_vector(x, weight, factor, i, k);
            even = vf_max(vf_abs(a), even);
            even_zero = vf_fma(a, zero, even_zero);
        }
        float largest = vf_largest(vf_max(even, odd));
        vf inverse = vf_set(largest > 0.0f ? 127.0f / largest : 0.0f);
        vf even_sum = zero, odd_sum = zero; /* exact: whole numbers below 2^24 */
        for (i = 0; i + 32 <= k; i += 32) {
            vf a = round_int8(norm_vector(x, weight, factor, i, k), inverse);
            vf b = round_int8(norm_vector(x, weight, factor, i + 16, k), inverse);
            even_sum = vf_add(even_sum, a);
            odd_sum = vf_add(odd_sum, b);
            vf_store_int8(q + i, a);
            vf_store_int8(q + i + 16, b);
        }
        for (; i < k; i += 16) {
            vf a = round_int8(norm_vector(x, weight, factor, i, k), inverse);
            even_sum = vf_add(even_sum, a);
            if (i + 16 <= k) {
                vf_store_int8(q + i, a);
                continue;
            }
            int8_t last[16];
            vf_store_int8(last, a);
            memcpy(q + i, last, (size_t)((k - i + 7) / 8 * 8));
        }
        scale[row] = largest / 127.0f + vf_sum(vf_add(even_zero, odd_zero));
        sum[row] = (int32_t)vf_sum(vf_add(even_sum, odd_sum));
    }
}
