/* Which vector instructions this processor has and its operating system lets programs use. */
#ifndef EDIM_PROCESSOR_H
#define EDIM_PROCESSOR_H

#include "kernels.h"

#if EDIM_X86
#include <cpuid.h>

static uint32_t edim_cpuid(uint32_t leaf, int reg) {
    uint32_t r[4] = {0, 0, 0, 0};
    if (!__get_cpuid_count(leaf, 0, &r[0], &r[1], &r[2], &r[3])) return 0;
    return r[reg];
}

/* The registers that the operating system saves (XCR0). */
static uint32_t edim_saved_registers(void) {
    uint32_t low, high;
    if (!(edim_cpuid(1, 2) >> 27 & 1)) return 0;
    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0)); /* xgetbv */
    return low;
}

static int edim_has_avx2(void) {
    const int fma = edim_cpuid(1, 2) >> 12 & 1, avx2 = edim_cpuid(7, 1) >> 5 & 1;
    return fma && avx2 && (edim_saved_registers() & 0x06) == 0x06;
}

static int edim_has_avx512(void) {
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    return edim_has_avx2() && (edim_cpuid(7, 1) & f_dq_bw_vl) == f_dq_bw_vl &&
           (edim_saved_registers() & 0xe6) == 0xe6;
}
#endif

#endif
