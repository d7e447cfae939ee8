/* RMSNorm of rows; included by kernels_<variant>.c behind _simd.h. */

static void rms_norm(const float *x, int64_t ldx, const float *weight, float epsilon, int32_t m, int32_t k, float *y,
                     int64_t ldy)
{
    int32_t whole = k & ~15, pairs = k & ~31, rest = k - whole;
    for (int32_t row = 0; row < m; row++, x += ldx, y += ldy) {
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
        vf factor = vf_set(1.0f / sqrtf(vf_sum(vf_add(even, odd)) / (float)k + epsilon));
        for (int32_t i = 0; i < whole; i += 16)
            vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), factor), vf_load(weight + i)));
        if (rest)
            vf_store_first(y + whole,
                           vf_mul(vf_mul(vf_load_first(x + whole, rest), factor), vf_load_first(weight + whole, rest)),
                           rest);
    }
}
