#include "kernels.h"
#if EDIM_X86
#include <immintrin.h>
EDIM_TARGET_BEGIN("avx2,fma")
#define KERNEL(name) edim_##name##_avx2
#include "simd_avx2.h"
#include "kernel.h"
KERNEL_TABLE(avx2)
EDIM_TARGET_END
#endif
