/* The primitives of kernel.h for AVX-512 (F, DQ, VL, BW): 16 floats. */
enum { LANES = 16 };
typedef float real;
typedef __m512 vf;
typedef __m512i vi;

static inline __mmask16 first(int64_t n) { return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1u); }

static inline vf f_load(const real *p) { return _mm512_loadu_ps(p); }
static inline void f_store(real *p, vf v) { _mm512_storeu_ps(p, v); }
static inline vf f_load_n(const real *p, int64_t n, real fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p);
}
static inline void f_store_n(real *p, int64_t n, vf v) { _mm512_mask_storeu_ps(p, first(n), v); }
static inline vf f_first(vf v, int64_t n) { return _mm512_maskz_mov_ps(first(n), v); }
static inline vf f_gather(const real *base, vi index) {
    return _mm512_i32gather_ps(index, base, 4);
}
static inline vf f_all(real x) { return _mm512_set1_ps(x); }
static inline vf f_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf f_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf f_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf f_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf f_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf f_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline real f_max_of(vf v) { return _mm512_reduce_max_ps(v); }
static inline real f_sum_of(vf v) { return _mm512_reduce_add_ps(v); }

static inline vi i_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline void i_store(int32_t *p, vi v) { _mm512_storeu_si512(p, v); }
static inline vi i_all(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi i_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi i_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
static inline vi i_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
static inline int32_t i_max_of(vi v) { return _mm512_reduce_max_epi32(v); }
static inline vi i_first(vi v, int64_t n, int32_t fill) {
    return _mm512_mask_mov_epi32(_mm512_set1_epi32(fill), first(n), v);
}

static inline vf f_where_equal(vi a, vi b) {
    return _mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask(a, b), _mm512_set1_ps(1.0f));
}
static inline vi i_zero_where_equal(vi a, vi b, vi other) {
    return _mm512_maskz_mov_epi32(_mm512_cmpneq_epi32_mask(a, b), other);
}
static inline vf f_where_above(vf x, vf limit, vf v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLE_UQ), v);
}
static inline vi i_where_above(vf x, vf limit, vi v, vi other) {
    return _mm512_mask_mov_epi32(other, _mm512_cmp_ps_mask(x, limit, _CMP_NLE_UQ), v);
}

static inline vf f_pow2(vi d) {
    const vi biased = _mm512_max_epi32(_mm512_add_epi32(d, i_all(127)), _mm512_setzero_si512());
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
static inline vf f_split(vf v, vi *exponent, vi dead) {
    const __mmask16 some = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    const vi bits = _mm512_castps_si512(v);
    const vi power = _mm512_sub_epi32(_mm512_srli_epi32(bits, 23), i_all(127));
    const vi mantissa = _mm512_or_epi32(_mm512_and_epi32(bits, i_all(0x7fffff)), i_all(0x3f800000));
    *exponent = _mm512_mask_mov_epi32(dead, some, power);
    return _mm512_maskz_mov_ps(some, _mm512_castsi512_ps(mantissa));
}
static inline vf f_round(vf v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vi i_from(vf v) { return _mm512_cvtps_epi32(v); }
