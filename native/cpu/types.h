#ifndef LLMOS_TYPES_H
#define LLMOS_TYPES_H
#include <stddef.h>
#include <stdint.h>

/* Shared by the headers of native/cpu. A header holds only what cffi can parse, and lines with '#', which it
 * never sees; those whose name starts with '_' are between the C files alone.
 */

/* Number formats of arrays: keys, values, and weights that are not quantised. */
enum { LLMOS_FP32 = 0, LLMOS_FP16 = 1, LLMOS_BF16 = 2, LLMOS_INT8 = 3 };

/* Formats of packed weights; the first three are those above. Activations are fp32 for LLMOS_FP32, LLMOS_FP16
 * and LLMOS_BF16 weights, and int8 with a scale for each row for these two. The numbers are on disk: keep them.
 */
enum { LLMOS_W8A8 = 4, LLMOS_W4A8 = 5 };

/* A linear layer's weights [n out, k in], packed for one format; see pack.c for where each number lies. */
typedef struct {
    int32_t format;
    int32_t n;          /* outputs */
    int32_t k;          /* inputs */
    int32_t group;      /* inputs that share a second-level scale, W4A8 only; else 0 */
    const void *data;   /* packed, 64-byte aligned */
    const float *scale; /* [n], W8A8 and W4A8; else null */
    const int32_t *sum; /* [n] sums of a row's integers, where the variant needs them; else null */
    const float *bias;  /* [n], or null */
} llmos_weight;

#endif
