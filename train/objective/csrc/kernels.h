/* The forms of the kernel, and how a file says which instructions it may use. */
#ifndef EDIM_KERNELS_H
#define EDIM_KERNELS_H

#include <math.h>
#include <string.h>

#include "objective.h"

#if defined(__x86_64__) || defined(_M_X64)
#define EDIM_X86 1
#else
#define EDIM_X86 0
#endif
#if defined(__aarch64__) || defined(_M_ARM64)
#define EDIM_ARM64 1
#else
#define EDIM_ARM64 0
#endif

/* Functions between the two may use more instructions than the rest of the library, which is
 * compiled for any processor: which form runs is decided when it is called. */
#define EDIM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define EDIM_TARGET_BEGIN(features) \
    EDIM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define EDIM_TARGET_END EDIM_PRAGMA(clang attribute pop)
#else
#define EDIM_TARGET_BEGIN(features) EDIM_PRAGMA(GCC push_options) EDIM_PRAGMA(GCC target(features))
#define EDIM_TARGET_END EDIM_PRAGMA(GCC pop_options)
#endif

/* clang 18 to 21 tell 512-bit registers apart from the instructions that use them. */
#if defined(__clang__) && __clang_major__ >= 18 && __clang_major__ <= 21
#define EDIM_AVX512 "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,evex512"
#else
#define EDIM_AVX512 "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"
#endif

/* Each works through one utterance of the batch. */
typedef struct {
    int64_t (*workspace)(int64_t length, int64_t size);
    void (*loss)(const EdimObjective *job, int64_t b, void *memory);
    void (*best)(const EdimObjective *job, int64_t b, void *memory);
    void (*sample)(const EdimObjective *job, int64_t b, void *memory);
} EdimKernel;

extern const EdimKernel edim_kernel_scalar, edim_kernel_double, edim_kernel_avx2,
    edim_kernel_avx512, edim_kernel_neon;

#define KERNEL_TABLE(form)                                                                       \
    static int64_t KERNEL(workspace)(int64_t length, int64_t size) {                              \
        Work work;                                                                                \
        return lay_out(&work, 0, length, size);                                                   \
    }                                                                                             \
    const EdimKernel edim_kernel_##form = {KERNEL(workspace), KERNEL(loss), KERNEL(best),         \
                                           KERNEL(sample)};

#endif
