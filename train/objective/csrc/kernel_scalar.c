/* The objective, one float at a time: for processors that have no form of their own. */
#include "kernels.h"
#define KERNEL(name) edim_##name##_scalar
#include "simd_scalar.h"
#include "kernel.h"
KERNEL_TABLE(scalar)
