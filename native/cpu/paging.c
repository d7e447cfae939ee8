/* Virtually contiguous memory on demand: a reserved range whose pages are backed by frames of a memfd.
 *
 * Source: Prabhu et al. 2024, "vAttention", arXiv:2405.04437, which does this with CUDA's virtual memory calls.
 */
#define _GNU_SOURCE
#include "llmos_cpu.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { RESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE };

int llmos_reserve(size_t size_bytes, void **base)
{
    *base = mmap(NULL, size_bytes, PROT_NONE, RESERVED, -1, 0);
    return *base == MAP_FAILED ? errno : 0;
}

int llmos_map_file(int fd, size_t size_bytes, void **base)
{
    *base = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return *base == MAP_FAILED ? errno : 0;
}

int llmos_map_frames(void *base, size_t frame_bytes, int fd, size_t count,
                     const uint64_t *pages, const uint64_t *frames, size_t *num_done)
{
    size_t i = 0;
    *num_done = 0;
    while (i < count) {
        size_t run = 1;
        while (i + run < count && pages[i + run] == pages[i] + run && frames[i + run] == frames[i] + run)
            run++;
        void *at = (char *)base + pages[i] * frame_bytes;
        if (mmap(at, run * frame_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                 (off_t)(frames[i] * frame_bytes)) == MAP_FAILED)
            return errno;
        i += run;
        *num_done = i;
    }
    return 0;
}

int llmos_unmap_pages(void *base, size_t frame_bytes, uint64_t first, uint64_t count)
{
    /* Not munmap: somebody else's mmap might take the hole. */
    void *at = (char *)base + first * frame_bytes;
    return mmap(at, count * frame_bytes, PROT_NONE, RESERVED | MAP_FIXED, -1, 0) == MAP_FAILED ? errno : 0;
}

int llmos_release(void *base, size_t size_bytes)
{
    return munmap(base, size_bytes) ? errno : 0;
}

void llmos_copy_frames(void *base, size_t frame_bytes, size_t count,
                       const uint64_t *sources, const uint64_t *targets)
{
    for (size_t i = 0; i < count; i++)
        memcpy((char *)base + targets[i] * frame_bytes, (char *)base + sources[i] * frame_bytes, frame_bytes);
}
