#ifndef LLMOS_PROBE_H
#define LLMOS_PROBE_H
#include "types.h"

/* What the machine can do at most, for kernels to be measured against; by the best variant, on one thread. */

/* Read all of size_bytes, a multiple of 4096, in order; returns a sum, so that nothing is left out. */
uint64_t llmos_probe_read(const void *data, int64_t size_bytes);

/* int8 multiply-adds into int32, or fp32 fused multiply-adds, from registers; how many operations that was, an
 * addition and a multiplication being two.
 */
int64_t llmos_probe_int8(int64_t iterations);
int64_t llmos_probe_fp32(int64_t iterations);

#endif
