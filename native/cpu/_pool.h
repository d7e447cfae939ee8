#ifndef LLMOS_POOL_INTERNAL_H
#define LLMOS_POOL_INTERNAL_H
#include "pool.h"

/* What a pool can run: phases one after the other, each of items in any order and on any thread. An item may
 * read all that earlier phases wrote; items of one phase must not touch what another of them writes.
 */
typedef struct {
    int32_t num_phases;
    int32_t (*count)(void *context, int32_t phase);                             /* items, 0 to 2^19 - 1 */
    void (*run)(void *context, int32_t phase, int32_t item, int32_t thread);
} llmos_job;

/* Run a job to its end, on max_threads threads at most; with one, nothing is synchronised. */
void llmos_pool_run(llmos_pool *pool, const llmos_job *job, void *context, int32_t max_threads);

/* Threads of a pool, the caller's included. */
int32_t llmos_pool_size(const llmos_pool *pool);

#endif
