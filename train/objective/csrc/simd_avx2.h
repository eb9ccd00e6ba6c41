/* The primitives of kernel.h for AVX2 with FMA: 8 floats. */
enum { LANES = 8 };
typedef float real;
typedef __m256 vf;
typedef __m256i vi;

/* All bits set in the first n elements. */
static inline vi first(int64_t n) {
    const vi place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n > 8 ? 8 : (int32_t)n), place);
}

static inline vf f_load(const real *p) { return _mm256_loadu_ps(p); }
static inline void f_store(real *p, vf v) { _mm256_storeu_ps(p, v); }
static inline vf f_load_n(const real *p, int64_t n, real fill) {
    const vi mask = first(n);
    return _mm256_blendv_ps(
        _mm256_set1_ps(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}
static inline void f_store_n(real *p, int64_t n, vf v) { _mm256_maskstore_ps(p, first(n), v); }
static inline vf f_first(vf v, int64_t n) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(first(n)));
}
static inline vf f_gather(const real *base, vi index) {
    return _mm256_i32gather_ps(base, index, 4);
}
static inline vf f_all(real x) { return _mm256_set1_ps(x); }
static inline vf f_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf f_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf f_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf f_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf f_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf f_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline real f_max_of(vf v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
static inline real f_sum_of(vf v) {
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_add_ss(m, _mm_shuffle_ps(m, m, 1)));
}

static inline vi i_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void i_store(int32_t *p, vi v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline vi i_all(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi i_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi i_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
static inline vi i_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
static inline int32_t i_max_of(vi v) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
static inline vi i_first(vi v, int64_t n, int32_t fill) {
    return _mm256_blendv_epi8(_mm256_set1_epi32(fill), v, first(n));
}

static inline vf f_where_equal(vi a, vi b) {
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)), _mm256_set1_ps(1.0f));
}
static inline vi i_zero_where_equal(vi a, vi b, vi other) {
    return _mm256_andnot_si256(_mm256_cmpeq_epi32(a, b), other);
}
static inline vf f_where_above(vf x, vf limit, vf v) {
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLE_UQ), v);
}
static inline vi i_where_above(vf x, vf limit, vi v, vi other) {
    return _mm256_blendv_epi8(other, v, _mm256_castps_si256(_mm256_cmp_ps(x, limit, _CMP_NLE_UQ)));
}

static inline vf f_pow2(vi d) {
    const vi biased = _mm256_max_epi32(_mm256_add_epi32(d, i_all(127)), _mm256_setzero_si256());
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
static inline vf f_split(vf v, vi *exponent, vi dead) {
    const __m256 some = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ);
    const vi bits = _mm256_castps_si256(v);
    const vi power = _mm256_sub_epi32(_mm256_srli_epi32(bits, 23), i_all(127));
    const vi mantissa = _mm256_or_si256(_mm256_and_si256(bits, i_all(0x7fffff)), i_all(0x3f800000));
    *exponent = _mm256_blendv_epi8(dead, power, _mm256_castps_si256(some));
    return _mm256_and_ps(some, _mm256_castsi256_ps(mantissa));
}
static inline vf f_round(vf v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vi i_from(vf v) { return _mm256_cvtps_epi32(v); }
