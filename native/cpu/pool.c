/* Threads that share the work of a step, on cores that others may be using too.
 *
 * There is no barrier that all threads must reach. The items of a phase are handed out one by one by an atomic
 * counter, and whoever finishes the last one opens the next phase. A thread that sleeps, or that the system
 * has taken off its core between two items, holds nothing and delays nobody.
 *
 * The phase, the number of its items and the next item lie in one 64-bit word, so that a thread that comes
 * late either gets an item of the phase that is open or learns that there is none.
 */
#define _GNU_SOURCE
#include "_pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum {
    SPINS = 1000,    /* pauses before the core is offered to others: some 20 microseconds */
    YIELDS = 600,    /* offers before going to sleep: a step soon follows a step, and waking takes long */
    FIELD_BITS = 20, /* of the item and of the number of items; the phase has the rest */
};

struct llmos_pool {
    _Alignas(64) _Atomic uint64_t ticket;   /* phase | number of items | next item */
    _Alignas(64) _Atomic uint32_t num_done; /* items of the open phase */
    _Alignas(64) _Atomic uint32_t epoch;    /* what sleepers wait on: changes when a phase opens */
    _Atomic bool is_anyone_asleep;          /* since the last call to wake */
    _Atomic bool is_caller_asleep;
    _Atomic bool is_finished;
    _Atomic bool is_closing;
    _Atomic int32_t max_threads;            /* threads from here on leave the job alone */
    /* written while no phase is open, and so while nobody reads it */
    _Alignas(64) const llmos_job *job;
    void *context;
    uint64_t first_phase;
    int32_t num_threads;
    int32_t num_started;
    pthread_t *threads;
};

typedef struct {
    llmos_pool *pool;
    int32_t thread;
} worker;

static uint64_t pack(uint64_t phase, uint64_t count)
{
    return phase << (2 * FIELD_BITS) | count << FIELD_BITS;
}

static uint32_t next_of(uint64_t ticket)
{
    return (uint32_t)(ticket & ((1u << FIELD_BITS) - 1));
}

static uint32_t count_of(uint64_t ticket)
{
    return (uint32_t)(ticket >> FIELD_BITS & ((1u << FIELD_BITS) - 1));
}

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Results must not depend on which thread computed them, so all run with one setting: tiny numbers are zero. */
static unsigned set_float_mode(void)
{
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* flush to zero, denormals are zero */
    return before;
#else
    return 0;
#endif
}

static void restore_float_mode(unsigned mode)
{
#if defined(__x86_64__)
    _mm_setcsr(mode);
#else
    (void)mode;
#endif
}

/* Open the first phase from `phase` on that has items, or finish. */
static void open_phase(llmos_pool *pool, int32_t phase)
{
    const llmos_job *job = pool->job;
    int32_t count = 0;
    while (phase < job->num_phases && (count = job->count(pool->context, phase)) == 0)
        phase++;
    bool is_last = phase == job->num_phases;
    if (is_last)
        count = 0;
    atomic_store_explicit(&pool->num_done, 0, memory_order_relaxed);
    atomic_store(&pool->ticket, pack(pool->first_phase + (uint64_t)phase, (uint64_t)count));
    if (is_last)
        atomic_store(&pool->is_finished, true); /* from here on the next job may begin */
    /* A single item is ours, and at the end only the caller needs to know. Those who are called are not called
     * again while they wait for a core. Asked before the epoch changes: who says later that he sleeps is either
     * still counted for the next phase or has seen the new epoch.
     */
    bool must_wake = is_last     ? atomic_load(&pool->is_caller_asleep)
                     : count > 1 ? atomic_exchange(&pool->is_anyone_asleep, false)
                                 : false;
    atomic_fetch_add(&pool->epoch, 1);
    if (must_wake)
        syscall(SYS_futex, &pool->epoch, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Do one item, if there is one. */
static bool help(llmos_pool *pool, int32_t thread)
{
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    if (next_of(ticket) >= count_of(ticket)
        || thread >= atomic_load_explicit(&pool->max_threads, memory_order_relaxed))
        return false;
    ticket = atomic_fetch_add_explicit(&pool->ticket, 1, memory_order_acq_rel);
    if (next_of(ticket) >= count_of(ticket))
        return false;
    /* the phase cannot end before this item does: job and context are safe to read */
    uint64_t phase = (ticket >> (2 * FIELD_BITS)) - pool->first_phase;
    phase &= (1u << (64 - 2 * FIELD_BITS)) - 1;
    pool->job->run(pool->context, (int32_t)phase, (int32_t)next_of(ticket), thread);
    if (atomic_fetch_add_explicit(&pool->num_done, 1, memory_order_acq_rel) + 1 == count_of(ticket))
        open_phase(pool, (int32_t)phase + 1);
    return true;
}

static bool must_wait(llmos_pool *pool, int32_t thread)
{
    uint64_t ticket = atomic_load(&pool->ticket);
    if (thread == 0)
        return next_of(ticket) >= count_of(ticket) && !atomic_load(&pool->is_finished);
    return (next_of(ticket) >= count_of(ticket) || thread >= atomic_load(&pool->max_threads))
           && !atomic_load(&pool->is_closing);
}

/* Nothing to do: spin a little, offer the core to others, then sleep until a phase opens. */
static void idle(llmos_pool *pool, int32_t thread, int32_t *num_idle)
{
    if (*num_idle < SPINS) {
        pause_briefly();
    } else if (*num_idle < SPINS + YIELDS) {
        sched_yield();
    } else {
        uint32_t epoch = atomic_load(&pool->epoch);
        atomic_store(&pool->is_anyone_asleep, true);
        if (thread == 0)
            atomic_store(&pool->is_caller_asleep, true);
        if (must_wait(pool, thread))
            syscall(SYS_futex, &pool->epoch, FUTEX_WAIT_PRIVATE, epoch, NULL, NULL, 0);
        if (thread == 0)
            atomic_store(&pool->is_caller_asleep, false);
        *num_idle = 0;
        return;
    }
    ++*num_idle;
}

static void *work(void *argument)
{
    worker self = *(worker *)argument;
    free(argument);
    set_float_mode();
    int32_t num_idle = 0;
    while (!atomic_load_explicit(&self.pool->is_closing, memory_order_acquire)) {
        if (help(self.pool, self.thread))
            num_idle = 0;
        else
            idle(self.pool, self.thread, &num_idle);
    }
    return NULL;
}

/* Start a thread, on one processor unless that is negative. */
static int start(pthread_t *thread, int32_t processor, worker *self)
{
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    if (processor >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(processor, &set); /* beyond the set's size: an empty one, which is refused */
        error = pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
    }
    if (!error)
        error = pthread_create(thread, &attributes, work, self);
    pthread_attr_destroy(&attributes);
    return error;
}

int llmos_pool_open(int32_t num_threads, const int32_t *processors, llmos_pool **out)
{
    llmos_pool *pool = aligned_alloc(64, sizeof *pool);
    pthread_t *threads = calloc((size_t)num_threads, sizeof *threads);
    if (pool == NULL || threads == NULL) {
        free(pool);
        free(threads);
        return ENOMEM;
    }
    memset(pool, 0, sizeof *pool);
    pool->threads = threads;
    pool->num_threads = num_threads;
    pool->is_finished = true;
    for (int32_t thread = 1; thread < num_threads; thread++) {
        worker *self = malloc(sizeof *self);
        int error = self == NULL ? ENOMEM : 0;
        if (!error) {
            *self = (worker){pool, thread};
            error = start(&threads[thread], processors ? processors[thread - 1] : -1, self);
            if (error)
                free(self);
        }
        if (error) {
            llmos_pool_close(pool);
            return error;
        }
        pool->num_started++;
    }
    *out = pool;
    return 0;
}

void llmos_pool_close(llmos_pool *pool)
{
    atomic_store(&pool->is_closing, true);
    atomic_fetch_add(&pool->epoch, 1);
    syscall(SYS_futex, &pool->epoch, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    for (int32_t thread = 1; thread <= pool->num_started; thread++)
        pthread_join(pool->threads[thread], NULL);
    free(pool->threads);
    free(pool);
}

int32_t llmos_pool_size(const llmos_pool *pool)
{
    return pool->num_threads;
}

void llmos_pool_run(llmos_pool *pool, const llmos_job *job, void *context, int32_t max_threads)
{
    unsigned mode = set_float_mode();
    if (max_threads <= 1 || pool->num_threads == 1) {
        for (int32_t phase = 0; phase < job->num_phases; phase++) {
            int32_t count = job->count(context, phase);
            for (int32_t item = 0; item < count; item++)
                job->run(context, phase, item, 0);
        }
    } else {
        pool->job = job;
        pool->context = context;
        pool->first_phase = (atomic_load(&pool->ticket) >> (2 * FIELD_BITS)) + 1;
        atomic_store(&pool->max_threads, max_threads);
        atomic_store(&pool->is_finished, false);
        open_phase(pool, 0);
        int32_t num_idle = 0;
        while (!atomic_load_explicit(&pool->is_finished, memory_order_acquire)) {
            if (help(pool, 0))
                num_idle = 0;
            else
                idle(pool, 0, &num_idle);
        }
    }
    restore_float_mode(mode);
}

/* --- exercise -------------------------------------------------------------------------------------------- */

typedef struct {
    int32_t num_items;
    uint32_t *cells;
    int32_t *workers;
} exercise;

static int32_t count_exercise(void *context, int32_t phase)
{
    return phase % 5 == 4 ? 0 : ((exercise *)context)->num_items; /* an empty phase now and then */
}

static void run_exercise(void *context, int32_t phase, int32_t item, int32_t thread)
{
    exercise *e = context;
    uint32_t sum = (uint32_t)item;
    int32_t previous = phase - 1 - (phase % 5 == 0);
    for (int32_t i = 0; previous >= 0 && i < e->num_items; i++)
        sum += e->cells[(size_t)previous * e->num_items + i];
    e->cells[(size_t)phase * e->num_items + item] = sum;
    e->workers[(size_t)phase * e->num_items + item] = thread;
}

void llmos_pool_exercise(llmos_pool *pool, int32_t num_phases, int32_t num_items, uint32_t *cells,
                         int32_t *workers)
{
    exercise context = {num_items, cells, workers};
    llmos_job job = {num_phases, count_exercise, run_exercise};
    llmos_pool_run(pool, &job, &context, INT32_MAX);
}
