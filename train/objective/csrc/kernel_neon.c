#include "kernels.h"
#if EDIM_ARM64
#include <arm_neon.h>
#define KERNEL(name) edim_##name##_neon
#include "simd_neon.h"
#include "kernel.h"
KERNEL_TABLE(neon)
#endif
