#include "processor.h"

#ifndef POLICY_INSTRUCTIONS
#error "POLICY_INSTRUCTIONS is the name of what the generated code is compiled for"
#endif

const char *processor_needed(void) { return POLICY_INSTRUCTIONS; }

#if defined(__x86_64__)

#include <cpuid.h>

enum { AX, BX, CX, DX };

/* The bits of x86-64-v3 and x86-64-v4, by the psABI. Of what lies in v2, SSE4.2 and POPCNT tell. */
static const struct {
    unsigned leaf, place, bits;
} v3[] = {
    {1, CX, 1u << 12 | 1u << 20 | 1u << 22 | 1u << 23 | 1u << 27 | 1u << 28 | 1u << 29}, /* FMA ... OSXSAVE AVX F16C */
    {7, BX, 1u << 3 | 1u << 5 | 1u << 8},                                                 /* BMI1 AVX2 BMI2 */
    {0x80000001, CX, 1u << 0 | 1u << 5},                                                  /* LAHF LZCNT */
}, v4[] = {
    {7, BX, 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31},                        /* AVX512 F DQ CD BW VL */
};

static int has(unsigned leaf, unsigned place, unsigned bits) {
    unsigned found[4] = {0, 0, 0, 0};
    return __get_cpuid_count(leaf, 0, &found[AX], &found[BX], &found[CX], &found[DX]) && (found[place] & bits) == bits;
}

/* Whether the operating system keeps the registers of these numbers (XCR0). */
static int keeps(unsigned registers) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return (low & registers) == registers;
}

int processor_suffices(void) {
    unsigned i;
    if (POLICY_LEVEL < 3) return 1;
    for (i = 0; i < sizeof v3 / sizeof *v3; ++i) {
        if (!has(v3[i].leaf, v3[i].place, v3[i].bits)) return 0;
    }
    if (!keeps(0x6)) return 0;
    if (POLICY_LEVEL < 4) return 1;
    for (i = 0; i < sizeof v4 / sizeof *v4; ++i) {
        if (!has(v4[i].leaf, v4[i].place, v4[i].bits)) return 0;
    }
    return keeps(0xe6);
}

#else

int processor_suffices(void) { return 1; } /* NEON is part of every aarch64 */

#endif
