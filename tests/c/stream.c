/* Runs a model over bytes from standard input, with exact allocations at odd addresses: what a
 * sanitizer needs to see every access that goes astray.
 *
 * Input: the number of encoder steps (int32), their features; then head passes until the end,
 * each the encoder window and the alignment. Output: encoder_out and state of every step, then
 * status (one byte) and logits of every pass. */
#include <stdio.h>
#include <stdlib.h>

#include "edge_imputer.h"

static void *bytes(size_t n) {
    void *memory = malloc(n);
    if (memory == NULL) {
        exit(2);
    }
    return memory;
}

static void put(const int8_t *data, size_t n) {
    if (fwrite(data, 1, n, stdout) != n) {
        exit(3);
    }
}

int main(void) {
    int8_t *features = bytes(EDIM_FEATURES), *state = bytes(EDIM_STATE_BYTES);
    int8_t *frame = bytes(EDIM_ENCODER_OUT), *window = bytes(EDIM_WINDOW * EDIM_D_MODEL);
    int8_t *logits = bytes(EDIM_LOGITS), *block = bytes(EDIM_ARENA_BYTES + 1);
    int8_t *arena = block + 1;
    int32_t *alignment = bytes(EDIM_WINDOW * sizeof *alignment);
    int32_t steps = 0;
    if (fread(&steps, sizeof steps, 1, stdin) != 1) {
        return 1;
    }
    edim_encoder_reset(state);
    for (int32_t i = 0; i < steps; i++) {
        if (fread(features, 1, EDIM_FEATURES, stdin) != EDIM_FEATURES) {
            return 1;
        }
        edim_encoder_step(features, state, frame, arena);
        put(frame, EDIM_ENCODER_OUT);
        put(state, EDIM_STATE_BYTES);
    }
    while (fread(window, EDIM_D_MODEL, EDIM_WINDOW, stdin) == EDIM_WINDOW &&
           fread(alignment, sizeof *alignment, EDIM_WINDOW, stdin) == EDIM_WINDOW) {
        const int8_t status = (int8_t)edim_imputer_step(window, alignment, logits, arena);
        put(&status, 1);
        put(logits, EDIM_LOGITS);
    }
    free(features);
    free(state);
    free(frame);
    free(window);
    free(logits);
    free(block);
    free(alignment);
    return 0;
}
