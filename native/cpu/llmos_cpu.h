#ifndef LLMOS_CPU_H
#define LLMOS_CPU_H
#include <stddef.h>
#include <stdint.h>

/* The one description of native/cpu: native/build.py hands every line but those with '#' to cffi.
 *
 * Functions keep no state, allocate nothing they do not return, and write only to what the caller passes.
 * Those that can fail return 0 or a positive errno value.
 */

/* --- paging.c: virtually contiguous memory ------------------------------------------------------------- */

/* Reserve address space without memory behind it; any access ends in SIGSEGV. */
int llmos_reserve(size_t size_bytes, void **base);

/* Map the first size_bytes of a file, shared, readable and writable. */
int llmos_map_file(int fd, size_t size_bytes, void **base);

/* Put frame frames[i] of a file at page pages[i] of a reserved range, replacing what was mapped there, for
 * i < count. A run of adjacent pages with adjacent frames takes one system call. *num_done says how many were
 * mapped, on an error too.
 */
int llmos_map_frames(void *base, size_t frame_bytes, int fd, size_t count,
                     const uint64_t *pages, const uint64_t *frames, size_t *num_done);

/* Return pages [first, first + count) of a reserved range to the state of llmos_reserve. */
int llmos_unmap_pages(void *base, size_t frame_bytes, uint64_t first, uint64_t count);

/* Give back a range made by llmos_reserve or llmos_map_file, with everything that is mapped in it. */
int llmos_release(void *base, size_t size_bytes);

/* Copy frame sources[i] to frame targets[i] of a mapped file, in order; no source is its own target. */
void llmos_copy_frames(void *base, size_t frame_bytes, size_t count,
                       const uint64_t *sources, const uint64_t *targets);

#endif
