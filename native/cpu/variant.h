#ifndef LLMOS_VARIANT_H
#define LLMOS_VARIANT_H
#include "types.h"

/* Instruction sets that kernels are written for, each including those before it. */
enum {
    LLMOS_PLAIN = 0,  /* portable C */
    LLMOS_AVX2 = 1,   /* with FMA and F16C */
    LLMOS_AVX512 = 2, /* F, BW, DQ, VL, VNNI */
    LLMOS_NUM_VARIANTS = 3
};

/* The best variant that this machine runs: every one up to it works, those above it must not be called. */
int32_t llmos_best_variant(void);

/* Its name: "plain", "avx2", "avx512". */
const char *llmos_variant_name(int32_t variant);

#endif
