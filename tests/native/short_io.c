/* Loaded before the C library: vectors to and from files that are cut short, interrupted, and refused at bad bytes.
 *
 * A call moves up to a random byte of what it was asked for, and at most up to the first bad byte; one that begins at
 * a bad byte is an error. What a disk with bad sectors, a full one and a network's do, in an order nobody chooses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAX_BAD = 64, MAX_SEGMENTS = 1024 };

static uint64_t bad[MAX_BAD];
static int num_bad;
static _Atomic uint64_t num_calls, num_short, num_interrupted;

/* Which bytes of every file cannot be moved. */
void short_io_set_bad(const uint64_t *positions, int count)
{
    for (num_bad = 0; num_bad < count && num_bad < MAX_BAD; num_bad++)
        bad[num_bad] = positions[num_bad];
}

/* How many calls there were, were cut short, were interrupted. */
void short_io_count(uint64_t *out)
{
    out[0] = num_calls, out[1] = num_short, out[2] = num_interrupted;
}

static uint64_t draw(void)
{
    static _Atomic uint64_t seed;
    uint64_t x = (seed += 0x9e3779b97f4a7c15u);
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static ssize_t move(long number, int fd, const struct iovec *segments, int count, off_t at)
{
    num_calls++;
    if (draw() % 4 == 0) {
        num_interrupted++;
        errno = EINTR;
        return -1;
    }
    uint64_t size = 0;
    for (int i = 0; i < count; i++)
        size += segments[i].iov_len;
    uint64_t most = draw() % 2 && size ? 1 + draw() % size : size;
    for (int i = 0; i < num_bad; i++)
        if (bad[i] >= (uint64_t)at && bad[i] - (uint64_t)at < most)
            most = bad[i] - (uint64_t)at;
    num_short += most < size;
    if (most == 0 && size) {
        errno = EIO;
        return -1;
    }
    struct iovec first[MAX_SEGMENTS];
    int num_first = 0;
    for (uint64_t left = most; left && num_first < MAX_SEGMENTS; num_first++) {
        first[num_first] = segments[num_first];
        if (first[num_first].iov_len > left)
            first[num_first].iov_len = left;
        left -= first[num_first].iov_len;
    }
    return syscall(number, fd, first, num_first, at, 0L);
}

ssize_t preadv(int fd, const struct iovec *segments, int count, off_t at)
{
    return move(SYS_preadv, fd, segments, count, at);
}

ssize_t pwritev(int fd, const struct iovec *segments, int count, off_t at)
{
    return move(SYS_pwritev, fd, segments, count, at);
}
