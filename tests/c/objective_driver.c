/* Runs jobs of the training objective from standard input, every array in a block of exactly its
 * size: what a sanitizer needs to see every access that goes astray.
 *
 * A job is HEADER int64s (enum below), then logits, targets, partial, input_lengths,
 * target_lengths, weight (if any), uniforms (of samples). The workspace is full of FILL, or is left
 * as it comes if that is negative. The answer is the workspace's size in bytes (int64), or -1 and
 * nothing more; then losses and gradient, or states. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "objective.h"

enum { FUNCTION, ISA, DOUBLE, STATE, TIME_FIRST, BATCH, FRAMES, TOKENS, LONGEST, BLANK };
enum { THREADS = BLANK + 1, SAMPLES, WEIGHTED, FILL, HEADER };
enum { LOSS, LOSS_AND_GRADIENT, BEST, SAMPLE };

/* A block of n bytes; no address at all for none. */
static void *block(int64_t n) {
    void *memory = NULL;
    if (n > 0 && posix_memalign(&memory, 64, (size_t)n) != 0) {
        exit(2);
    }
    return memory;
}

static void *get(int64_t n) {
    void *memory = block(n);
    if (n > 0 && fread(memory, 1, (size_t)n, stdin) != (size_t)n) {
        exit(3);
    }
    return memory;
}

static void put(const void *data, int64_t n) {
    if (n > 0 && fwrite(data, 1, (size_t)n, stdout) != (size_t)n) {
        exit(4);
    }
}

static void run(EdimObjective *job, int64_t function, int64_t value_size) {
    const int64_t cells = job->batch * job->n_frames;
    if (function == BEST || function == SAMPLE) {
        const int64_t n = function == BEST ? cells * 8 : cells * 8 * job->n_samples;
        job->states = block(n);
        (function == BEST ? edim_objective_best : edim_objective_sample)(job);
        put(job->states, n);
        free(job->states);
        return;
    }
    const int64_t n = function == LOSS_AND_GRADIENT ? cells * job->n_tokens * value_size : 0;
    job->loss = block(job->batch * 8);
    job->gradient = block(n);
    edim_objective_loss(job);
    put(job->loss, job->batch * 8);
    put(job->gradient, n);
    free(job->loss);
    free(job->gradient);
}

int main(void) {
    int64_t h[HEADER];
    while (fread(h, sizeof h[0], HEADER, stdin) == HEADER) {
        const int64_t cells = h[BATCH] * h[FRAMES], value_size = h[DOUBLE] ? 8 : 4;
        void *logits = get(cells * h[TOKENS] * value_size);
        int64_t *targets = get(h[BATCH] * h[LONGEST] * 8), *partial = get(cells * 8);
        int64_t *input_lengths = get(h[BATCH] * 8), *target_lengths = get(h[BATCH] * 8);
        double *weight = get(h[WEIGHTED] ? h[BATCH] * 8 : 0);
        double *uniforms = get(h[FUNCTION] == SAMPLE ? h[SAMPLES] * cells * 8 : 0);
        EdimObjective job;
        memset(&job, 0, sizeof job);
        job.logits = logits;
        job.logits_stride_b = job.gradient_stride_b = h[TOKENS] * (h[TIME_FIRST] ? 1 : h[FRAMES]);
        job.logits_stride_t = job.gradient_stride_t = h[TOKENS] * (h[TIME_FIRST] ? h[BATCH] : 1);
        job.targets = targets;
        job.targets_stride_b = h[LONGEST];
        job.partial = partial;
        job.partial_stride_b = h[FRAMES];
        job.partial_stride_t = 1;
        job.input_lengths = input_lengths;
        job.target_lengths = target_lengths;
        job.batch = h[BATCH];
        job.n_frames = h[FRAMES];
        job.n_tokens = h[TOKENS];
        job.longest = h[LONGEST];
        job.blank = h[BLANK];
        job.is_double = (int32_t)h[DOUBLE];
        job.is_state = (int32_t)h[STATE];
        job.weight = weight;
        job.uniforms = uniforms;
        job.n_samples = h[SAMPLES];
        job.n_threads = (int32_t)h[THREADS];
        job.isa = (int32_t)h[ISA];
        if (!edim_objective_has_isa(job.isa)) {
            return 5;
        }
        job.workspace_size = edim_objective_workspace(&job);
        put(&job.workspace_size, sizeof job.workspace_size);
        if (job.workspace_size >= 0) {
            job.workspace = block(job.n_threads * job.workspace_size);
            if (job.workspace != NULL && h[FILL] >= 0) {
                memset(job.workspace, (int)h[FILL], (size_t)(job.n_threads * job.workspace_size));
            }
            run(&job, h[FUNCTION], value_size);
            free(job.workspace);
        }
        free(logits);
        free(targets);
        free(partial);
        free(input_lengths);
        free(target_lengths);
        free(weight);
        free(uniforms);
    }
    return 0;
}
