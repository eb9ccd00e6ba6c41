/* The Imputer's objective on the CPU: loss, gradient, best and sampled alignments.
 *
 * One call works through a batch; every utterance is independent, and threads share out the batch.
 * The caller owns all memory. Nothing here allocates, keeps state between calls or touches the
 * processor's floating-point mode, so calls may run beside each other.
 */
#ifndef EDIM_OBJECTIVE_H
#define EDIM_OBJECTIVE_H

#include <stdint.h>

#if defined(_WIN32)
#define EDIM_EXPORT __declspec(dllexport)
#else
#define EDIM_EXPORT __attribute__((visibility("default")))
#endif

#define EDIM_MASK (-1) /* a frame of a partial alignment that is still open */

typedef struct {
    /* What is asked. Strides count elements; the last dimension is contiguous. */
    const void *logits; /* (B, T, V), float, or double if is_double */
    int64_t logits_stride_b, logits_stride_t;
    const int64_t *targets; /* (B, longest) */
    int64_t targets_stride_b;
    const int64_t *partial; /* (B, T): EDIM_MASK, or a token, or a state 0..2S if is_state */
    int64_t partial_stride_b, partial_stride_t;
    const int64_t *input_lengths;  /* (B) */
    const int64_t *target_lengths; /* (B) */
    int64_t batch, n_frames, n_tokens, longest, blank;
    int32_t is_double, is_state;

    /* What is answered. */
    double *loss;   /* (B): nats; infinity where no alignment agrees */
    void *gradient; /* (B, T, V) like the logits, or NULL: times weight[b] */
    int64_t gradient_stride_b, gradient_stride_t;
    const double *weight;   /* (B), or NULL for ones */
    const double *uniforms; /* (N, B, T) in [0, 1), for samples */
    int64_t n_samples;
    int64_t *states; /* (B, T), or (N, B, T) for samples; -1 where no alignment agrees */

    /* What is worked with. */
    void *workspace; /* n_threads * workspace_size bytes, aligned to 64 */
    int64_t workspace_size;
    int32_t n_threads;
    int32_t isa; /* an enum EdimIsa */
} EdimObjective;

enum EdimIsa { EDIM_ISA_SCALAR, EDIM_ISA_AVX2, EDIM_ISA_AVX512, EDIM_ISA_NEON };

/* The best form this processor runs; the name of a form; whether this processor runs it. */
EDIM_EXPORT int32_t edim_objective_best_isa(void);
EDIM_EXPORT const char *edim_objective_isa_name(int32_t isa);
EDIM_EXPORT int32_t edim_objective_has_isa(int32_t isa);

/* sizeof(EdimObjective), so that a caller with another idea of the struct is found out. */
EDIM_EXPORT int64_t edim_objective_struct_size(void);

/* Workspace of one thread in bytes, or -1 if a length, a target or the partial alignment holds a
 * value out of range. Call it first: the others trust what it has checked. */
EDIM_EXPORT int64_t edim_objective_workspace(const EdimObjective *job);

EDIM_EXPORT void edim_objective_loss(const EdimObjective *job);
EDIM_EXPORT void edim_objective_best(const EdimObjective *job);
EDIM_EXPORT void edim_objective_sample(const EdimObjective *job);

#endif
