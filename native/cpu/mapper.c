/* A thread that maps pages ahead of need, so that the step that reaches them finds them there.
 *
 * It also populates them: a page of a file that is only mapped faults when it is first touched, once for every
 * page of the system in it, and that would be in the step after all.
 *
 * Source: the background thread of Prabhu et al. 2024, "vAttention", arXiv:2405.04437; without its race (it says
 * that it is busy from inside the thread) and without its spinning.
 */
#define _GNU_SOURCE
#include "mapper.h"

#include "llmos_cpu.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

struct llmos_mapper {
    char *base;
    size_t frame_bytes;
    int fd;
    pthread_t thread;
    pthread_mutex_t lock;    /* of what follows, and of is_done of every job */
    pthread_cond_t arrived;  /* a job, or the end */
    pthread_cond_t finished; /* a job that somebody waits for */
    llmos_map_job *first, *last;
    int32_t num_waiting;
    bool is_closing;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void map(llmos_mapper *mapper, llmos_map_job *job)
{
    double began = now();
    size_t num_done;
    job->error = llmos_map_frames(mapper->base, mapper->frame_bytes, mapper->fd, job->count, job->pages,
                                  job->frames, &num_done);
    /* Where the system cannot populate, pages fault when they are touched, as they would have. */
    for (size_t i = 0; i < num_done; i++)
        madvise(mapper->base + job->pages[i] * mapper->frame_bytes, mapper->frame_bytes, MADV_POPULATE_WRITE);
    job->seconds = now() - began;
}

static void *work(void *argument)
{
    llmos_mapper *mapper = argument;
    pthread_mutex_lock(&mapper->lock);
    for (;;) {
        llmos_map_job *job = mapper->first;
        if (job == NULL) {
            if (mapper->is_closing)
                break;
            pthread_cond_wait(&mapper->arrived, &mapper->lock);
            continue;
        }
        mapper->first = job->next;
        pthread_mutex_unlock(&mapper->lock);
        map(mapper, job);
        pthread_mutex_lock(&mapper->lock);
        job->is_done = true; /* from here on it is the caller's again */
        if (mapper->num_waiting)
            pthread_cond_broadcast(&mapper->finished);
    }
    pthread_mutex_unlock(&mapper->lock);
    return NULL;
}

int llmos_mapper_open(void *base, size_t frame_bytes, int fd, llmos_mapper **out)
{
    llmos_mapper *mapper = calloc(1, sizeof *mapper);
    if (mapper == NULL)
        return ENOMEM;
    mapper->base = base;
    mapper->frame_bytes = frame_bytes;
    mapper->fd = fd;
    pthread_mutex_init(&mapper->lock, NULL); /* on Linux these three cannot fail */
    pthread_cond_init(&mapper->arrived, NULL);
    pthread_cond_init(&mapper->finished, NULL);
    int error = pthread_create(&mapper->thread, NULL, work, mapper);
    if (error)
        free(mapper);
    else
        *out = mapper;
    return error;
}

void llmos_mapper_submit(llmos_mapper *mapper, llmos_map_job *job)
{
    job->is_done = false;
    job->next = NULL;
    pthread_mutex_lock(&mapper->lock);
    bool was_idle = mapper->first == NULL;
    if (was_idle)
        mapper->first = job;
    else
        mapper->last->next = job;
    mapper->last = job;
    pthread_mutex_unlock(&mapper->lock);
    if (was_idle)
        pthread_cond_signal(&mapper->arrived);
}

int32_t llmos_mapper_wait(llmos_mapper *mapper, llmos_map_job *job)
{
    pthread_mutex_lock(&mapper->lock);
    int32_t had_to = !job->is_done;
    mapper->num_waiting++;
    while (!job->is_done)
        pthread_cond_wait(&mapper->finished, &mapper->lock);
    mapper->num_waiting--;
    pthread_mutex_unlock(&mapper->lock);
    return had_to;
}

void llmos_mapper_close(llmos_mapper *mapper)
{
    pthread_mutex_lock(&mapper->lock);
    mapper->is_closing = true;
    pthread_mutex_unlock(&mapper->lock);
    pthread_cond_signal(&mapper->arrived);
    pthread_join(mapper->thread, NULL);
    pthread_cond_destroy(&mapper->finished);
    pthread_cond_destroy(&mapper->arrived);
    pthread_mutex_destroy(&mapper->lock);
    free(mapper);
}
