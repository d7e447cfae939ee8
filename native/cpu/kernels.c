/* The table of variants, and which of them is in use. */
#include "_kernels.h"

#include <errno.h>
#include <stddef.h>

static const llmos_kernels *const variants[LLMOS_NUM_VARIANTS] = {
    &llmos_kernels_plain,
#if defined(LLMOS_HAS_X86)
    &llmos_kernels_avx2,
    &llmos_kernels_avx512,
#endif
};

static const llmos_kernels *in_use; /* null until the first call */

int32_t llmos_use_kernels(int32_t variant)
{
    if (variant < 0 || variant > llmos_best_variant() || variants[variant] == NULL)
        return ENOTSUP;
    __atomic_store_n(&in_use, variants[variant], __ATOMIC_RELAXED);
    return 0;
}

const llmos_kernels *llmos_kernels_now(void)
{
    const llmos_kernels *now = __atomic_load_n(&in_use, __ATOMIC_RELAXED);
    if (now == NULL) {
        /* threads that come here together store the same */
        int32_t variant = llmos_best_variant();
        while (llmos_use_kernels(variant))
            variant--;
        now = __atomic_load_n(&in_use, __ATOMIC_RELAXED);
    }
    return now;
}
