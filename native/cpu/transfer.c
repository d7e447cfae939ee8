/* Slots moved between memory and files, by a few threads that take turns at the jobs there are.
 *
 * A thread takes a stretch of the job whose turn it is, copies it, and comes back: a small job waits for a stretch
 * of a large one, never for the whole. Within a stretch, slots that are adjacent at both ends are one copy.
 *
 * Source: Shen et al. 2024, "FastSwitch", arXiv:2411.18424: native threads that copy in runs of blocks.
 */
#define _GNU_SOURCE
#include "transfer.h"

#include "checksum.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

enum {
    STRETCH_BYTES = 512 << 10, /* handed out at once: long beside what the handing out takes, and a checksum
                                * still finds it in the second-level cache */
    BOUNCE_BYTES = 256 << 10,  /* of each thread, between two files */
    STREAMED_BYTES = 4 << 10,  /* what is shorter is copied through the caches */
};

typedef struct {
    llmos_transfer *first, *last;
} queue;

struct llmos_transfers {
    pthread_mutex_t lock; /* guards everything below but the threads */
    pthread_cond_t has_work;
    pthread_cond_t is_quiet; /* nothing is unfinished */
    queue waiting;           /* not yet begun */
    queue turns;             /* with slots to hand out, in the order of their turns */
    queue ended;             /* to be collected */
    int32_t num_active;      /* begun and not ended */
    int32_t max_active;
    size_t num_unfinished; /* submitted and not ended */
    bool is_closing;
    int event;
    int32_t niceness;
    int32_t num_threads; /* started */
    pthread_t *threads;
    char *bounces;       /* BOUNCE_BYTES for each thread */
    int32_t num_bounces; /* taken */
};

static void push(queue *q, llmos_transfer *job)
{
    job->next = NULL;
    if (q->first == NULL)
        q->first = job;
    else
        q->last->next = job;
    q->last = job;
}

static llmos_transfer *pop(queue *q)
{
    llmos_transfer *job = q->first;
    if (job != NULL)
        q->first = job->next;
    return job;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* --- copying ------------------------------------------------------------------------------------------------ */

void llmos_transfer_memory(char *target, const char *source, size_t size)
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

/* Read from a file; 0 or what went wrong after *num_done bytes. */
static int32_t read_file(int fd, char *to, size_t size, uint64_t at, size_t *num_done)
{
    for (*num_done = 0; *num_done < size;) {
        ssize_t count = pread(fd, to + *num_done, size - *num_done, (off_t)(at + *num_done));
        if (count > 0)
            *num_done += (size_t)count;
        else if (count == 0)
            return LLMOS_TRANSFER_END;
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

/* The same for writing. */
static int32_t write_file(int fd, const char *from, size_t size, uint64_t at, size_t *num_done)
{
    for (*num_done = 0; *num_done < size;) {
        ssize_t count = pwrite(fd, from + *num_done, size - *num_done, (off_t)(at + *num_done));
        if (count > 0)
            *num_done += (size_t)count;
        else if (count == 0)
            return EIO; /* a file that takes nothing and says nothing */
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

static bool wants_checksum(const llmos_transfer *job)
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

/* Threads that only write would wait for each other in the file's lock, and take its lines from each other. */
static bool is_for_one_thread(const llmos_transfer *job)
{
    return job->target_fd >= 0 && job->source_fd < 0 && !wants_checksum(job);
}

/* A run into memory. A slot that fails is left behind, and the rest of the run goes on. */
static void read_run(llmos_transfer *job, size_t first, size_t count, char *to)
{
    for (size_t i = 0; i < count; i++) {
        size_t num_done;
        int32_t error = read_file(job->source_fd, to + i * job->slot_bytes, (count - i) * job->slot_bytes,
                                  job->source_slots[first + i] * job->slot_bytes, &num_done);
        i += num_done / job->slot_bytes;
        if (error)
            job->errors[first + i] = error;
    }
}

/* A run out of memory: its slots without an error. */
static void write_run(llmos_transfer *job, size_t first, size_t count, const char *from)
{
    for (size_t i = 0; i < count; i++) {
        size_t num_good = 0, num_done;
        while (i + num_good < count && job->errors[first + i + num_good] == 0)
            num_good++;
        int32_t error = write_file(job->target_fd, from + i * job->slot_bytes, num_good * job->slot_bytes,
                                   job->target_slots[first + i] * job->slot_bytes, &num_done);
        i += num_done / job->slot_bytes;
        if (error)
            job->errors[first + i] = error;
    }
}

/* Slots that are adjacent at both ends, of which one is memory. */
static void copy_run(llmos_transfer *job, size_t first, size_t count)
{
    uint64_t source_at = job->source_slots[first] * job->slot_bytes;
    uint64_t target_at = job->target_slots[first] * job->slot_bytes;
    const char *data = job->source_fd < 0 ? job->source + source_at : job->target + target_at;
    if (job->source_fd >= 0)
        read_run(job, first, count, job->target + target_at);
    for (size_t i = 0; wants_checksum(job) && i < count; i++)
        if (job->errors[first + i] == 0)
            note_checksum(job, first + i, llmos_crc32c(0, data + i * job->slot_bytes, job->slot_bytes));
    if (job->target_fd >= 0)
        write_run(job, first, count, data);
    else if (job->source_fd < 0)
        llmos_transfer_memory(job->target + target_at, data, count * job->slot_bytes);
}

/* One slot, piece by piece. Behind each piece the thread asks the engine, as it would for a copy of its own. */
static void copy_pieces(llmos_transfers *engine, llmos_transfer *job, size_t slot, size_t piece_bytes, char *bounce)
{
    uint64_t source_at = job->source_slots[slot] * job->slot_bytes;
    uint64_t target_at = job->target_slots[slot] * job->slot_bytes;
    uint32_t checksum = 0;
    int32_t error = 0;
    for (size_t at = 0; at < job->slot_bytes && !error; at += piece_bytes) {
        size_t size = job->slot_bytes - at < piece_bytes ? job->slot_bytes - at : piece_bytes, num_done;
        char *to = job->target_fd < 0 ? job->target + target_at + at : bounce;
        const char *from = job->source_fd < 0 ? job->source + source_at + at : to;
        if (job->source_fd >= 0)
            error = read_file(job->source_fd, to, size, source_at + at, &num_done);
        if (!error && wants_checksum(job))
            checksum = llmos_crc32c(checksum, from, size);
        if (!error && job->target_fd >= 0)
            error = write_file(job->target_fd, from, size, target_at + at, &num_done);
        else if (job->source_fd < 0)
            llmos_transfer_memory(to, from, size);
        if (job->piece_bytes) {
            pthread_mutex_lock(&engine->lock);
            pthread_mutex_unlock(&engine->lock);
        }
    }
    if (error)
        job->errors[slot] = error;
    else if (wants_checksum(job))
        note_checksum(job, slot, checksum);
}

static void copy_stretch(llmos_transfers *engine, llmos_transfer *job, size_t first, size_t count, char *bounce)
{
    bool has_bounce = job->source_fd >= 0 && job->target_fd >= 0;
    size_t piece_bytes = job->piece_bytes;
    if (has_bounce && (piece_bytes == 0 || piece_bytes > BOUNCE_BYTES))
        piece_bytes = BOUNCE_BYTES;
    for (size_t run, i = first; i < first + count; i += run) {
        run = 1;
        if (piece_bytes) {
            copy_pieces(engine, job, i, piece_bytes, bounce);
            continue;
        }
        while (i + run < first + count && job->source_slots[i + run] == job->source_slots[i] + run
               && job->target_slots[i + run] == job->target_slots[i] + run)
            run++;
        copy_run(job, i, run);
    }
}

/* --- turns; all with the lock held ----------------------------------------------------------------------------- */

static void admit(llmos_transfers *engine)
{
    while (engine->num_active < engine->max_active && engine->waiting.first != NULL) {
        engine->num_active++;
        push(&engine->turns, pop(&engine->waiting));
        pthread_cond_broadcast(&engine->has_work);
    }
}

static void end(llmos_transfers *engine, llmos_transfer *job)
{
    job->seconds = job->began > 0 ? now() - job->began : 0;
    push(&engine->ended, job);
    if (--engine->num_unfinished == 0)
        pthread_cond_broadcast(&engine->is_quiet);
    ssize_t ignored = write(engine->event, &(uint64_t){1}, 8); /* full: it is readable, and that is all */
    (void)ignored;
}

/* Take the job whose turn it is out of the queue; NULL: there is none, or none that one more thread may work at. */
static llmos_transfer *pop_turn(llmos_transfers *engine)
{
    llmos_transfer *before = NULL, *job = engine->turns.first;
    while (job != NULL && job->num_busy > 0 && is_for_one_thread(job))
        before = job, job = job->next;
    if (before == NULL || job == NULL)
        return job == NULL ? NULL : pop(&engine->turns);
    before->next = job->next;
    if (job->next == NULL)
        engine->turns.last = before;
    return job;
}

/* Hand out the next slots of a job; how many. */
static size_t take(llmos_transfers *engine, llmos_transfer *job, size_t *first)
{
    size_t count = job->piece_bytes ? 1 : STRETCH_BYTES / job->slot_bytes, rest = job->num_slots - job->next_slot;
    count = count == 0 ? 1 : count;
    count = count < rest ? count : rest;
    if (job->began == 0)
        job->began = now();
    *first = job->next_slot;
    job->next_slot += count;
    job->num_busy++;
    if (count < rest)
        push(&engine->turns, job);
    return count;
}

static void give_back(llmos_transfers *engine, llmos_transfer *job)
{
    if (--job->num_busy == 0 && job->next_slot == job->num_slots) {
        engine->num_active--;
        end(engine, job);
        admit(engine);
    }
}

/* --- threads ----------------------------------------------------------------------------------------------------- */

static void *work(void *argument)
{
    llmos_transfers *engine = argument;
    int niceness = nice(engine->niceness); /* Linux: of this thread alone */
    (void)niceness;
    pthread_mutex_lock(&engine->lock);
    char *bounce = engine->bounces + (size_t)engine->num_bounces++ * BOUNCE_BYTES;
    for (;;) {
        llmos_transfer *job;
        while ((job = pop_turn(engine)) == NULL && !engine->is_closing)
            pthread_cond_wait(&engine->has_work, &engine->lock);
        if (job == NULL)
            break;
        size_t first, count = take(engine, job, &first);
        pthread_mutex_unlock(&engine->lock);
        copy_stretch(engine, job, first, count, bounce);
        pthread_mutex_lock(&engine->lock);
        give_back(engine, job);
    }
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

/* Signals are for the threads of the program: none of these may run its handlers. */
static int start_threads(llmos_transfers *engine, int32_t num_threads)
{
    sigset_t all, before;
    sigfillset(&all);
    int error = pthread_sigmask(SIG_SETMASK, &all, &before);
    while (!error && engine->num_threads < num_threads) {
        error = pthread_create(&engine->threads[engine->num_threads], NULL, work, engine);
        if (!error)
            pthread_setname_np(engine->threads[engine->num_threads++], "llmos-transfer");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

int llmos_transfers_open(int32_t num_threads, int32_t max_active, int32_t niceness, llmos_transfers **out)
{
    llmos_transfers *engine = calloc(1, sizeof *engine);
    pthread_t *threads = calloc((size_t)num_threads, sizeof *threads);
    char *bounces = aligned_alloc(4096, (size_t)num_threads * BOUNCE_BYTES);
    int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine == NULL || threads == NULL || bounces == NULL || event < 0) {
        int error = event < 0 ? errno : ENOMEM;
        free(engine);
        free(threads);
        free(bounces);
        if (event >= 0)
            close(event);
        return error;
    }
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->has_work, NULL);
    pthread_cond_init(&engine->is_quiet, NULL);
    engine->max_active = max_active;
    engine->niceness = niceness;
    engine->event = event;
    engine->threads = threads;
    engine->bounces = bounces;
    int error = start_threads(engine, num_threads);
    if (error)
        llmos_transfers_close(engine);
    else
        *out = engine;
    return error;
}

int llmos_transfers_event(const llmos_transfers *engine)
{
    return engine->event;
}

void llmos_transfers_submit(llmos_transfers *engine, llmos_transfer *job)
{
    job->next_slot = 0;
    job->num_busy = 0;
    job->began = 0;
    pthread_mutex_lock(&engine->lock);
    engine->num_unfinished++;
    if (job->num_slots == 0)
        end(engine, job);
    else
        push(&engine->waiting, job);
    admit(engine);
    pthread_mutex_unlock(&engine->lock);
}

llmos_transfer *llmos_transfers_collect(llmos_transfers *engine)
{
    pthread_mutex_lock(&engine->lock);
    llmos_transfer *job = pop(&engine->ended);
    if (engine->ended.first == NULL) {
        uint64_t count;
        ssize_t ignored = read(engine->event, &count, sizeof count); /* EAGAIN: nothing was announced */
        (void)ignored;
    }
    pthread_mutex_unlock(&engine->lock);
    return job;
}

void llmos_transfers_wait(llmos_transfers *engine)
{
    pthread_mutex_lock(&engine->lock);
    while (engine->num_unfinished > 0)
        pthread_cond_wait(&engine->is_quiet, &engine->lock);
    pthread_mutex_unlock(&engine->lock);
}

static void give_up(llmos_transfer *job)
{
    for (; job->next_slot < job->num_slots; job->next_slot++)
        job->errors[job->next_slot] = ECANCELED;
}

void llmos_transfers_cancel(llmos_transfers *engine)
{
    llmos_transfer *job;
    pthread_mutex_lock(&engine->lock);
    while ((job = pop(&engine->waiting)) != NULL) {
        give_up(job);
        end(engine, job);
    }
    while ((job = pop(&engine->turns)) != NULL) {
        give_up(job);
        job->num_busy++;
        give_back(engine, job); /* it ends here, or with the last stretch that is being copied */
    }
    pthread_mutex_unlock(&engine->lock);
}

void llmos_transfers_close(llmos_transfers *engine)
{
    llmos_transfers_wait(engine);
    pthread_mutex_lock(&engine->lock);
    engine->is_closing = true;
    pthread_cond_broadcast(&engine->has_work);
    pthread_mutex_unlock(&engine->lock);
    for (int32_t i = 0; i < engine->num_threads; i++)
        pthread_join(engine->threads[i], NULL);
    pthread_cond_destroy(&engine->has_work);
    pthread_cond_destroy(&engine->is_quiet);
    pthread_mutex_destroy(&engine->lock);
    close(engine->event);
    free(engine->threads);
    free(engine->bounces);
    free(engine);
}
