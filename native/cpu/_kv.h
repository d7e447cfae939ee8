/* Rotation, and writing of keys and values; included by _variant_kernels.h behind _simd.h. */

/* Numbers of a format are 1, 2 or 4 bytes. */
INLINE int32_t kv_item_bytes(int32_t format)
{
    return format == LLMOS_FP32 ? 4 : format == LLMOS_INT8 ? 1 : 2;
}

/* To the first of every `stride` elements at `to`. n is a multiple of 8. */
INLINE void store_strided(void *to, int64_t stride, const float *x, int32_t n, int32_t format)
{
    if (format == LLMOS_FP32) {
        for (int32_t i = 0; i < n; i++)
            ((float *)to)[i * stride] = x[i];
        return;
    }
    for (int32_t i = 0; i < n; i += 16) {
        int32_t count = n - i < 16 ? n - i : 16;
        uint16_t bits[16];
        vf a = vf_load_first(x + i, count);
        if (format == LLMOS_FP16)
            vf_store_fp16(bits, a);
        else
            vf_store_bf16(bits, a);
        if (stride == 1) {
            memcpy((uint16_t *)to + i, bits, (size_t)count * sizeof *bits);
            continue;
        }
        for (int32_t j = 0; j < count; j++)
            ((uint16_t *)to)[(i + j) * stride] = bits[j];
    }
}

/* Round to int8 by the largest magnitude; returns the scale. */
INLINE float quantise_head(const float *x, int32_t n, int8_t *q)
{
    float largest = 0.0f;
    for (int32_t i = 0; i < n; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    float scale = largest / 127.0f, inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    for (int32_t i = 0; i < n; i++) {
        float y = rintf(x[i] * inverse);
        q[i] = (int8_t)(y > 127.0f ? 127.0f : y > -127.0f ? y : -127.0f); /* NaN becomes -127: still a number */
    }
    return scale;
}

INLINE void rotate_head(float *x, const float *cos, const float *sin, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

static void write_token(const llmos_kv *kv, int64_t page, int32_t slot, const float *k, const float *v)
{
    int32_t dim = kv->head_dim, size = kv->tokens_per_page, width = size < 16 ? size : 16;
    int32_t tile = slot / width, lane = slot % width, item = kv_item_bytes(kv->format);
    int64_t head_bytes = (int64_t)size * dim * item + (kv->format == LLMOS_INT8 ? (int64_t)size * 4 : 0);
    for (int32_t head = 0; head < kv->num_kv_heads; head++, k += dim, v += dim) {
        char *keys = (char *)kv->keys + page * kv->page_bytes + head * head_bytes;
        char *values = (char *)kv->values + page * kv->page_bytes + head * head_bytes;
        if (kv->format == LLMOS_INT8) {
            int8_t q[256];
            float *scales = (float *)(keys + (int64_t)size * dim);
            scales[slot] = quantise_head(k, dim, q);
            uint8_t *to = (uint8_t *)keys + (int64_t)tile * dim * width + lane * 4;
            for (int32_t i = 0; i < dim; i++)
                to[i / 4 * 4 * width + i % 4] = (uint8_t)(q[i] + 128);
            scales = (float *)(values + (int64_t)size * dim);
            scales[slot] = quantise_head(v, dim, q);
            int32_t group = slot % width / 4 * 4, together = width - group < 4 ? width - group : 4;
            int8_t *at = (int8_t *)values + (int64_t)(tile * width + group) * dim + slot % width % 4;
            for (int32_t i = 0; i < dim; i++)
                at[i * together] = q[i];
            continue;
        }
        keys += ((int64_t)tile * dim * width + lane) * item;
        values += (int64_t)slot * dim * item;
        store_strided(keys, width, k, dim, kv->format);
        store_strided(values, 1, v, dim, kv->format);
    }
}

static void rope_write_kv(const llmos_kv *kv, const llmos_rope *rope, const llmos_span *spans, int32_t num_spans,
                          const int32_t *page_table, float *qkv, int64_t ld, int32_t t0, int32_t t1)
{
    int32_t dim = kv->head_dim, num_q = kv->num_heads, num_k = kv->num_kv_heads;
    for (const llmos_span *span = spans; span < spans + num_spans; span++) {
        int32_t from = t0 > span->first ? t0 : span->first;
        int32_t to = t1 < span->first + span->num_tokens ? t1 : span->first + span->num_tokens;
        for (int32_t token = from; token < to; token++) {
            int32_t position = span->start + (token - span->first), vpn = position / kv->tokens_per_page;
            int64_t page = page_table ? page_table[span->pages + vpn] : span->pages + vpn;
            const float *cos = rope->cos + (int64_t)position * (dim / 2), *sin = rope->sin + (int64_t)position * (dim / 2);
            float *q = qkv + token * ld, *k = q + (int64_t)num_q * dim, *v = k + (int64_t)num_k * dim;
            if (rope->q_norm)
                rms_norm(q, dim, rope->q_norm, rope->epsilon, num_q, dim, q, dim);
            if (rope->k_norm)
                rms_norm(k, dim, rope->k_norm, rope->epsilon, num_k, dim, k, dim);
            for (int32_t head = 0; head < num_q + num_k; head++)
                rotate_head(q + (int64_t)head * dim, cos, sin, dim / 2);
            write_token(kv, page, position % kv->tokens_per_page, k, v);
        }
    }
}
