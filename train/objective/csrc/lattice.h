/* One utterance's CTC lattice: which states each frame can be in, and where its rows lie.
 *
 * The 2S + 1 states are kept apart as blank[k], k = 0..S, and label[k], k = 0..S-1, so that loops
 * over k run over contiguous memory. Row t holds k = lo[t]..hi[t] and one dead entry on either
 * side, packed one row after the other.
 */
#ifndef EDIM_LATTICE_H
#define EDIM_LATTICE_H

#include "objective.h"

enum { EDIM_SLACK = 16 }; /* elements a vector may read or write past a row: the widest vector */

typedef struct {
    int64_t length, size; /* frames, target tokens (S) */
    const int64_t *target;
    const int64_t *partial;
    int64_t partial_stride;
    int64_t blank;
    int32_t is_state;
    int32_t *lo, *hi; /* (length) */
    int64_t *row;     /* (length): where k = 0 of a row would lie in the packed rows */
} EdimLattice;

/* The target of an utterance; where no utterance has one, the array may have no address. */
static inline const int64_t *edim_target_of(const EdimObjective *job, int64_t b) {
    return job->longest > 0 ? job->targets + b * job->targets_stride_b : job->targets;
}

/* Rows of one utterance, dead entries included, at most. */
static inline int64_t edim_packed_bound(int64_t length, int64_t size) {
    return size > length ? 0 : size * (length - size) + 3 * length;
}

/* The token a frame is fixed to, or EDIM_MASK. */
static inline int64_t edim_fixed_token(const EdimLattice *lattice, int64_t t) {
    const int64_t value = lattice->partial[t * lattice->partial_stride];
    if (value == EDIM_MASK || !lattice->is_state) return value;
    return value % 2 == 0 ? lattice->blank : lattice->target[value / 2];
}

/* Fill lo, hi, row. Returns 0 if no path can exist; 1 if one may. */
int32_t edim_lattice_windows(EdimLattice *lattice);

#endif
