/* What is done once for a batch: checks, the choice of a kernel, threads. */
#if defined(__linux__)
#define _DEFAULT_SOURCE /* madvise */
#include <sys/mman.h>
#endif

#include "objective.h"

#include "kernels.h"
#include "lattice.h"
#include "processor.h"
#include "threads.h"

int64_t edim_objective_struct_size(void) { return (int64_t)sizeof(EdimObjective); }

const char *edim_objective_isa_name(int32_t isa) {
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    return isa >= EDIM_ISA_SCALAR && isa <= EDIM_ISA_NEON ? names[isa] : "unknown";
}

int32_t edim_objective_has_isa(int32_t isa) {
    switch (isa) {
    case EDIM_ISA_SCALAR: return 1;
#if EDIM_X86
    case EDIM_ISA_AVX2: return edim_has_avx2();
    case EDIM_ISA_AVX512: return edim_has_avx512();
#endif
#if EDIM_ARM64
    case EDIM_ISA_NEON: return 1;
#endif
    default: return 0;
    }
}

int32_t edim_objective_best_isa(void) {
    for (int32_t isa = EDIM_ISA_NEON; isa > EDIM_ISA_SCALAR; isa--)
        if (edim_objective_has_isa(isa)) return isa;
    return EDIM_ISA_SCALAR;
}

static const EdimKernel *kernel_of(const EdimObjective *job) {
    if (job->is_double) return &edim_kernel_double;
    switch (job->isa) {
#if EDIM_X86
    case EDIM_ISA_AVX2: return &edim_kernel_avx2;
    case EDIM_ISA_AVX512: return &edim_kernel_avx512;
#endif
#if EDIM_ARM64
    case EDIM_ISA_NEON: return &edim_kernel_neon;
#endif
    default: return &edim_kernel_scalar;
    }
}

/* ------------------------------------------------------------------ checks */

static int within(int64_t value, int64_t least, int64_t most) {
    return value >= least && value <= most;
}

static int utterance_is_valid(const EdimObjective *job, int64_t b) {
    const int64_t length = job->input_lengths[b], size = job->target_lengths[b];
    if (!within(length, 0, job->n_frames) || !within(size, 0, job->longest)) return 0;
    const int64_t *target = edim_target_of(job, b);
    for (int64_t k = 0; k < size; k++)
        if (!within(target[k], 0, job->n_tokens - 1) || target[k] == job->blank) return 0;
    const int64_t *partial = job->partial + b * job->partial_stride_b;
    const int64_t most = job->is_state ? 2 * size : job->n_tokens - 1;
    for (int64_t t = 0; t < length; t++)
        if (!within(partial[t * job->partial_stride_t], EDIM_MASK, most)) return 0;
    return 1;
}

int64_t edim_objective_workspace(const EdimObjective *job) {
    const EdimKernel *kernel = kernel_of(job);
    int64_t most = 0;
    for (int64_t b = 0; b < job->batch; b++) {
        if (!utterance_is_valid(job, b)) return -1;
        if (job->target_lengths[b] > job->input_lengths[b]) continue; /* infeasible: needs none */
        const int64_t bytes = kernel->workspace(job->input_lengths[b], job->target_lengths[b]);
        if (bytes > most) most = bytes;
    }
    return most;
}

/* ------------------------------------------------------------------ work */

typedef struct {
    const EdimObjective *job;
    void (*work)(const EdimObjective *job, int64_t b, void *memory);
    EdimCounter next; /* the utterance that the next free thread takes */
} Batch;

static void work_through(void *argument, int32_t thread) {
    Batch *batch = argument;
    const EdimObjective *job = batch->job;
    char *memory = (char *)job->workspace + thread * job->workspace_size;
    for (;;) {
        const int64_t b = edim_count(&batch->next);
        if (b >= job->batch) return;
        batch->work(job, b, memory);
    }
}

static void run(const EdimObjective *job, void (*work)(const EdimObjective *, int64_t, void *)) {
    Batch batch = {job, work, 0};
    edim_run_threads(job->n_threads, work_through, &batch);
}

/* Ask for large pages under a large gradient. It is fresh memory: taken in 4 KiB pages, the faults
 * cost more time than all the arithmetic. Advice only; refused, nothing changes. */
static void advise_large_pages(const EdimObjective *job) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)1 << 21, start = (uintptr_t)job->gradient;
    const int64_t values = (job->batch - 1) * job->gradient_stride_b +
                           (job->n_frames - 1) * job->gradient_stride_t + job->n_tokens;
    const uintptr_t end = start + (uintptr_t)values * (job->is_double ? 8 : 4);
    const uintptr_t first = (start + page - 1) / page * page, last = end / page * page;
    if (job->gradient && last > first) (void)madvise((void *)first, last - first, MADV_HUGEPAGE);
#else
    (void)job;
#endif
}

void edim_objective_loss(const EdimObjective *job) {
    advise_large_pages(job);
    run(job, kernel_of(job)->loss);
}
void edim_objective_best(const EdimObjective *job) { run(job, kernel_of(job)->best); }
void edim_objective_sample(const EdimObjective *job) { run(job, kernel_of(job)->sample); }
