/* Slots moved between memory and files, by a few threads that take turns at the jobs there are.
 *
 * A thread takes a stretch of the job whose turn it is, copies it, and comes back: a small job waits for a stretch
 * of a large one, never for the whole. How a stretch is copied is in slot_copy.c.
 *
 * Source: Shen et al. 2024, "FastSwitch", arXiv:2411.18424: native threads that copy in runs of blocks.
 */
#define _GNU_SOURCE
#include "transfer.h"

#include "_slot_copy.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum {
    STRETCH_BYTES = 512 << 10, /* handed out at once: long beside what the handing out takes, and a checksum
                                * still finds it in the second-level cache */
    WRITTEN_BYTES = 1 << 20,   /* the same to a file, so that its lock seldom changes hands */
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
    char *bounces;       /* LLMOS_BOUNCE_BYTES for each thread */
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

/* Threads that only write would wait for each other in the file's lock, and take its lines from each other. */
static bool is_for_one_thread(const llmos_transfer *job)
{
    return job->target_fd >= 0 && job->source_fd < 0 && !llmos_wants_checksum(job);
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
    size_t most = job->target_fd >= 0 ? WRITTEN_BYTES : STRETCH_BYTES, rest = job->num_slots - job->next_slot;
    size_t count = job->piece_bytes || job->slot_bytes > most ? 1 : most / job->slot_bytes;
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

/* Ask the engine behind a piece, as a thread would for a copy of its own. */
static void breathe(void *argument)
{
    llmos_transfers *engine = argument;
    pthread_mutex_lock(&engine->lock);
    pthread_mutex_unlock(&engine->lock);
}

static void *work(void *argument)
{
    llmos_transfers *engine = argument;
    int niceness = nice(engine->niceness); /* Linux: of this thread alone */
    (void)niceness;
    pthread_mutex_lock(&engine->lock);
    char *bounce = engine->bounces + (size_t)engine->num_bounces++ * LLMOS_BOUNCE_BYTES;
    for (;;) {
        llmos_transfer *job;
        while ((job = pop_turn(engine)) == NULL && !engine->is_closing)
            pthread_cond_wait(&engine->has_work, &engine->lock);
        if (job == NULL)
            break;
        size_t first, count = take(engine, job, &first);
        pthread_mutex_unlock(&engine->lock);
        llmos_copy_slots(job, first, count, bounce, breathe, engine);
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
    char *bounces = aligned_alloc(4096, (size_t)num_threads * LLMOS_BOUNCE_BYTES);
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

size_t llmos_transfer_find_outside(const uint64_t *slots, size_t count, uint64_t limit)
{
    size_t i = 0;
    while (i < count && slots[i] < limit)
        i++;
    return i;
}

void llmos_transfers_submit(llmos_transfers *engine, llmos_transfer *job)
{
    job->next_slot = 0;
    job->num_busy = 0;
    job->began = 0;
    llmos_order_slots(job);
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
        job->errors[job->order[job->next_slot]] = ECANCELED;
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
