/* The part of the public interface that is the same for every model, see edge_imputer.h. */
#include "edge_imputer.h"

/* |value| <= 512 to the nearest integer, halves to even, without libm. */
static inline int32_t round_half_even(float value) {
    const int32_t whole = (int32_t)value; /* towards zero */
    const float rest = value - (float)whole;
    const int32_t odd = whole & 1;
    const int32_t up = rest > 0.5f || (rest == 0.5f && odd);
    const int32_t down = rest < -0.5f || (rest == -0.5f && odd);
    return whole + up - down;
}

void edim_quantize_features(const float *log_mel, int32_t n, int8_t *features) {
    for (int32_t i = 0; i < n; i++) {
        float steps = log_mel[i] / EDIM_FEATURE_SCALE;
        steps = steps > -512.0f ? steps : -512.0f; /* saturates below whatever the zero point */
        steps = steps < 512.0f ? steps : 512.0f;
        int32_t q = round_half_even(steps) + EDIM_FEATURE_ZERO_POINT;
        q = q < -128 ? -128 : q;
        features[i] = (int8_t)(q > 127 ? 127 : q);
    }
}

void edim_dequantize_logits(const int8_t *logits, int32_t n, float *real) {
    for (int32_t i = 0; i < n; i++) {
        real[i] = (float)(logits[i] - EDIM_LOGIT_ZERO_POINT) * EDIM_LOGIT_SCALE;
    }
}

#ifndef EDIM_N_CLASSES /* a model that writes down speech */

const edim_model_info *edim_model(void) {
    static const edim_model_info info = {
        EDIM_API_VERSION,
        EDIM_FEATURE_FRAMES,
        EDIM_N_MELS,
        EDIM_STEP_FRAMES,
        EDIM_D_MODEL,
        EDIM_WINDOW,
        EDIM_CHUNK_SIZE,
        EDIM_VOCABULARY_SIZE,
        EDIM_MASK_ID,
        EDIM_STATE_BYTES,
        EDIM_ARENA_BYTES,
        EDIM_FEATURE_ZERO_POINT,
        EDIM_ENCODER_ZERO_POINT,
        EDIM_LOGIT_ZERO_POINT,
        EDIM_FEATURE_SCALE,
        EDIM_ENCODER_SCALE,
        EDIM_LOGIT_SCALE,
    };
    return &info;
}

void edim_encoder_step_f32(const float log_mel[EDIM_FEATURES], int8_t state[EDIM_STATE_BYTES],
                           int8_t encoder_out[EDIM_ENCODER_OUT], int8_t arena[EDIM_ARENA_BYTES]) {
    int8_t features[EDIM_FEATURES];
    edim_quantize_features(log_mel, EDIM_FEATURES, features);
    edim_encoder_step(features, state, encoder_out, arena);
}

edim_status edim_imputer_step_f32(const int8_t encoder_window[EDIM_WINDOW * EDIM_D_MODEL],
                                  const int32_t alignment[EDIM_WINDOW], float logits[EDIM_LOGITS],
                                  int8_t arena[EDIM_ARENA_BYTES]) {
    int8_t quantized[EDIM_LOGITS];
    const edim_status status = edim_imputer_step(encoder_window, alignment, quantized, arena);
    if (status == EDIM_OK) {
        edim_dequantize_logits(quantized, EDIM_LOGITS, logits);
    }
    return status;
}

#else /* a keyword model */

const edim_keywords_info *edim_keywords(void) {
    static const edim_keywords_info info = {
        EDIM_API_VERSION,
        EDIM_FEATURE_FRAMES,
        EDIM_HOP_FRAMES,
        EDIM_N_MELS,
        EDIM_STEP_SCORES,
        EDIM_N_CLASSES,
        EDIM_STATE_BYTES,
        EDIM_ARENA_BYTES,
        EDIM_FEATURE_ZERO_POINT,
        EDIM_LOGIT_ZERO_POINT,
        EDIM_FEATURE_SCALE,
        EDIM_LOGIT_SCALE,
    };
    return &info;
}

void edim_keywords_step_f32(const float features[EDIM_FEATURES], int8_t *state,
                            float logits[EDIM_LOGITS], int8_t arena[EDIM_ARENA_BYTES]) {
    int8_t quantized[EDIM_FEATURES];
    int8_t scores[EDIM_LOGITS];
    edim_quantize_features(features, EDIM_FEATURES, quantized);
    edim_keywords_step(quantized, state, scores, arena);
    edim_dequantize_logits(scores, EDIM_LOGITS, logits);
}

#endif
