/* Sixteen floats in plain C; see _simd.h for what each of these does. */

typedef struct {
    float x[16];
} vf;

#define LANES for (int i = 0; i < 16; i++)
INLINE vf vf_set(float x) { vf r; LANES r.x[i] = x; return r; }
INLINE vf vf_load(const float *p) { vf r; memcpy(&r, p, sizeof r); return r; }
INLINE void vf_store(float *p, vf a) { memcpy(p, &a, sizeof a); }
INLINE vf vf_add(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] + b.x[i]; return r; }
INLINE vf vf_sub(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] - b.x[i]; return r; }
INLINE vf vf_mul(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] * b.x[i]; return r; }
INLINE vf vf_div(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] / b.x[i]; return r; }
INLINE vf vf_fma(vf a, vf b, vf c) { vf r; LANES r.x[i] = a.x[i] * b.x[i] + c.x[i]; return r; }
INLINE vf vf_max(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] > b.x[i] ? a.x[i] : b.x[i]; return r; }
INLINE vf vf_min(vf a, vf b) { vf r; LANES r.x[i] = a.x[i] < b.x[i] ? a.x[i] : b.x[i]; return r; }
INLINE vf vf_round(vf a) { vf r; LANES r.x[i] = rintf(a.x[i]); return r; }
INLINE vf vf_scale(vf a, vf n)
{
    vf r;
    LANES {
        /* no conversion of what is not a small whole number, NaN above all */
        int32_t exponent = n.x[i] >= -126.0f && n.x[i] <= 127.0f ? (int32_t)n.x[i] : 0;
        uint32_t bits = (uint32_t)(exponent + 127) << 23;
        float power;
        memcpy(&power, &bits, sizeof power);
        r.x[i] = a.x[i] * power;
    }
    return r;
}
INLINE vf vf_zero_below(vf a, vf x, vf limit) { vf r; LANES r.x[i] = x.x[i] < limit.x[i] ? 0.0f : a.x[i]; return r; }
INLINE vf vf_select(vf a, vf b, int32_t from, int32_t to)
{
    vf r;
    LANES r.x[i] = i >= from && i < to ? a.x[i] : b.x[i];
    return r;
}
INLINE float vf_sum(vf a)
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.x[i] += a.x[i + half];
    return a.x[0];
}
INLINE float vf_largest(vf a)
{
    float largest = a.x[0];
    for (int i = 1; i < 16; i++)
        largest = a.x[i] > largest ? a.x[i] : largest;
    return largest;
}
INLINE vf vf_load_bf16(const uint16_t *p)
{
    vf r;
    LANES {
        uint32_t bits = (uint32_t)p[i] << 16;
        memcpy(&r.x[i], &bits, sizeof bits);
    }
    return r;
}
INLINE vf vf_load_fp16(const uint16_t *p)
{
    vf r;
    LANES {
        /* as if the exponent were fp32's, then multiplied up: exact, subnormal numbers too */
        uint32_t magnitude = (uint32_t)(p[i] & 0x7fff) << 13, sign = (uint32_t)(p[i] & 0x8000) << 16;
        float x;
        memcpy(&x, &magnitude, sizeof x);
        x *= 0x1p112f;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        bits = (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits) | sign; /* infinity and NaN */
        memcpy(&r.x[i], &bits, sizeof bits);
    }
    return r;
}
INLINE vf vf_load_int8(const int8_t *p) { vf r; LANES r.x[i] = (float)p[i]; return r; }
INLINE vf vf_load_half(const float *p) { vf r = {{0}}; memcpy(&r, p, 32); return r; }
INLINE vf vf_load_half_fp16(const uint16_t *p) { uint16_t x[16] = {0}; memcpy(x, p, 16); return vf_load_fp16(x); }
INLINE vf vf_load_half_bf16(const uint16_t *p) { uint16_t x[16] = {0}; memcpy(x, p, 16); return vf_load_bf16(x); }
INLINE void vf_store_fp16(uint16_t *p, vf a)
{
    LANES {
        uint32_t bits;
        memcpy(&bits, &a.x[i], sizeof bits);
        uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff, half;
        if (magnitude > 0x7f800000u) {
            half = 0x7e00 | (magnitude >> 13 & 0x1ff);
        } else if (magnitude >= 0x477ff000u) { /* rounds to 65536 or more */
            half = 0x7c00;
        } else if (magnitude < 0x38800000u) { /* subnormal: let fp32's own rounding do it */
            float x;
            memcpy(&x, &magnitude, sizeof x);
            x += 0.5f;
            memcpy(&half, &x, sizeof half);
            half -= 0x3f000000u;
        } else {
            half = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000u) >> 13;
        }
        p[i] = (uint16_t)(sign | half);
    }
}
#undef LANES

INLINE void vf_store_bf16(uint16_t *p, vf a)
{
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        memcpy(&bits, &a.x[i], sizeof bits);
        int is_nan = (bits & 0x7fffffff) > 0x7f800000u;
        p[i] = (uint16_t)(is_nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

INLINE void vf_store_int8(int8_t *p, vf a)
{
    for (int i = 0; i < 16; i++)
        p[i] = (int8_t)a.x[i];
}
INLINE vf vf_abs(vf a)
{
    for (int i = 0; i < 16; i++)
        a.x[i] = fabsf(a.x[i]);
    return a;
}
INLINE vf vf_larger_bits(vf a, vf b)
{
    uint32_t x[16], y[16];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 16; i++)
        x[i] = x[i] > y[i] ? x[i] : y[i];
    memcpy(&a, x, sizeof a);
    return a;
}
INLINE uint32_t vf_largest_bits(vf a)
{
    uint32_t x[16];
    memcpy(x, &a, sizeof x);
    for (int i = 1; i < 16; i++)
        x[0] = x[i] > x[0] ? x[i] : x[0];
    return x[0];
}
