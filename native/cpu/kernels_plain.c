/* The kernels in plain C. */
#include "_kernels.h"
#define KERNELS llmos_kernels_plain
#include "_variant_kernels.h"
