/* The primitives of kernel.h for 64-bit Arm: 4 floats. */
enum { LANES = 4 };
typedef float real;
typedef float32x4_t vf;
typedef int32x4_t vi;

/* All bits set in the first n elements. */
static inline uint32x4_t first(int64_t n) {
    static const int32_t place[4] = {0, 1, 2, 3};
    return vcgtq_s32(vdupq_n_s32(n > 4 ? 4 : (int32_t)n), vld1q_s32(place));
}

static inline vf f_load(const real *p) { return vld1q_f32(p); }
static inline void f_store(real *p, vf v) { vst1q_f32(p, v); }
static inline vf f_load_n(const real *p, int64_t n, real fill) {
    real whole[4];
    for (int64_t i = 0; i < 4; i++) whole[i] = i < n ? p[i] : fill;
    return vld1q_f32(whole);
}
static inline void f_store_n(real *p, int64_t n, vf v) {
    real whole[4];
    vst1q_f32(whole, v);
    for (int64_t i = 0; i < 4 && i < n; i++) p[i] = whole[i];
}
static inline vf f_first(vf v, int64_t n) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), first(n)));
}
static inline vf f_gather(const real *base, vi index) {
    const real whole[4] = {base[vgetq_lane_s32(index, 0)], base[vgetq_lane_s32(index, 1)],
                           base[vgetq_lane_s32(index, 2)], base[vgetq_lane_s32(index, 3)]};
    return vld1q_f32(whole);
}
static inline vf f_all(real x) { return vdupq_n_f32(x); }
static inline vf f_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf f_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf f_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf f_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf f_max(vf a, vf b) { return vmaxq_f32(a, b); }
static inline vf f_min(vf a, vf b) { return vminq_f32(a, b); }
static inline real f_max_of(vf v) { return vmaxvq_f32(v); }
static inline real f_sum_of(vf v) { return vaddvq_f32(v); }

static inline vi i_load(const int32_t *p) { return vld1q_s32(p); }
static inline void i_store(int32_t *p, vi v) { vst1q_s32(p, v); }
static inline vi i_all(int32_t x) { return vdupq_n_s32(x); }
static inline vi i_add(vi a, vi b) { return vaddq_s32(a, b); }
static inline vi i_sub(vi a, vi b) { return vsubq_s32(a, b); }
static inline vi i_max(vi a, vi b) { return vmaxq_s32(a, b); }
static inline int32_t i_max_of(vi v) { return vmaxvq_s32(v); }
static inline vi i_first(vi v, int64_t n, int32_t fill) {
    return vbslq_s32(first(n), v, vdupq_n_s32(fill));
}

static inline vf f_where_equal(vi a, vi b) {
    return vreinterpretq_f32_u32(vandq_u32(vceqq_s32(a, b), vdupq_n_u32(0x3f800000u)));
}
static inline vi i_zero_where_equal(vi a, vi b, vi other) {
    return vbslq_s32(vceqq_s32(a, b), vdupq_n_s32(0), other);
}
static inline vf f_where_above(vf x, vf limit, vf v) {
    return vbslq_f32(vcleq_f32(x, limit), vdupq_n_f32(0.0f), v);
}
static inline vi i_where_above(vf x, vf limit, vi v, vi other) {
    return vbslq_s32(vcleq_f32(x, limit), other, v);
}

static inline vf f_pow2(vi d) {
    const vi biased = vmaxq_s32(vaddq_s32(d, vdupq_n_s32(127)), vdupq_n_s32(0));
    return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
}
static inline vf f_split(vf v, vi *exponent, vi dead) {
    const uint32x4_t none = vceqq_f32(v, vdupq_n_f32(0.0f));
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const vi power = vsubq_s32(vreinterpretq_s32_u32(vshrq_n_u32(bits, 23)), vdupq_n_s32(127));
    const uint32x4_t mantissa =
        vorrq_u32(vandq_u32(bits, vdupq_n_u32(0x7fffffu)), vdupq_n_u32(0x3f800000u));
    *exponent = vbslq_s32(none, dead, power);
    return vbslq_f32(none, vdupq_n_f32(0.0f), vreinterpretq_f32_u32(mantissa));
}
static inline vf f_round(vf v) { return vrndnq_f32(v); }
static inline vi i_from(vf v) { return vcvtq_s32_f32(v); }
