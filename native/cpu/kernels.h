#ifndef LLMOS_KERNELS_PUBLIC_H
#define LLMOS_KERNELS_PUBLIC_H
#include "variant.h"

/* --- kernels.c: the variant of attention, norms and activations ----------------------------------------- */

/* Use a variant (see variant.h) from now on, in the whole process; at first the best one is in use. For tests and
 * measurements: no kernel may be running. Returns 0, or ENOTSUP where the machine cannot run it.
 */
int32_t llmos_use_kernels(int32_t variant);

#endif
