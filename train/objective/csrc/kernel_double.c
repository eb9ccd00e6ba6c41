/* The objective in double precision, for checks of gradients. */
#include "kernels.h"
#define KERNEL(name) edim_##name##_double
#define EDIM_DOUBLE
#include "simd_scalar.h"
#include "kernel.h"
KERNEL_TABLE(double)
