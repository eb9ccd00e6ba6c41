/* The primitives of kernel.h, one element at a time: any processor, and doubles (EDIM_DOUBLE). */
enum { LANES = 1 };
#ifdef EDIM_DOUBLE
typedef double real;
typedef uint64_t bits_t;
enum { MANTISSA_BITS = 52, EXPONENT_BIAS = 1023 };
#else
typedef float real;
typedef uint32_t bits_t;
enum { MANTISSA_BITS = 23, EXPONENT_BIAS = 127 };
#endif
typedef real vf;
typedef int32_t vi;

static inline vf f_load(const real *p) { return *p; }
static inline void f_store(real *p, vf v) { *p = v; }
static inline vf f_load_n(const real *p, int64_t n, real fill) { return n > 0 ? *p : fill; }
static inline void f_store_n(real *p, int64_t n, vf v) { if (n > 0) *p = v; }
static inline vf f_first(vf v, int64_t n) { return n > 0 ? v : 0; }
static inline vf f_gather(const real *base, vi index) { return base[index]; }
static inline vf f_all(real x) { return x; }
static inline vf f_add(vf a, vf b) { return a + b; }
static inline vf f_sub(vf a, vf b) { return a - b; }
static inline vf f_mul(vf a, vf b) { return a * b; }
static inline vf f_fma(vf a, vf b, vf c) { return (vf)((double)a * (double)b + (double)c); }
static inline vf f_max(vf a, vf b) { return a > b ? a : b; } /* NaN if b is */
static inline vf f_min(vf a, vf b) { return a < b ? a : b; }
static inline real f_max_of(vf v) { return v; }
static inline real f_sum_of(vf v) { return v; }

static inline vi i_load(const int32_t *p) { return *p; }
static inline void i_store(int32_t *p, vi v) { *p = v; }
static inline vi i_all(int32_t x) { return x; }
static inline vi i_add(vi a, vi b) { return a + b; }
static inline vi i_sub(vi a, vi b) { return a - b; }
static inline vi i_max(vi a, vi b) { return a > b ? a : b; }
static inline int32_t i_max_of(vi v) { return v; }
static inline vi i_first(vi v, int64_t n, int32_t fill) { return n > 0 ? v : fill; }

/* One where equal, else zero; zero where equal, else `other`. */
static inline vf f_where_equal(vi a, vi b) { return a == b ? 1 : 0; }
static inline vi i_zero_where_equal(vi a, vi b, vi other) { return a == b ? 0 : other; }

/* Keep v where x > limit, or where x is not a number; else zero, or `other`. */
static inline vf f_where_above(vf x, vf limit, vf v) { return x <= limit ? 0 : v; }
static inline vi i_where_above(vf x, vf limit, vi v, vi other) { return x <= limit ? other : v; }

/* 2^d; exactly 0 for d <= -EXPONENT_BIAS. */
static inline vf f_pow2(vi d) {
    const int32_t biased = d + EXPONENT_BIAS;
    const bits_t bits = (bits_t)(biased > 0 ? biased : 0) << MANTISSA_BITS;
    vf value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Split a positive number into a mantissa in [1, 2) and a power of two; (0, dead) for 0. */
static inline vf f_split(vf v, vi *exponent, vi dead) {
    bits_t bits;
    memcpy(&bits, &v, sizeof bits);
    if (v == 0) { *exponent = dead; return 0; }
    *exponent = (int32_t)(bits >> MANTISSA_BITS) - EXPONENT_BIAS;
    bits = (bits & (((bits_t)1 << MANTISSA_BITS) - 1)) | ((bits_t)EXPONENT_BIAS << MANTISSA_BITS);
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* The nearest integer; any one for what has none of 31 bits. */
static inline vf f_round(vf v) { return (vf)floor((double)v + 0.5); }
static inline vi i_from(vf v) { return v > -(1 << 30) && v < 1 << 30 ? (vi)v : 0; }
