#ifndef LLMOS_GEMM_H
#define LLMOS_GEMM_H
#include "types.h"

/* Products of activations with packed weights: y[i][j] = sum over k of x[i][k] w[j][k] (+ bias[j]).
 *
 * Bits: an element of y depends on its row of x, its row of w and the variant, never on m, on n0 and n1 or on
 * the other rows. Floating-point products are one chain of fused multiply-adds over k = 0, 1, ...; integer
 * ones are exact, and the same in every variant.
 */

/* Columns of a tile: n0 of every call is a multiple of it, and so is n1 unless it is w->n. */
enum { LLMOS_TILE_COLUMNS = 64 };

/* y[:, n0:n1] = x w^T + bias, or y[:, n0:n1] += x w^T + bias when `accumulate` is 1.
 *
 * x: [m][ldx] fp32 for the floating-point formats; int8 (of llmos_quantise_rows) for W8A8 and W4A8, then with
 *    xscale [m] and xsum [m]. ldx counts elements; for int8 it is at least k rounded up to 8, with zeros from
 *    k on. A row stride that is not a multiple of 1024 bytes is faster.
 * y: [m][ldy] fp32; only columns n0 to n1 are touched.
 * scratch: llmos_gemm_scratch_bytes, 64-byte aligned, one for each thread.
 */
void llmos_gemm(const llmos_weight *w, const void *x, int64_t ldx, const float *xscale, const int32_t *xsum,
                int32_t m, float *y, int64_t ldy, int32_t accumulate, int32_t n0, int32_t n1, void *scratch);

/* The largest element of each row of y[:, n0:n1] and its column, without writing y: value [m], index [m].
 * Of equal ones the lowest column is taken; NaN is never larger than anything: a row of NaN gives (-inf, n0).
 * Scratch: llmos_gemm_scratch_bytes.
 */
void llmos_gemm_argmax(const llmos_weight *w, const void *x, int64_t ldx, const float *xscale,
                       const int32_t *xsum, int32_t m, int32_t n0, int32_t n1,
                       float *value, int32_t *index, void *scratch);

/* Scratch for calls of up to m rows with this weight. */
int64_t llmos_gemm_scratch_bytes(const llmos_weight *w, int32_t m);

/* --- pack.c: row-major weights to packed ones and back ------------------------------------------------- */

/* Bytes of llmos_weight.data for a format; -1 for a shape that has no packed form (W8A8 and W4A8: k
 * above 65536, where a sum could overflow).
 */
int64_t llmos_packed_bytes(int32_t format, int32_t n, int32_t k);

/* Pack rows n0 to n1 of w [n][k], n0 a multiple of the tile, n1 too unless it is n. `rows` points to row n0, in
 * row_format: fp32, fp16 or bf16; ld counts its elements. Writes the rows' part of data, and scale[n0:n1] for W8A8 and
 * W4A8 (else it may be null): NaN for a row with a number that is not finite, whose weights are then zeros. Tail
 * columns of the last tile are zeros. Different rows may be packed at the same time.
 */
void llmos_pack_rows(int32_t format, int32_t k, int32_t n0, int32_t n1, int32_t row_format, const void *rows,
                     int64_t ld, void *data, float *scale);

/* The same for W8A8 from integers [n1 - n0][ld], each in -127..127: their scales are the caller's. */
void llmos_pack_int8(int32_t k, int32_t n0, int32_t n1, const int8_t *rows, int64_t ld, void *data);

/* The same for W4A8 from codes [n1 - n0][ld] in 0..15, with a scale (1..17) and an offset (128 + the value of
 * code 0) for each row and group of 128: group_scale, group_offset [n1 - n0][groups]; code * scale + offset
 * is in 0..255.
 */
void llmos_pack_int4(int32_t k, int32_t n0, int32_t n1, const uint8_t *codes, int64_t ld,
                     const uint8_t *group_scale, const uint8_t *group_offset, void *data);

/* Rows n0 to n1 as the kernels see them, fp32: for W8A8 and W4A8 the integer times scale. */
void llmos_unpack_rows(const llmos_weight *w, int32_t n0, int32_t n1, float *rows, int64_t ld);

/* Rows n0 to n1 of a W8A8 or W4A8 weight as integers. */
void llmos_unpack_int8(const llmos_weight *w, int32_t n0, int32_t n1, int8_t *rows, int64_t ld);

/* --- by variant: for tests and measurements ------------------------------------------------------------ */

void llmos_gemm_variant(int32_t variant, const llmos_weight *w, const void *x, int64_t ldx,
                        const float *xscale, const int32_t *xsum, int32_t m, float *y, int64_t ldy,
                        int32_t accumulate, int32_t n0, int32_t n1, void *scratch);

void llmos_gemm_argmax_variant(int32_t variant, const llmos_weight *w, const void *x, int64_t ldx,
                               const float *xscale, const int32_t *xsum, int32_t m, int32_t n0, int32_t n1,
                               float *value, int32_t *index, void *scratch);

void llmos_pack_rows_variant(int32_t variant, int32_t format, int32_t k, int32_t n0, int32_t n1, int32_t row_format,
                             const void *rows, int64_t ld, void *data, float *scale);

#endif
