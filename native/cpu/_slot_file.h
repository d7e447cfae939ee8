#ifndef LLMOS_SLOT_FILE_H
#define LLMOS_SLOT_FILE_H
#include "transfer.h"

#include <stdbool.h>

/* --- slot_file.c: slots in memory to and from a file, with an error for each -------------------------------- */

/* Does one end lie in a file, and the other in memory? */
bool llmos_is_filed(const llmos_transfer *job);

/* How many of the job's slots from position `first` on, at most `most`, are neighbours in the file. */
size_t llmos_filed_run(const llmos_transfer *job, size_t first, size_t most);

/* Move such a run between the file and wherever its slots are in memory, as its direction says. A slot that fails
 * is left behind with its error, and the rest of the run goes on.
 */
void llmos_move_filed_run(llmos_transfer *job, size_t first, size_t count);

/* Move bytes between memory and a file. 0, an errno value or LLMOS_TRANSFER_END. */
int32_t llmos_read_bytes(int fd, char *to, size_t size, uint64_t at);
int32_t llmos_write_bytes(int fd, const char *from, size_t size, uint64_t at);

#endif
