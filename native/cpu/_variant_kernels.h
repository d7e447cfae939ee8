/* All kernels of one variant, and the table of them: included once by each kernels_<variant>.c, which says before what
 * vectors are made of (SIMD_*, see _simd.h) and what the table is called (KERNELS).
 */
#include "_simd.h"

#include "_norm.h"

#include "_activation.h"
#include "_kv.h"

#include "_attention.h"

#include "_sample.h"

const llmos_kernels KERNELS = {
    .rms_norm = rms_norm,
    .rms_norm_int8 = rms_norm_int8,
    .silu_mul = silu_mul,
    .embed = embed,
    .rope_write_kv = rope_write_kv,
    .attention = attention,
    .survey = survey,
    .segment_maxima = segment_maxima,
    .segment_sums = segment_sums,
    .weigh_segment = weigh_segment,
};
