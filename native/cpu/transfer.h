#ifndef LLMOS_TRANSFER_H
#define LLMOS_TRANSFER_H
#include "types.h"

/* --- transfer.c: slots moved between memory and files by threads of their own ---------------------------- */

/* Why a slot was not copied, beside errno values, which are positive. */
enum { LLMOS_TRANSFER_CHECKSUM = -1, LLMOS_TRANSFER_END = -2 /* of the source file */ };

/* One job: slot source_slots[i] of one end goes to slot target_slots[i] of the other. Everything here belongs to
 * the caller, and stays where it is until the job has been collected. No target is also a source, or twice a
 * target.
 */
typedef struct llmos_transfer {
    int32_t source_fd; /* negative: memory */
    int32_t target_fd;
    const char *source; /* slot 0, in memory; else null */
    char *target;
    size_t slot_bytes; /* at least 1 */
    size_t num_slots;
    const uint64_t *source_slots; /* [num_slots] */
    const uint64_t *target_slots; /* [num_slots] */
    size_t piece_bytes;           /* each copied by a call of its own, for comparison; 0: runs as they are */
    const uint32_t *expected;     /* [num_slots] CRC-32C of each slot as it should be, or null */
    /* results */
    uint32_t *checksums; /* [num_slots] CRC-32C of each slot, or null: not wanted */
    int32_t *errors;     /* [num_slots], zeroed by the caller; 0: the slot is whole */
    double seconds;      /* from the first slot to the last */
    /* the engine's own */
    size_t *order;      /* [num_slots], the caller's memory: in which slots are copied */
    size_t next_slot;   /* position in that order; those before it are handed out */
    int32_t num_busy;   /* stretches that are being copied */
    double began;
    struct llmos_transfer *next;
} llmos_transfer;

typedef struct llmos_transfers llmos_transfers;

/* Start threads. 0 or an errno value.
 *
 * max_active: jobs that slots are handed out of, in turn; those beyond it wait for one of them to end.
 * niceness: of the threads, added to that of the program.
 */
int llmos_transfers_open(int32_t num_threads, int32_t max_active, int32_t niceness, llmos_transfers **out);

/* An eventfd that is readable when a job may have ended since the last call to collect. */
int llmos_transfers_event(const llmos_transfers *engine);

/* The first index at which a slot is not below the limit; count: there is none. */
size_t llmos_transfer_find_outside(const uint64_t *slots, size_t count, uint64_t limit);

/* Take a job on. It never waits. */
void llmos_transfers_submit(llmos_transfers *engine, llmos_transfer *job);

/* The job that ended first, or null. From here on it is the caller's again. */
llmos_transfer *llmos_transfers_collect(llmos_transfers *engine);

/* Wait until every job has ended. */
void llmos_transfers_wait(llmos_transfers *engine);

/* Give up what has not begun: those slots get ECANCELED. What is being copied comes to its end. */
void llmos_transfers_cancel(llmos_transfers *engine);

/* Wait until every job has ended, then end the threads and free the engine. */
void llmos_transfers_close(llmos_transfers *engine);

#endif
