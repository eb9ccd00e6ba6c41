#include "kernels.h"
#if EDIM_X86
#include <immintrin.h>
EDIM_TARGET_BEGIN(EDIM_AVX512)
#define KERNEL(name) edim_##name##_avx512
#include "simd_avx512.h"
#include "kernel.h"
KERNEL_TABLE(avx512)
EDIM_TARGET_END
#endif
