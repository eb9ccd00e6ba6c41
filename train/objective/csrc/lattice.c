#include "lattice.h"

/* The least k >= lo that frame t's fixed value allows; S + 1 if there is none. */
static int64_t raise_to_fixed(const EdimLattice *lattice, int64_t t, int64_t lo) {
    const int64_t value = lattice->partial[t * lattice->partial_stride];
    if (value == EDIM_MASK) return lo;
    if (lattice->is_state) return lo <= value / 2 ? value / 2 : lattice->size + 1;
    if (value == lattice->blank) return lo;
    while (lo < lattice->size && lattice->target[lo] != value) ++lo;
    return lo < lattice->size ? lo : lattice->size + 1;
}

/* The greatest k <= hi that frame t's fixed value allows; -1 if there is none. */
static int64_t lower_to_fixed(const EdimLattice *lattice, int64_t t, int64_t hi) {
    const int64_t value = lattice->partial[t * lattice->partial_stride];
    if (value == EDIM_MASK) return hi;
    if (lattice->is_state) return hi >= value / 2 ? value / 2 : -1;
    if (value == lattice->blank) return hi;
    if (hi == lattice->size) --hi; /* the last blank has no label beside it */
    while (hi >= 0 && lattice->target[hi] != value) --hi;
    return hi;
}

int32_t edim_lattice_windows(EdimLattice *lattice) {
    const int64_t length = lattice->length, size = lattice->size;
    if (size > length) return 0;
    /* k never falls, so what bounds it at one frame bounds it at all frames to one side. */
    int64_t lo = 0, hi = size;
    for (int64_t t = 0; t < length; t++) {
        if (lo < size - length + t) lo = size - length + t; /* a frame begins one label at most */
        lo = raise_to_fixed(lattice, t, lo);
        if (lo > size) return 0;
        lattice->lo[t] = (int32_t)lo;
    }
    for (int64_t t = length - 1; t >= 0; t--) {
        if (hi > t) hi = t;
        hi = lower_to_fixed(lattice, t, hi);
        if (hi < 0) return 0;
        lattice->hi[t] = (int32_t)hi;
    }
    /* k rises by one a frame at most: what is fixed narrows the frames before and after it too. */
    for (int64_t t = length - 2; t >= 0; t--)
        if (lattice->lo[t] < lattice->lo[t + 1] - 1) lattice->lo[t] = lattice->lo[t + 1] - 1;
    for (int64_t t = 1; t < length; t++)
        if (lattice->hi[t] > lattice->hi[t - 1] + 1) lattice->hi[t] = lattice->hi[t - 1] + 1;
    int64_t start = 0;
    for (int64_t t = 0; t < length; t++) {
        if (lattice->lo[t] > lattice->hi[t]) return 0;
        lattice->row[t] = start + 1 - lattice->lo[t];
        start += lattice->hi[t] - lattice->lo[t] + 3;
    }
    return 1;
}
