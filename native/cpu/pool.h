#ifndef LLMOS_POOL_H
#define LLMOS_POOL_H
#include "types.h"

/* --- pool.c: threads that share the work of a step ------------------------------------------------------ */

typedef struct llmos_pool llmos_pool;

/* Start num_threads - 1 threads; the one that brings work is the first. processors is null, or [num_threads - 1]:
 * the one that each of them stays on, negative for none. 0 or an errno value: EINVAL for a processor that there is
 * not.
 */
int llmos_pool_open(int32_t num_threads, const int32_t *processors, llmos_pool **pool);

/* End the threads and free the pool. No work may be under way. */
void llmos_pool_close(llmos_pool *pool);

/* For tests: num_phases phases of num_items items each, where an item adds up the whole of the phase before.
 * cells is [num_phases][num_items], zeroed; afterwards cells[p][i] = sum(cells[p - 1]) + i, modulo 2^32, and
 * workers[p][i] says which thread did it.
 */
void llmos_pool_exercise(llmos_pool *pool, int32_t num_phases, int32_t num_items, uint32_t *cells,
                         int32_t *workers);

#endif
