#ifndef LLMOS_MAPPER_H
#define LLMOS_MAPPER_H
#include "types.h"

/* --- mapper.c: pages mapped and populated by a thread of their own, beside everything else ---------------- */

/* Pages to map. Everything here belongs to the caller, and stays where it is until the job is done. */
typedef struct llmos_map_job {
    size_t count;
    const uint64_t *pages;  /* [count] of the reserved range */
    const uint64_t *frames; /* [count] of the file */
    /* results */
    int32_t error;  /* 0, or an errno value: some of the pages are not mapped */
    double seconds; /* that it took */
    /* the mapper's own */
    int32_t is_done;
    struct llmos_map_job *next;
} llmos_map_job;

typedef struct llmos_mapper llmos_mapper;

/* Start the thread. base, frame_bytes and fd as for llmos_map_frames, good until the mapper is closed. 0 or an
 * errno value.
 */
int llmos_mapper_open(void *base, size_t frame_bytes, int fd, llmos_mapper **out);

/* Take a job on. It never waits. Jobs are done in the order in which they are given. */
void llmos_mapper_submit(llmos_mapper *mapper, llmos_map_job *job);

/* Wait for one job. True: it was not done yet. */
int32_t llmos_mapper_wait(llmos_mapper *mapper, llmos_map_job *job);

/* Wait until every job is done, then end the thread and free the mapper. */
void llmos_mapper_close(llmos_mapper *mapper);

#endif
