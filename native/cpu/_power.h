#ifndef LLMOS_POWER_H
#define LLMOS_POWER_H
#include <stdint.h>
#include <string.h>

/* 2^y for y <= 0, within 2 units in the last place; 1 at 0, 0 below -1021 and for NaN.
 * 1 + y q(y) of degree 11 on [-1/2, 1/2], q through the Chebyshev nodes: 2e-17 off there, before rounding.
 */
static inline __attribute__((always_inline, unused)) double power_of_two(double y)
{
    double shifted = y + 0x1.8p52, part = y - (shifted - 0x1.8p52); /* the whole part is in the low bits */
    double p = 0x1.e9d3fe3952179p-32;
    p = p * part + 0x1.e6063f7217bc6p-28;
    p = p * part + 0x1.b524fae627834p-24;
    p = p * part + 0x1.62bfd47773353p-20;
    p = p * part + 0x1.ffcbfc670dcd4p-17;
    p = p * part + 0x1.430913096fd9fp-13;
    p = p * part + 0x1.5d87fe78a5276p-10;
    p = p * part + 0x1.3b2ab6fba1ddap-7;
    p = p * part + 0x1.c6b08d704a0c2p-5;
    p = p * part + 0x1.ebfbdff82c598p-3;
    p = p * part + 0x1.62e42fefa39efp-1;
    p = p * part + 1.0;
    uint64_t bits, whole;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&whole, &shifted, sizeof whole);
    bits = (bits + (whole << 52)) & -(uint64_t)(y >= -1021.0); /* a mask, no branch: loops stay vectors */
    memcpy(&p, &bits, sizeof p);
    return p;
}

#endif
