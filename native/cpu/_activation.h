/* silu(gate) * up, and embedding; included by _variant_kernels.h behind _simd.h. */

INLINE vf silu(vf x)
{
    vf power = vf_exp2(vf_mul(x, vf_set(-1.4426950408889634f)));
    return vf_div(x, vf_add(vf_set(1.0f), power));
}

static void silu_mul(const float *gate, const float *up, int64_t ld, int32_t m, int32_t size, float *y, int64_t ldy)
{
    int32_t whole = size & ~15, rest = size - whole;
    for (int32_t row = 0; row < m; row++, gate += ld, up += ld, y += ldy) {
        for (int32_t i = 0; i < whole; i += 16)
            vf_store(y + i, vf_mul(silu(vf_load(gate + i)), vf_load(up + i)));
        if (rest)
            vf_store_first(y + whole,
                           vf_mul(silu(vf_load_first(gate + whole, rest)), vf_load_first(up + whole, rest)), rest);
    }
}

static void embed(const void *table, int32_t format, int32_t dim, const int32_t *ids, int32_t m, float *y,
                  int64_t ldy)
{
    for (int32_t row = 0; row < m; row++, y += ldy) {
        if (format == LLMOS_FP32) {
            memcpy(y, (const float *)table + (int64_t)ids[row] * dim, (size_t)dim * sizeof *y);
            continue;
        }
        const uint16_t *from = (const uint16_t *)table + (int64_t)ids[row] * dim;
        for (int32_t i = 0; i < dim; i += 16) {
            int32_t n = dim - i < 16 ? dim - i : 16;
            uint16_t bits[16] = {0};
            memcpy(bits, from + i, (size_t)n * sizeof *bits);
            vf_store_first(y + i, format == LLMOS_FP16 ? vf_load_fp16(bits) : vf_load_bf16(bits), n);
        }
    }
}
