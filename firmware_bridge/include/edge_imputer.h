/* Edge Imputer: streaming speech recognition for small devices, the public interface in C.
 *
 * One model is compiled in: edim_model.h gives its sizes, edim_model.c its tables, both written
 * by the exporter. Where edim_model.h defines EDIM_N_CLASSES, it is a keyword model, whose
 * interface is the second part of this header; else it writes down speech, and an utterance is
 * recognised in this order:
 *
 *   edim_encoder_reset(state);                              once an utterance
 *   edim_quantize_features(log_mel, EDIM_FEATURES, features);   as feature frames arrive
 *   edim_encoder_step(features, state, encoder_out, arena);     every EDIM_FEATURE_FRAMES of them
 *   edim_imputer_step(window, alignment, logits, arena);        a few times every EDIM_CHUNK_SIZE
 *                                                               encoder frames
 *
 * Freestanding C99: no allocation, no input or output, no recursion, no global state, no header
 * but stdint.h, no function but memcpy, memset and memmove, which compilers call by themselves.
 * The caller owns all memory, none of it needs an alignment beyond its type, and different
 * streams may run in different threads as long as each has its own state and arena. Arguments do
 * not overlap.
 *
 * Quantised values are int8: real = scale * (q - zero_point).
 */
#ifndef EDGE_IMPUTER_H
#define EDGE_IMPUTER_H

#include <stdint.h>

#include "edim_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a function or edim_model_info changes. */
#define EDIM_API_VERSION 2 /* 2: an encoder step may give several frames */

/* Features that a step reads. */
#define EDIM_FEATURES (EDIM_FEATURE_FRAMES * EDIM_N_MELS)

/* Real features to int8, n of them: halves to even, saturating; not a number becomes the least. */
void edim_quantize_features(const float *log_mel, int32_t n, int8_t *features);

/* Int8 logits to real ones, n of them. */
void edim_dequantize_logits(const int8_t *logits, int32_t n, float *real);

#ifndef EDIM_N_CLASSES /* a model that writes down speech */

/* Elements of one call's arrays. */
#define EDIM_ENCODER_OUT (EDIM_STEP_FRAMES * EDIM_D_MODEL)
#define EDIM_LOGITS (EDIM_CHUNK_SIZE * EDIM_VOCABULARY_SIZE)

/* Bytes of scratch memory: one arena serves both steps, nothing is kept in it between calls. */
#define EDIM_ARENA_BYTES                                                    \
    (EDIM_ENCODER_ARENA_BYTES > EDIM_IMPUTER_ARENA_BYTES                    \
         ? EDIM_ENCODER_ARENA_BYTES                                         \
         : EDIM_IMPUTER_ARENA_BYTES)

typedef enum edim_status {
    EDIM_OK = 0,
    EDIM_TOKEN_OUT_OF_RANGE = 1 /* an alignment holds an id below 0 or above EDIM_MASK_ID */
} edim_status;

/* The constants of edim_model.h, for programs that load the library at run time. */
typedef struct edim_model_info {
    int32_t api_version;         /* EDIM_API_VERSION */
    int32_t feature_frames;      /* feature frames an encoder step reads */
    int32_t n_mels;              /* features a frame */
    int32_t step_frames;         /* encoder frames it gives for them */
    int32_t d_model;             /* width of an encoder frame */
    int32_t window;              /* encoder frames a head pass reads: left context and chunk */
    int32_t chunk_size;          /* encoder frames a head pass gives logits for */
    int32_t vocabulary_size;     /* token 0 is the blank */
    int32_t mask_id;             /* token of a frame that is not filled in yet */
    int32_t state_bytes;         /* streaming state of the encoder */
    int32_t arena_bytes;         /* scratch memory for either step */
    int32_t feature_zero_point;
    int32_t encoder_zero_point;
    int32_t logit_zero_point;
    float feature_scale;
    float encoder_scale;
    float logit_scale;
} edim_model_info;

/* The model that is compiled in. */
const edim_model_info *edim_model(void);

/* Sets the encoder's state to that before the first feature frame. */
void edim_encoder_reset(int8_t state[EDIM_STATE_BYTES]);

/* Reads the next feature frames, writes one encoder frame, or a block of them.
 *
 * features     (EDIM_FEATURE_FRAMES, EDIM_N_MELS), frame by frame
 * state        from edim_encoder_reset or the call before; updated
 * encoder_out  (EDIM_STEP_FRAMES, EDIM_D_MODEL)
 */
void edim_encoder_step(const int8_t features[EDIM_FEATURES], int8_t state[EDIM_STATE_BYTES],
                       int8_t encoder_out[EDIM_ENCODER_OUT], int8_t arena[EDIM_ARENA_BYTES]);

/* One pass of the Imputer head over a chunk and the encoder frames before it.
 *
 * encoder_window  (EDIM_WINDOW, EDIM_D_MODEL): EDIM_WINDOW - EDIM_CHUNK_SIZE frames of left
 *                 context (EDIM_ENCODER_ZERO_POINT before the first frame), then the chunk
 * alignment       (EDIM_WINDOW), a token of every frame: 0 before the first frame, EDIM_MASK_ID
 *                 where nothing is committed yet
 * logits          (EDIM_CHUNK_SIZE, EDIM_VOCABULARY_SIZE)
 *
 * Returns EDIM_TOKEN_OUT_OF_RANGE, with logits not written, if a token is not in
 * [0, EDIM_MASK_ID].
 */
edim_status edim_imputer_step(const int8_t encoder_window[EDIM_WINDOW * EDIM_D_MODEL],
                              const int32_t alignment[EDIM_WINDOW], int8_t logits[EDIM_LOGITS],
                              int8_t arena[EDIM_ARENA_BYTES]);

/* The same steps with real features and real logits. They hold EDIM_FEATURES and EDIM_LOGITS
 * bytes on the stack. */
void edim_encoder_step_f32(const float log_mel[EDIM_FEATURES], int8_t state[EDIM_STATE_BYTES],
                           int8_t encoder_out[EDIM_ENCODER_OUT], int8_t arena[EDIM_ARENA_BYTES]);
edim_status edim_imputer_step_f32(const int8_t encoder_window[EDIM_WINDOW * EDIM_D_MODEL],
                                  const int32_t alignment[EDIM_WINDOW], float logits[EDIM_LOGITS],
                                  int8_t arena[EDIM_ARENA_BYTES]);

#else /* a keyword model */

/* A stream is listened to in this order:
 *
 *   edim_keywords_reset(state);                                 once a stream
 *   edim_quantize_features(frames, EDIM_FEATURES, features);    as feature frames arrive
 *   edim_keywords_step(features, state, logits, arena);         every EDIM_HOP_FRAMES of them
 *
 * A step reads the EDIM_FEATURE_FRAMES frames that came last. These are the EDIM_HOP_FRAMES new
 * ones, or for a model over windows, whose EDIM_FEATURE_FRAMES is larger, a whole window, with
 * real zeros for what was before the stream. A softmax of a row of logits gives the probabilities
 * of the classes; class 0 is everything that is no keyword.
 */

/* Elements of a step's logits. */
#define EDIM_LOGITS (EDIM_STEP_SCORES * EDIM_N_CLASSES)

/* Bytes of scratch memory; nothing is kept in it between calls. */
#define EDIM_ARENA_BYTES EDIM_KEYWORDS_ARENA_BYTES

/* The constants of edim_model.h, for programs that load the library at run time. */
typedef struct edim_keywords_info {
    int32_t api_version;    /* EDIM_API_VERSION */
    int32_t feature_frames; /* feature frames a step reads */
    int32_t hop_frames;     /* by how many it moves on */
    int32_t n_mels;         /* features a frame */
    int32_t step_scores;    /* rows of logits a step gives */
    int32_t n_classes;
    int32_t state_bytes;    /* streaming state; 0 of a model over windows */
    int32_t arena_bytes;
    int32_t feature_zero_point;
    int32_t logit_zero_point;
    float feature_scale;
    float logit_scale;
} edim_keywords_info;

/* The model that is compiled in. */
const edim_keywords_info *edim_keywords(void);

/* Sets the state, EDIM_STATE_BYTES, to that before the first feature frame. */
void edim_keywords_reset(int8_t *state);

/* Reads feature frames, writes logits.
 *
 * features  (EDIM_FEATURE_FRAMES, EDIM_N_MELS), frame by frame
 * state     EDIM_STATE_BYTES, from edim_keywords_reset or the call before; updated. Where
 *           EDIM_STATE_BYTES is 0 it is not looked at and may be a null pointer
 * logits    (EDIM_STEP_SCORES, EDIM_N_CLASSES)
 */
void edim_keywords_step(const int8_t features[EDIM_FEATURES], int8_t *state,
                        int8_t logits[EDIM_LOGITS], int8_t arena[EDIM_ARENA_BYTES]);

/* The same step with real features and real logits. It holds EDIM_FEATURES and EDIM_LOGITS bytes
 * on the stack. */
void edim_keywords_step_f32(const float features[EDIM_FEATURES], int8_t *state,
                            float logits[EDIM_LOGITS], int8_t arena[EDIM_ARENA_BYTES]);

#endif

#ifdef __cplusplus
}
#endif

#endif
