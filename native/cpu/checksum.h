#ifndef LLMOS_CHECKSUM_H
#define LLMOS_CHECKSUM_H
#include "types.h"

/* --- checksum.c ----------------------------------------------------------------------------------------- */

/* CRC-32C (Castagnoli, reflected, as in RFC 3720) of `size` bytes, continuing from `crc`; begin with 0. With
 * SSE 4.2 as fast as memory is read; the same in plain C, slowly.
 */
uint32_t llmos_crc32c(uint32_t crc, const void *data, size_t size);

/* For tests: the same, 0 in plain C, 1 by the instruction for it, 2 by vectors, or the best below that there is. */
uint32_t llmos_crc32c_by(int32_t way, uint32_t crc, const void *data, size_t size);

#endif
