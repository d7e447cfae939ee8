/* Slots to and from a file, as many neighbours of it as there are in each call, wherever they lie in memory.
 *
 * A system may move fewer bytes than it was asked for, and does, where the disk is full or the file ends in the
 * middle: the slot in which it stopped is tried again from there, and only what then moves nothing is at fault.
 */
#define _GNU_SOURCE
#include "_slot_file.h"

#include <errno.h>
#include <sys/uio.h>

enum { MAX_SEGMENTS = 128 }; /* of a call: a stretch of 4 KiB slots; below the system's 1024, and little of a stack */

/* One call: 0 and at least one byte; or an errno value or LLMOS_TRANSFER_END, and none. */
static int32_t move_once(int fd, bool is_write, const struct iovec *segments, int count, uint64_t at,
                         size_t *num_moved)
{
    ssize_t moved;
    do
        moved = is_write ? pwritev(fd, segments, count, (off_t)at) : preadv(fd, segments, count, (off_t)at);
    while (moved < 0 && errno == EINTR);
    *num_moved = moved > 0 ? (size_t)moved : 0;
    if (moved < 0)
        return errno;
    if (moved == 0)
        return is_write ? EIO /* a file that takes nothing and says nothing */ : LLMOS_TRANSFER_END;
    return 0;
}

static int32_t move_bytes(int fd, bool is_write, char *data, size_t size, uint64_t at)
{
    int32_t error = 0;
    for (size_t done = 0, moved; done < size && !error; done += moved)
        error = move_once(fd, is_write, &(struct iovec){data + done, size - done}, 1, at + done, &moved);
    return error;
}

int32_t llmos_read_bytes(int fd, char *to, size_t size, uint64_t at)
{
    return move_bytes(fd, false, to, size, at);
}

int32_t llmos_write_bytes(int fd, const char *from, size_t size, uint64_t at)
{
    return move_bytes(fd, true, (char *)from, size, at);
}

bool llmos_is_filed(const llmos_transfer *job)
{
    return (job->source_fd < 0) != (job->target_fd < 0);
}

static const uint64_t *file_slots(const llmos_transfer *job)
{
    return job->target_fd >= 0 ? job->target_slots : job->source_slots;
}

size_t llmos_filed_run(const llmos_transfer *job, size_t first, size_t most)
{
    const uint64_t *slots = file_slots(job);
    size_t count = 1;
    while (count < most && slots[job->order[first + count]] == slots[job->order[first]] + count)
        count++;
    return count;
}

/* Where the bytes of a run are in memory, but for the first `done`; neighbours are one segment. How many. */
static int find_segments(const llmos_transfer *job, size_t first, size_t count, size_t done, struct iovec *segments)
{
    const uint64_t *slots = job->target_fd >= 0 ? job->source_slots : job->target_slots;
    char *memory = job->target_fd >= 0 ? (char *)job->source : job->target;
    int num_segments = 0;
    for (size_t i = done / job->slot_bytes, skipped = done % job->slot_bytes; i < count; i++, skipped = 0) {
        char *at = memory + slots[job->order[first + i]] * job->slot_bytes + skipped;
        struct iovec *last = num_segments > 0 ? &segments[num_segments - 1] : NULL;
        if (last != NULL && (char *)last->iov_base + last->iov_len == at)
            last->iov_len += job->slot_bytes;
        else if (num_segments == MAX_SEGMENTS)
            break;
        else
            segments[num_segments++] = (struct iovec){at, job->slot_bytes - skipped};
    }
    return num_segments;
}

void llmos_move_filed_run(llmos_transfer *job, size_t first, size_t count)
{
    bool is_write = job->target_fd >= 0;
    int fd = is_write ? job->target_fd : job->source_fd;
    uint64_t at = file_slots(job)[job->order[first]] * job->slot_bytes;
    for (size_t done = 0, moved; done < count * job->slot_bytes; done += moved) {
        struct iovec segments[MAX_SEGMENTS];
        int num_segments = find_segments(job, first, count, done, segments);
        int32_t error = move_once(fd, is_write, segments, num_segments, at + done, &moved);
        if (error) {
            size_t slot = done / job->slot_bytes;
            job->errors[job->order[first + slot]] = error;
            moved = (slot + 1) * job->slot_bytes - done; /* go on behind it */
        }
    }
}
