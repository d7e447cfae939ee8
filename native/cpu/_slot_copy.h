#ifndef LLMOS_SLOT_COPY_H
#define LLMOS_SLOT_COPY_H
#include "transfer.h"

#include <stdbool.h>

/* --- slot_copy.c: some slots of a job, copied by one thread -------------------------------------------------- */

enum { LLMOS_BOUNCE_BYTES = 256 << 10 }; /* of each thread, between two files */

bool llmos_wants_checksum(const llmos_transfer *job);

/* Say in which order slots are copied, in job->order: that of the file where there is one, else as they come. */
void llmos_order_slots(llmos_transfer *job);

/* Copy the slots at positions first to first + count - 1 of that order.
 *
 * bounce: LLMOS_BOUNCE_BYTES of memory for the thread alone.
 * breathe: called with `argument` behind each piece of a job that is copied in pieces.
 */
void llmos_copy_slots(llmos_transfer *job, size_t first, size_t count, char *bounce, void (*breathe)(void *),
                      void *argument);

#endif
