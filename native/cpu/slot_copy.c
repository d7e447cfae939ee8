/* Slots copied between memory and files, with a checksum of each where that is wanted.
 *
 * From memory to memory, slots that are adjacent at both ends are one copy. Where one end is a file, slots go in its
 * order, and those that are adjacent there are one call, wherever in memory they are.
 */
#define _GNU_SOURCE
#include "_slot_copy.h"

#include "_slot_file.h"
#include "checksum.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum { STREAMED_BYTES = 4 << 10 }; /* what is shorter is copied through the caches */

static void copy_memory(char *target, const char *source, size_t size)
{
#if defined(__x86_64__)
    if (size >= STREAMED_BYTES && ((uintptr_t)target & 15) == 0) {
        /* A line that is written whole need not be read first: a third less goes over the bus, and what the steps
         * have in the caches stays there.
         */
        size_t whole = size & ~(size_t)63;
        for (size_t at = 0; at < whole; at += 64) {
            const __m128i *from = (const __m128i *)(source + at);
            __m128i *to = (__m128i *)(target + at);
            __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
            __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
            _mm_stream_si128(to, a);
            _mm_stream_si128(to + 1, b);
            _mm_stream_si128(to + 2, c);
            _mm_stream_si128(to + 3, d);
        }
        _mm_sfence(); /* else a lock that is given up afterwards could be seen first */
        target += whole;
        source += whole;
        size -= whole;
    }
#endif
    memcpy(target, source, size);
}

bool llmos_wants_checksum(const llmos_transfer *job)
{
    return job->expected != NULL || job->checksums != NULL;
}

static void note_checksum(llmos_transfer *job, size_t slot, uint32_t checksum)
{
    if (job->expected != NULL && job->expected[slot] != checksum)
        job->errors[slot] = LLMOS_TRANSFER_CHECKSUM;
    if (job->checksums != NULL)
        job->checksums[slot] = checksum;
}

static int compare_slots(const void *a, const void *b, void *slots)
{
    size_t left = *(const size_t *)a, right = *(const size_t *)b;
    uint64_t left_slot = ((const uint64_t *)slots)[left], right_slot = ((const uint64_t *)slots)[right];
    if (left_slot != right_slot)
        return left_slot < right_slot ? -1 : 1;
    return left < right ? -1 : left > right;
}

void llmos_order_slots(llmos_transfer *job)
{
    const uint64_t *slots = job->target_fd >= 0 ? job->target_slots : job->source_slots;
    bool is_ordered = true;
    for (size_t i = 0; i < job->num_slots; i++) {
        job->order[i] = i;
        is_ordered = is_ordered && (i == 0 || slots[i - 1] <= slots[i]);
    }
    if (llmos_is_filed(job) && !is_ordered)
        qsort_r(job->order, job->num_slots, sizeof *job->order, compare_slots, (void *)slots);
}

/* --- runs ---------------------------------------------------------------------------------------------------- */

/* The slot at a position of the order, which is in memory at one end. */
static const char *find_data(const llmos_transfer *job, size_t position)
{
    size_t slot = job->order[position];
    return job->source_fd < 0 ? job->source + job->source_slots[slot] * job->slot_bytes
                              : job->target + job->target_slots[slot] * job->slot_bytes;
}

static void check_run(llmos_transfer *job, size_t first, size_t count)
{
    for (size_t i = first; i < first + count; i++)
        if (job->errors[job->order[i]] == 0)
            note_checksum(job, job->order[i], llmos_crc32c(0, find_data(job, i), job->slot_bytes));
}

/* Slots that are neighbours in the file, the target; those that are not what was expected stay out of it. */
static void write_run(llmos_transfer *job, size_t first, size_t count)
{
    for (size_t good, i = first; i < first + count; i += good + 1) {
        for (good = 0; i + good < first + count && job->errors[job->order[i + good]] == 0;)
            good++;
        llmos_move_filed_run(job, i, good);
    }
}

static size_t copy_filed_run(llmos_transfer *job, size_t first, size_t most)
{
    size_t count = llmos_filed_run(job, first, most);
    if (job->source_fd >= 0)
        llmos_move_filed_run(job, first, count);
    if (llmos_wants_checksum(job))
        check_run(job, first, count);
    if (job->target_fd >= 0)
        write_run(job, first, count);
    return count;
}

static size_t copy_memory_run(llmos_transfer *job, size_t first, size_t most)
{
    const uint64_t *sources = job->source_slots + first, *targets = job->target_slots + first;
    size_t count = 1;
    while (count < most && sources[count] == sources[0] + count && targets[count] == targets[0] + count)
        count++;
    if (llmos_wants_checksum(job))
        check_run(job, first, count);
    copy_memory(job->target + targets[0] * job->slot_bytes, find_data(job, first), count * job->slot_bytes);
    return count;
}

/* --- pieces -------------------------------------------------------------------------------------------------- */

/* One slot, piece by piece; between two files through the bounce buffer. */
static void copy_pieces(llmos_transfer *job, size_t slot, char *bounce, void (*breathe)(void *), void *argument)
{
    uint64_t source_at = job->source_slots[slot] * job->slot_bytes;
    uint64_t target_at = job->target_slots[slot] * job->slot_bytes;
    size_t most = job->piece_bytes;
    if (job->source_fd >= 0 && job->target_fd >= 0 && (most == 0 || most > LLMOS_BOUNCE_BYTES))
        most = LLMOS_BOUNCE_BYTES;
    uint32_t checksum = 0;
    int32_t error = 0;
    for (size_t at = 0; at < job->slot_bytes && !error; at += most) {
        size_t size = job->slot_bytes - at < most ? job->slot_bytes - at : most;
        char *to = job->target_fd < 0 ? job->target + target_at + at : bounce;
        const char *from = job->source_fd < 0 ? job->source + source_at + at : to;
        if (job->source_fd >= 0)
            error = llmos_read_bytes(job->source_fd, to, size, source_at + at);
        if (!error && llmos_wants_checksum(job))
            checksum = llmos_crc32c(checksum, from, size);
        if (!error && job->target_fd >= 0)
            error = llmos_write_bytes(job->target_fd, from, size, target_at + at);
        else if (job->source_fd < 0)
            copy_memory(to, from, size);
        if (job->piece_bytes)
            breathe(argument);
    }
    if (error)
        job->errors[slot] = error;
    else if (llmos_wants_checksum(job))
        note_checksum(job, slot, checksum);
}

void llmos_copy_slots(llmos_transfer *job, size_t first, size_t count, char *bounce, void (*breathe)(void *),
                      void *argument)
{
    size_t end = first + count;
    while (first < end) {
        if (job->piece_bytes || (job->source_fd >= 0 && job->target_fd >= 0))
            copy_pieces(job, job->order[first++], bounce, breathe, argument);
        else if (llmos_is_filed(job))
            first += copy_filed_run(job, first, end - first);
        else
            first += copy_memory_run(job, first, end - first);
    }
}
