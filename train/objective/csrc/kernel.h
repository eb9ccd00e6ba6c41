/* The objective of one utterance, over the primitives of simd_*.h: included once for every form.
 *
 * A probability on the lattice is a mantissa and a power of two, m * 2^e, kept apart: additions
 * need no logarithm, nothing underflows however long the audio is, and a sum is as exact as a
 * float's mantissa. Every TIDY frames a row is tidied: mantissas back to [1, 2), and the row's
 * largest power moved into a 64-bit base that all its states share.
 *
 * alpha_t holds everything up to frame t, frame t's own emission included; beta_t everything after
 * it. Emissions are exp(logit), not yet normalised: the row's normaliser is the same for every
 * state, so it cancels in the posterior, and its logarithm is added to the loss at the end.
 */
#include "lattice.h"

enum { TIDY = 8 };
/* The power of nothing: two of them and the largest powers add up without wrapping. */
#define DEAD (-(1 << 29))
/* Logits at or below -LIMIT have probability 0; above LIMIT they are taken for an overflow. */
#define LIMIT ((real)(1 << 22))

typedef struct { real *blank_m, *label_m; int32_t *blank_e, *label_e; } Row;
typedef struct { real m; int32_t e; } Scaled;

typedef struct {
    EdimLattice lattice;
    Row alpha;          /* packed rows */
    int64_t *base;      /* (length / TIDY + 1): power shared by a group of rows */
    Row beta[2];        /* beta times emission, of frame t + 1 and of frame t */
    real *emission_m;   /* (S + 1): of the labels at one frame */
    int32_t *emission_e;
    real *posterior;    /* (S + 1): of the labels at one frame, not normalised */
    int32_t *token;     /* (S + 1): the target, padded with the blank */
    double *score[5];   /* (S + 3): Viterbi's two rows of blanks and labels, and log-emissions */
    int32_t *no_skip;   /* (S + 1): 0 where label k may follow label k - 1 at once, else DEAD */
} Work;

/* ------------------------------------------------------------------ memory */

typedef struct { char *memory; int64_t used; } Space;

/* The next `bytes` of a space; nowhere if it has no memory and is only being measured. */
static void *take(Space *space, int64_t bytes) {
    void *start = space->memory ? space->memory + space->used : 0;
    space->used += (bytes + 63) / 64 * 64;
    return start;
}

static Row take_row(Space *space, int64_t n) {
    const int64_t m = n * (int64_t)sizeof(real), e = n * (int64_t)sizeof(int32_t);
    Row row;
    row.blank_m = take(space, m);
    row.blank_e = take(space, e);
    row.label_m = take(space, m);
    row.label_e = take(space, e);
    return row;
}

/* Lay memory out for an utterance of `length` frames and `size` tokens; returns its bytes. */
static int64_t lay_out(Work *work, void *memory, int64_t length, int64_t size) {
    Space space = {memory, 0};
    const int64_t width = size + 3 + EDIM_SLACK;
    work->lattice.lo = take(&space, length * 4);
    work->lattice.hi = take(&space, length * 4);
    work->lattice.row = take(&space, length * 8);
    work->base = take(&space, (length / TIDY + 1) * 8);
    work->alpha = take_row(&space, edim_packed_bound(length, size) + EDIM_SLACK);
    work->token = take(&space, width * 4);
    work->no_skip = take(&space, width * 4);
    /* The sum over paths and Viterbi's pass never meet: they use the same place. */
    Space viterbi = space;
    for (int i = 0; i < 2; i++) work->beta[i] = take_row(&space, width);
    work->emission_m = take(&space, width * (int64_t)sizeof(real));
    work->emission_e = take(&space, width * 4);
    work->posterior = take(&space, width * (int64_t)sizeof(real));
    for (int i = 0; i < 5; i++) work->score[i] = take(&viterbi, (size + 3) * 8);
    return space.used > viterbi.used ? space.used : viterbi.used;
}

/* The utterance's lattice and constants; 0 if it has no path. */
static int set_up(const EdimObjective *job, int64_t b, Work *work, void *memory) {
    EdimLattice *lattice = &work->lattice;
    lattice->length = job->input_lengths[b];
    lattice->size = job->target_lengths[b];
    lattice->target = edim_target_of(job, b);
    lattice->partial = job->partial + b * job->partial_stride_b;
    lattice->partial_stride = job->partial_stride_t;
    lattice->blank = job->blank;
    lattice->is_state = job->is_state;
    const int64_t size = lattice->size, *target = lattice->target;
    if (size > lattice->length) return 0;
    lay_out(work, memory, lattice->length, size);
    if (!edim_lattice_windows(lattice)) return 0;
    for (int64_t k = 0; k < size + 3 + EDIM_SLACK; k++) {
        const int64_t has = k < size;
        work->token[k] = (int32_t)(has ? target[k] : job->blank);
        work->no_skip[k] = has && k > 0 && target[k] != target[k - 1] ? 0 : DEAD;
    }
    return 1;
}

static const real *logits_at(const EdimObjective *job, int64_t b, int64_t t) {
    return (const real *)job->logits + b * job->logits_stride_b + t * job->logits_stride_t;
}
static real *gradient_at(const EdimObjective *job, int64_t b, int64_t t) {
    return (real *)job->gradient + b * job->gradient_stride_b + t * job->gradient_stride_t;
}

static Row row_at(Row rows, int64_t offset) {
    const Row row = {rows.blank_m + offset, rows.label_m + offset, rows.blank_e + offset,
                     rows.label_e + offset};
    return row;
}

/* ------------------------------------------------------------------ arithmetic */

/* exp(x) = m * 2^e with m about 0.7 to 1.42: exact to 1e-7 down to x = -1e5, to 4e-6 at -LIMIT. */
static inline vf exp_split(vf x, vi *e) {
#ifdef EDIM_DOUBLE
    const vf n = f_round(x * 1.44269504088896340736);
    *e = i_from(n);
    return exp((x - n * 6.93147180369123816490e-1) - n * 1.90821492927058770002e-10);
#else
    const vf n = f_round(f_mul(x, f_all(1.44269504f)));
    /* x - n ln 2, with ln 2 in two pieces: fused, the first difference is exact */
    vf r = f_fma(n, f_all(-0.693147182f), x);
    r = f_fma(n, f_all(1.90465421e-9f), r);
    vf p = f_all(0.00138143206f); /* exp(r) = 1 + r + r^2 p(r), |r| <= ln(2) / 2 */
    p = f_fma(p, r, f_all(0.00836885069f));
    p = f_fma(p, r, f_all(0.0416684002f));
    p = f_fma(p, r, f_all(0.166665196f));
    p = f_fma(p, r, f_all(0.49999994f));
    p = f_fma(p, f_mul(r, r), r);
    *e = i_from(n);
    return f_add(p, f_all(1.0f));
#endif
}

/* exp(x) as a number of its own, 0 where it underflows; NaN stays NaN. */
static inline vf exp_flat(vf x) {
    vi e;
    const vf m = exp_split(f_max(f_all(-LIMIT), x), &e);
    return f_mul(m, f_pow2(e));
}

/* exp(logit) on the lattice. Of a logit above LIMIT, or not a number, all that matters is that its
 * power overflows nowhere: log_sum_add turns the loss into NaN. */
static inline vf exp_emission(vf x, vi *e) {
    const vf limit = f_all(-LIMIT);
    vi power;
    const vf m = exp_split(f_min(f_all(LIMIT), f_max(limit, x)), &power);
    *e = i_where_above(x, limit, i_max(power, i_all(-(1 << 24))), i_all(DEAD));
    return f_where_above(x, limit, m);
}

static inline vf add2(vf m0, vi e0, vf m1, vi e1, vi *e) {
    *e = i_max(e0, e1);
    return f_fma(m0, f_pow2(i_sub(e0, *e)), f_mul(m1, f_pow2(i_sub(e1, *e))));
}
static inline vf add3(vf m0, vi e0, vf m1, vi e1, vf m2, vi e2, vi *e) {
    *e = i_max(i_max(e0, e1), e2);
    return f_fma(m0, f_pow2(i_sub(e0, *e)),
                 f_fma(m1, f_pow2(i_sub(e1, *e)), f_mul(m2, f_pow2(i_sub(e2, *e)))));
}
/* The power of a product; never below DEAD. */
static inline vi times(vi e0, vi e1) { return i_max(i_add(e0, e1), i_all(DEAD)); }

/* ------------------------------------------------------------------ rows */

/* Nothing just outside lo..hi, and no label beside the last blank. */
static void fence(Row row, int64_t lo, int64_t hi, int64_t size) {
    const int64_t last = hi == size ? hi : hi + 1;
    row.blank_m[lo - 1] = row.label_m[lo - 1] = row.blank_m[hi + 1] = row.label_m[hi + 1] = 0;
    row.blank_e[lo - 1] = row.label_e[lo - 1] = row.blank_e[hi + 1] = row.label_e[hi + 1] = DEAD;
    row.label_m[last] = 0;
    row.label_e[last] = DEAD;
}

/* m; or 0 where e is below DEAD / 2, e^-1.8e8 of the row's likeliest state: so that no number of
 * rows brings it back to life. */
static inline vf alive(vf m, vi e) {
    return f_mul(m, f_pow2(i_sub(e, i_max(e, i_all(DEAD / 2)))));
}

/* Mantissas of lo..hi into [1, 2), powers relative to the largest; returns the largest, or DEAD if
 * nothing is alive. */
static int32_t tidy(Row row, int64_t lo, int64_t hi) {
    const vi dead = i_all(DEAD);
    vi most = dead;
    for (int64_t k = lo; k <= hi; k += LANES) {
        vi b, l;
        f_store(row.blank_m + k, f_split(f_load(row.blank_m + k), &b, dead));
        f_store(row.label_m + k, f_split(f_load(row.label_m + k), &l, dead));
        b = times(i_load(row.blank_e + k), b);
        l = times(i_load(row.label_e + k), l);
        i_store(row.blank_e + k, b);
        i_store(row.label_e + k, l);
        most = i_max(most, i_first(i_max(b, l), hi + 1 - k, DEAD));
    }
    const int32_t largest = i_max_of(most);
    if (largest <= DEAD / 2) return DEAD;
    for (int64_t k = lo; k <= hi; k += LANES) {
        const vi b = times(i_load(row.blank_e + k), i_all(-largest));
        const vi l = times(i_load(row.label_e + k), i_all(-largest));
        f_store(row.blank_m + k, alive(f_load(row.blank_m + k), b));
        f_store(row.label_m + k, alive(f_load(row.label_m + k), l));
        i_store(row.blank_e + k, b);
        i_store(row.label_e + k, l);
    }
    return largest;
}

/* Emissions of the labels of frame t into work->emission; returns the blank's. */
static Scaled emissions(const EdimObjective *job, Work *work, int64_t b, int64_t t) {
    const EdimLattice *lattice = &work->lattice;
    const int64_t lo = lattice->lo[t], hi = lattice->hi[t], fixed = edim_fixed_token(lattice, t);
    Scaled blank = {0, DEAD};
    if (fixed == EDIM_MASK) {
        const real *x = logits_at(job, b, t);
        for (int64_t k = lo; k <= hi; k += LANES) {
            vi e;
            f_store(work->emission_m + k, exp_emission(f_gather(x, i_load(work->token + k)), &e));
            i_store(work->emission_e + k, e);
        }
        vi e;
        real m[LANES];
        int32_t power[LANES];
        f_store(m, exp_emission(f_all(x[lattice->blank]), &e));
        i_store(power, e);
        blank.m = m[0];
        blank.e = power[0];
        return blank;
    }
    const vi token = i_all((int32_t)(fixed == lattice->blank ? EDIM_MASK : fixed));
    for (int64_t k = lo; k <= hi; k += LANES) {
        const vi is = i_load(work->token + k);
        f_store(work->emission_m + k, f_where_equal(is, token));
        i_store(work->emission_e + k, i_zero_where_equal(is, token, i_all(DEAD)));
    }
    if (fixed == lattice->blank) {
        blank.m = 1;
        blank.e = 0;
    }
    return blank;
}

/* One row of alpha from the row before it: CTC's three moves, then the emission. */
static void alpha_step(const Work *work, Row from, Row to, int64_t lo, int64_t hi, Scaled blank) {
    const vf blank_m = f_all(blank.m);
    const vi blank_e = i_all(blank.e);
    for (int64_t k = lo; k <= hi; k += LANES) {
        const vf b = f_load(from.blank_m + k), l = f_load(from.label_m + k);
        const vf before = f_load(from.label_m + k - 1);
        const vi be = i_load(from.blank_e + k), le = i_load(from.label_e + k);
        const vi before_e = i_load(from.label_e + k - 1);
        vi e;
        vf m = add2(b, be, before, before_e, &e);
        f_store(to.blank_m + k, f_mul(m, blank_m));
        i_store(to.blank_e + k, times(e, blank_e));
        m = add3(l, le, b, be, before, i_add(before_e, i_load(work->no_skip + k)), &e);
        f_store(to.label_m + k, f_mul(m, f_load(work->emission_m + k)));
        i_store(to.label_e + k, times(e, i_load(work->emission_e + k)));
    }
}

/* All rows of alpha. Returns the sum over the two states a path may end in. */
static Scaled alpha_pass(const EdimObjective *job, Work *work, int64_t b) {
    const EdimLattice *lattice = &work->lattice;
    const int64_t size = lattice->size, last = lattice->length - 1;
    const Scaled nothing = {0, DEAD};
    work->base[0] = 0;
    for (int64_t t = 0; t <= last; t++) {
        const int64_t lo = lattice->lo[t], hi = lattice->hi[t];
        const Row row = row_at(work->alpha, lattice->row[t]);
        const Scaled blank = emissions(job, work, b, t);
        if (t == 0) { /* lo = hi = 0 */
            row.blank_m[0] = blank.m;
            row.blank_e[0] = blank.e;
            row.label_m[0] = work->emission_m[0];
            row.label_e[0] = work->emission_e[0];
        } else {
            alpha_step(work, row_at(work->alpha, lattice->row[t - 1]), row, lo, hi, blank);
        }
        if (t % TIDY == 0 && t > 0) {
            const int32_t power = tidy(row, lo, hi);
            if (power == DEAD) return nothing;
            work->base[t / TIDY] = work->base[t / TIDY - 1] + power;
        }
        fence(row, lo, hi, size);
    }
    const Row row = row_at(work->alpha, lattice->row[last]);
    const int64_t lo = lattice->lo[last], hi = lattice->hi[last];
    Scaled end_blank = nothing, end_label = nothing, total;
    if (hi == size) {
        end_blank.m = row.blank_m[size];
        end_blank.e = row.blank_e[size];
    }
    if (lo < size) { /* lo is size - 1 at least */
        end_label.m = row.label_m[size - 1];
        end_label.e = row.label_e[size - 1];
    }
    total.e = end_blank.e > end_label.e ? end_blank.e : end_label.e;
    total.m = end_blank.m * (real)ldexp(1, end_blank.e - total.e) +
              end_label.m * (real)ldexp(1, end_label.e - total.e);
    return total;
}

/* ------------------------------------------------------------------ loss and gradient */

/* A row's largest logit and the sum of exp(logit - largest); the terms into `into`, if given. */
static real softmax_row(const real *x, int64_t n_tokens, real *into, real *largest) {
    const int64_t whole = n_tokens / LANES * LANES, rest = n_tokens - whole;
    vf most = f_all(-(real)INFINITY), sum = f_all(0);
    for (int64_t v = 0; v < whole; v += LANES) most = f_max(most, f_load(x + v));
    if (rest) most = f_max(most, f_load_n(x + whole, rest, -(real)INFINITY));
    *largest = f_max_of(most);
    const vf shift = f_all(*largest);
    for (int64_t v = 0; v < whole; v += LANES) {
        const vf term = exp_flat(f_sub(f_load(x + v), shift));
        sum = f_add(sum, term);
        if (into) f_store(into + v, term);
    }
    if (rest) {
        const vf term = exp_flat(f_sub(f_load_n(x + whole, rest, -LIMIT), shift));
        sum = f_add(sum, f_first(term, rest));
        if (into) f_store_n(into + whole, rest, term);
    }
    return f_sum_of(sum);
}

static void scale_row(real *row, int64_t n, real factor) {
    const int64_t whole = n / LANES * LANES;
    const vf by = f_all(factor);
    for (int64_t v = 0; v < whole; v += LANES) f_store(row + v, f_mul(f_load(row + v), by));
    for (int64_t v = whole; v < n; v++) row[v] *= factor;
}

/* The sum of the logarithms of many row sums, by way of their product. */
typedef struct { double total, product; } LogSum;

static void log_sum_add(LogSum *sum, real largest, real row_sum) {
    sum->total += (double)largest;
    sum->product *= (double)row_sum;
    if (!(sum->product < 1e250)) { /* row sums are at least 1, or not a number */
        sum->total += log(sum->product);
        sum->product = 1;
    }
    if (!(largest <= LIMIT)) sum->total = (double)NAN;
}

/* Alpha times beta at one open frame, relative to the utterance's total power. The labels go into
 * work->posterior; returns the blanks' sum, and the sum of all in *sum. */
static real posterior_row(Work *work, Row alpha, Row beta, int64_t lo, int64_t hi, int32_t power,
                          real *sum) {
    const vi total_e = i_all(power);
    vf blanks = f_all(0), labels = f_all(0);
    for (int64_t k = lo; k <= hi; k += LANES) {
        const vi blank_e = i_add(i_load(alpha.blank_e + k), i_load(beta.blank_e + k));
        const vi label_e = i_add(i_load(alpha.label_e + k), i_load(beta.label_e + k));
        const vf blank = f_mul(f_mul(f_load(alpha.blank_m + k), f_load(beta.blank_m + k)),
                               f_pow2(i_sub(blank_e, total_e)));
        const vf label = f_mul(f_mul(f_load(alpha.label_m + k), f_load(beta.label_m + k)),
                               f_pow2(i_sub(label_e, total_e)));
        f_store(work->posterior + k, label);
        blanks = f_add(blanks, f_first(blank, hi + 1 - k));
        labels = f_add(labels, f_first(label, hi + 1 - k));
    }
    const real blank_sum = f_sum_of(blanks);
    *sum = blank_sum + f_sum_of(labels);
    return blank_sum;
}

/* One row of beta from the row after it, which is times its emission already. */
static void beta_step(const Work *work, Row after, Row to, int64_t lo, int64_t hi) {
    for (int64_t k = lo; k <= hi; k += LANES) {
        const vf b = f_load(after.blank_m + k), l = f_load(after.label_m + k);
        const vf next_b = f_load(after.blank_m + k + 1), next_l = f_load(after.label_m + k + 1);
        const vi be = i_load(after.blank_e + k), le = i_load(after.label_e + k);
        const vi next_be = i_load(after.blank_e + k + 1);
        const vi next_le = i_add(i_load(after.label_e + k + 1), i_load(work->no_skip + k + 1));
        vi e;
        f_store(to.blank_m + k, add2(b, be, l, le, &e));
        i_store(to.blank_e + k, e);
        f_store(to.label_m + k, add3(l, le, next_b, next_be, next_l, next_le, &e));
        i_store(to.label_e + k, i_max(e, i_all(DEAD)));
    }
}

static void times_emission(const Work *work, Row row, int64_t lo, int64_t hi, Scaled blank) {
    const vf blank_m = f_all(blank.m);
    const vi blank_e = i_all(blank.e);
    for (int64_t k = lo; k <= hi; k += LANES) {
        f_store(row.blank_m + k, f_mul(f_load(row.blank_m + k), blank_m));
        i_store(row.blank_e + k, times(i_load(row.blank_e + k), blank_e));
        f_store(row.label_m + k, f_mul(f_load(row.label_m + k), f_load(work->emission_m + k)));
        i_store(row.label_e + k, times(i_load(row.label_e + k), i_load(work->emission_e + k)));
    }
}

/* An open frame's gradient: weight * (softmax - posterior). Returns 0 if no path is left. */
static int gradient_row(const EdimObjective *job, Work *work, int64_t b, int64_t t, Row beta,
                         int32_t power, real weight, LogSum *normaliser) {
    const EdimLattice *lattice = &work->lattice;
    const int64_t lo = lattice->lo[t], hi = lattice->hi[t];
    real *gradient = gradient_at(job, b, t), largest, sum;
    const real row_sum = softmax_row(logits_at(job, b, t), job->n_tokens, gradient, &largest);
    log_sum_add(normaliser, largest, row_sum);
    scale_row(gradient, job->n_tokens, weight / row_sum);
    const Row alpha = row_at(work->alpha, lattice->row[t]);
    const real blank = posterior_row(work, alpha, beta, lo, hi, power, &sum);
    const real scale = weight / sum;
    gradient[lattice->blank] -= blank * scale;
    for (int64_t k = lo; k <= hi && k < lattice->size; k++)
        gradient[work->token[k]] -= work->posterior[k] * scale;
    return sum > 0;
}

/* Beta from the last frame to the first, and every frame's gradient on the way. Returns 0 if what
 * is left of alpha and what is left of beta do not meet at some frame. */
static int beta_pass(const EdimObjective *job, Work *work, int64_t b, Scaled total,
                     LogSum *normaliser) {
    const EdimLattice *lattice = &work->lattice;
    const int64_t size = lattice->size, last = lattice->length - 1;
    const real weight = job->weight ? (real)job->weight[b] : 1;
    const int64_t total_base = work->base[last / TIDY];
    int64_t base = 0;
    int found = 1;
    for (int64_t t = last; t >= 0; t--) {
        const int64_t lo = lattice->lo[t], hi = lattice->hi[t];
        const Row beta = row_at(work->beta[t % 2], 1);
        if (t == last) {
            for (int64_t k = lo; k <= hi; k++) {
                beta.blank_m[k] = k == size;
                beta.blank_e[k] = k == size ? 0 : DEAD;
                beta.label_m[k] = k == size - 1;
                beta.label_e[k] = k == size - 1 ? 0 : DEAD;
            }
        } else {
            beta_step(work, row_at(work->beta[(t + 1) % 2], 1), beta, lo, hi);
        }
        if (t % TIDY == 0) base += tidy(beta, lo, hi);
        if (lattice->partial[t * lattice->partial_stride] == EDIM_MASK) {
            int64_t power = total.e + total_base - work->base[t / TIDY] - base;
            if (power < 2 * DEAD || power > -2 * DEAD) power = 0; /* a logit is not a number */
            found &= gradient_row(job, work, b, t, beta, (int32_t)power, weight, normaliser);
        } else {
            memset(gradient_at(job, b, t), 0, (size_t)job->n_tokens * sizeof(real));
        }
        times_emission(work, beta, lo, hi, emissions(job, work, b, t));
        fence(beta, lo, hi, size);
    }
    return found;
}

static void fill_gradient(const EdimObjective *job, int64_t b, int64_t from, int64_t to,
                          real value) {
    if (!job->gradient) return;
    for (int64_t t = from; t < to; t++) {
        real *row = gradient_at(job, b, t);
        for (int64_t v = 0; v < job->n_tokens; v++) row[v] = value;
    }
}

/* Normalisers of the open frames, where no gradient is wanted. */
static void normalise_only(const EdimObjective *job, const Work *work, int64_t b,
                           LogSum *normaliser) {
    const EdimLattice *lattice = &work->lattice;
    for (int64_t t = 0; t < lattice->length; t++) {
        real largest;
        if (lattice->partial[t * lattice->partial_stride] != EDIM_MASK) continue;
        const real sum = softmax_row(logits_at(job, b, t), job->n_tokens, 0, &largest);
        log_sum_add(normaliser, largest, sum);
    }
}

/* A loss that has no gradient. */
static void flat_loss(const EdimObjective *job, int64_t b, double loss) {
    job->loss[b] = loss;
    fill_gradient(job, b, 0, job->n_frames, 0);
}

static void KERNEL(loss)(const EdimObjective *job, int64_t b, void *memory) {
    Work work;
    const int64_t length = job->input_lengths[b];
    if (length == 0) {
        flat_loss(job, b, job->target_lengths[b] == 0 ? 0 : (double)INFINITY);
        return;
    }
    Scaled total = {0, DEAD};
    if (set_up(job, b, &work, memory)) total = alpha_pass(job, &work, b);
    if (total.m == 0 || total.e <= DEAD / 2) {
        flat_loss(job, b, (double)INFINITY);
        return;
    }
    LogSum normaliser = {0, 1};
    int found = 1;
    if (job->gradient) {
        found = beta_pass(job, &work, b, total, &normaliser);
    } else {
        normalise_only(job, &work, b, &normaliser);
    }
    const double power = (double)total.e + (double)work.base[(length - 1) / TIDY];
    const double loss = normaliser.total + log(normaliser.product) -
                        power * 0.69314718055994530942 - log((double)total.m);
    if (loss == loss && !found) {
        flat_loss(job, b, (double)INFINITY);
        return;
    }
    job->loss[b] = loss;
    fill_gradient(job, b, length, job->n_frames, 0);
    if (loss != loss) {
        for (int64_t t = 0; t < length; t++)
            if (work.lattice.partial[t * work.lattice.partial_stride] == EDIM_MASK)
                fill_gradient(job, b, t, t + 1, (real)NAN);
    }
}

/* ------------------------------------------------------------------ alignments */

/* Where there is no path; but an utterance of no frames and no tokens has one. */
static void no_states(const EdimObjective *job, int64_t b, int64_t *states) {
    const int64_t state = job->input_lengths[b] == 0 && job->target_lengths[b] == 0 ? 0 : -1;
    for (int64_t t = 0; t < job->n_frames; t++) states[t] = state;
}

/* The utterance's last state past its end. */
static void pad_states(const EdimLattice *lattice, int64_t *states, int64_t n_frames) {
    for (int64_t t = lattice->length; t < n_frames; t++) states[t] = 2 * lattice->size;
}

/* Best scores of one row; the Viterbi pass keeps two. */
typedef struct { double *blank, *label; } Scores;

/* One Viterbi row: scores into `to`, the moves that gave them (0 stay, 1 from the state before,
 * 2 past a blank) into `blank_move` and `label_move`. Ties go to the smaller move. */
static void best_step(const Work *work, Scores from, Scores to, const double *emission,
                      double blank, int32_t *blank_move, int32_t *label_move, int64_t lo,
                      int64_t hi) {
    const double nothing = -(double)INFINITY;
    for (int64_t k = lo; k <= hi; k++) {
        const double stay = from.blank[k], before = from.label[k - 1];
        blank_move[k] = before > stay;
        to.blank[k] = (before > stay ? before : stay) + blank;
    }
    for (int64_t k = lo; k <= hi; k++) {
        const double stay = from.label[k], before = from.blank[k];
        const double past = work->no_skip[k] ? nothing : from.label[k - 1];
        const double best = before > stay ? before : stay;
        label_move[k] = past > best ? 2 : before > stay;
        to.label[k] = (past > best ? past : best) + emission[k];
    }
}

/* Log-emissions of frame t, not normalised (that is the same for every path). */
static double log_emissions(const EdimObjective *job, const Work *work, int64_t b, int64_t t,
                            double *emission) {
    const EdimLattice *lattice = &work->lattice;
    const int64_t fixed = edim_fixed_token(lattice, t);
    const double nothing = -(double)INFINITY;
    const real *x = logits_at(job, b, t);
    for (int64_t k = lattice->lo[t]; k <= lattice->hi[t]; k++) {
        const int32_t token = work->token[k];
        const double agrees = token == fixed && k < lattice->size ? 0 : nothing;
        emission[k] = fixed == EDIM_MASK ? (double)x[token] : agrees;
    }
    if (fixed == EDIM_MASK) return (double)x[lattice->blank];
    return fixed == lattice->blank ? 0 : nothing;
}

static void fence_scores(Scores row, int64_t lo, int64_t hi, int64_t size) {
    const double nothing = -(double)INFINITY;
    row.blank[lo - 1] = row.label[lo - 1] = row.blank[hi + 1] = row.label[hi + 1] = nothing;
    if (hi == size) row.label[hi] = nothing;
}

/* The most probable path (Viterbi). */
static void KERNEL(best)(const EdimObjective *job, int64_t b, void *memory) {
    Work work;
    int64_t *states = job->states + b * job->n_frames;
    const EdimLattice *lattice = &work.lattice;
    if (job->input_lengths[b] == 0 || !set_up(job, b, &work, memory)) {
        no_states(job, b, states);
        return;
    }
    const int64_t size = lattice->size, last = lattice->length - 1;
    const Scores rows[2] = {{work.score[0] + 1, work.score[1] + 1},
                            {work.score[2] + 1, work.score[3] + 1}};
    for (int64_t t = 0; t <= last; t++) {
        const int64_t lo = lattice->lo[t], hi = lattice->hi[t];
        const Scores row = rows[t % 2];
        const double blank = log_emissions(job, &work, b, t, work.score[4]);
        if (t == 0) { /* lo = hi = 0 */
            row.blank[0] = blank;
            row.label[0] = work.score[4][0];
        } else {
            const Row moves = row_at(work.alpha, lattice->row[t]);
            best_step(&work, rows[(t - 1) % 2], row, work.score[4], blank, moves.blank_e,
                      moves.label_e, lo, hi);
        }
        fence_scores(row, lo, hi, size);
    }
    const Scores end = rows[last % 2];
    const double nothing = -(double)INFINITY;
    const double blank = lattice->hi[last] == size ? end.blank[size] : nothing;
    const double label = lattice->lo[last] < size ? end.label[size - 1] : nothing;
    if (!(blank > nothing) && !(label > nothing)) {
        no_states(job, b, states);
        return;
    }
    int64_t state = label > blank ? 2 * size - 1 : 2 * size;
    for (int64_t t = last; t >= 0; t--) {
        const Row moves = row_at(work.alpha, lattice->row[t]);
        states[t] = state;
        if (t > 0) state -= state % 2 ? moves.label_e[state / 2] : moves.blank_e[state / 2];
    }
    pad_states(lattice, states, job->n_frames);
}

/* From how many states a path may come to this one: itself, the one before, the one before that. */
static int moves_into(const Work *work, int64_t state) {
    if (state % 2 == 0) return state > 0 ? 2 : 1;
    return state > 1 && work->no_skip[state / 2] == 0 ? 3 : 2;
}

/* Whether there are paths to draw from; if so, alpha is filled in. */
static int has_paths(const EdimObjective *job, int64_t b, Work *work, void *memory) {
    if (!set_up(job, b, work, memory)) return 0;
    const Scaled total = alpha_pass(job, work, b);
    return total.m == total.m && total.m != 0 && total.e > DEAD / 2;
}

static Scaled alpha_of(const Work *work, int64_t t, int64_t state) {
    const EdimLattice *lattice = &work->lattice;
    const int64_t k = state / 2, place = lattice->row[t] + k;
    Scaled value = {0, DEAD};
    if (k < lattice->lo[t] || k > lattice->hi[t]) return value;
    value.m = state % 2 ? work->alpha.label_m[place] : work->alpha.blank_m[place];
    value.e = state % 2 ? work->alpha.label_e[place] : work->alpha.blank_e[place];
    return value;
}

/* One of the `n_moves` states that end in `state`, by weight; the number decides from `state` on
 * downwards. */
static int64_t draw(const Work *work, int64_t t, int64_t state, int n_moves, double uniform) {
    Scaled value[3];
    double weight[3], total = 0;
    int32_t most = DEAD;
    for (int i = 0; i < n_moves; i++) {
        value[i] = alpha_of(work, t, state - i);
        if (value[i].m > 0 && value[i].e > most) most = value[i].e;
    }
    for (int i = 0; i < n_moves; i++) {
        weight[i] = ldexp((double)value[i].m, value[i].e - most);
        total += weight[i];
    }
    int64_t chosen = state;
    double sum = 0;
    for (int i = 0; i < n_moves; i++) {
        if (weight[i] > 0) chosen = state - i; /* the last alive, should rounding pass them all */
        sum += weight[i];
        if (sum > uniform * total) break;
    }
    return chosen;
}

/* Forward filtering, backward sampling: exact draws from the posterior over paths. */
static void KERNEL(sample)(const EdimObjective *job, int64_t b, void *memory) {
    Work work;
    const int64_t length = job->input_lengths[b], step = job->batch * job->n_frames;
    const int found = length > 0 && has_paths(job, b, &work, memory);
    for (int64_t n = 0; n < job->n_samples; n++) {
        int64_t *states = job->states + n * step + b * job->n_frames;
        const double *uniforms = job->uniforms + n * step + b * job->n_frames;
        if (!found) {
            no_states(job, b, states);
            continue;
        }
        int64_t state = 2 * work.lattice.size, n_moves = state > 0 ? 2 : 1;
        for (int64_t t = length - 1; t >= 0; t--) {
            state = draw(&work, t, state, (int)n_moves, uniforms[t]);
            states[t] = state;
            n_moves = moves_into(&work, state);
        }
        pad_states(&work.lattice, states, job->n_frames);
    }
}
