/* Int8 kernels of the Edge Imputer, see edim_kernels.h.
 *
 * Plain C99, written so that a compiler can vectorise the inner loops: no branch and no call in
 * them, counts known before they start.
 */
#include "edim_kernels.h"

/* Activations are multiplied as uint8 (q + 128) where the processor has a dot product of
 * unsigned with signed bytes but none of signed ones (x86: vpdpbusd), else as they are. The
 * shift is part of the zero point, so the results are the same. */
#ifndef EDIM_UNSIGNED_ACTIVATIONS
#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
#define EDIM_UNSIGNED_ACTIVATIONS 1
#else
#define EDIM_UNSIGNED_ACTIVATIONS 0
#endif
#endif

#if EDIM_UNSIGNED_ACTIVATIONS
typedef uint8_t edim_activation;
#define EDIM_ACTIVATION_SHIFT 128
#else
typedef int8_t edim_activation;
#define EDIM_ACTIVATION_SHIFT 0
#endif

#define EDIM_ROWS 4       /* weight rows multiplied together */
#define EDIM_ROW_BLOCK 32 /* accumulators on the stack, a multiple of EDIM_ROWS */

/* Requantisation shifts negative numbers to the right: every compiler we know keeps the sign. */
typedef char edim_assert_arithmetic_shift[((-3) >> 1) == -2 ? 1 : -1];

/* Loops that compilers know: no <string.h>, which a freestanding C99 does not have. */
void edim_copy(int8_t *restrict target, const int8_t *restrict source, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        target[i] = source[i];
    }
}

void edim_fill(int8_t *target, int32_t value, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        target[i] = (int8_t)value;
    }
}

static int32_t clamp(int32_t value, int32_t low, int32_t high) {
    return value < low ? low : (value > high ? high : value);
}

/* x * multiplier * 2^(shift - 31), rounded once, halves up. The result fits int32. */
static inline int32_t scale_once(int32_t x, int32_t multiplier, int32_t shift) {
    const int32_t right = 31 - shift; /* 1 to 62 */
    return (int32_t)(((int64_t)x * multiplier + (INT64_C(1) << (right - 1))) >> right);
}

/* The same in two roundings, as TFLite scales the terms of a sum: x * 2^max(shift, 0) *
 * multiplier / 2^31, halves up, then / 2^max(-shift, 0), halves away from zero.
 * x * 2^max(shift, 0) fits int32. */
static inline int32_t scale_twice(int32_t x, int32_t multiplier, int32_t shift) {
    const int32_t left = shift > 0 ? shift : 0;
    const int32_t right = shift > 0 ? 0 : -shift;
    const int32_t shifted = x * (int32_t)(UINT32_C(1) << left);
    const int64_t product = (int64_t)shifted * multiplier;
    const int32_t high = (int32_t)((product + (INT64_C(1) << 30)) >> 31);
    const int32_t mask = (int32_t)((UINT32_C(1) << right) - 1);
    const int32_t threshold = (mask >> 1) + (high < 0);
    return (high >> right) + ((high & mask) > threshold);
}

/* Adds the zero point to a scaled value and saturates to [low, 127]. */
static inline int8_t saturate(int32_t value, int32_t zero_point, int32_t low) {
    return (int8_t)(clamp(value, low - zero_point, 127 - zero_point) + zero_point);
}

/* n int8 values as activations: converted into `scratch`, or where they are if nothing changes. */
static const edim_activation *activations(const int8_t *restrict x, int32_t n,
                                          int8_t *restrict scratch) {
#if EDIM_UNSIGNED_ACTIVATIONS
    edim_activation *restrict target = (edim_activation *)scratch;
    for (int32_t i = 0; i < n; i++) {
        target[i] = (edim_activation)(x[i] + EDIM_ACTIVATION_SHIFT);
    }
    return target;
#else
    (void)n;
    (void)scratch;
    return x;
#endif
}

/* The same in place. */
static const edim_activation *activate(int8_t *x, int32_t n) {
    edim_activation *target = (edim_activation *)x;
    for (int32_t i = 0; i < n; i++) {
        target[i] = (edim_activation)(x[i] + EDIM_ACTIVATION_SHIFT);
    }
    return target;
}

/* Dot products of x (depth,) with four rows. Three loops, so that a depth that is no multiple of
 * the vector length still has few elements left for the last, scalar one. */
static inline void dot(const edim_activation *restrict x, const int8_t *const row[EDIM_ROWS],
                       int32_t depth, int32_t *restrict accumulator) {
    const int8_t *restrict a = row[0];
    const int8_t *restrict b = row[1];
    const int8_t *restrict c = row[2];
    const int8_t *restrict d = row[3];
    int32_t sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
    const int32_t wide = depth / 32 * 32, narrow = depth / 16 * 16;
#define EDIM_MAC(first, end)                      \
    for (int32_t i = (first); i < (end); i++) {   \
        const int32_t value = x[i];               \
        sum_a += value * a[i];                    \
        sum_b += value * b[i];                    \
        sum_c += value * c[i];                    \
        sum_d += value * d[i];                    \
    }
    EDIM_MAC(0, wide)
    for (int32_t block = wide; block < narrow; block += 16) {
        EDIM_MAC(block, block + 16)
    }
    EDIM_MAC(narrow, depth)
#undef EDIM_MAC
    accumulator[0] = sum_a;
    accumulator[1] = sum_b;
    accumulator[2] = sum_c;
    accumulator[3] = sum_d;
}

/* Accumulators of rows [first, first + n) -> int8. */
static void requantize(const edim_linear *restrict layer, int32_t first, int32_t n,
                       const int32_t *restrict accumulator, int8_t *restrict y) {
    const int32_t *restrict bias = layer->bias + first;
    const int32_t *restrict weight_sum = layer->weight_sum + first;
    const int32_t *restrict multiplier = layer->multiplier + first;
    const int8_t *restrict shift = layer->shift + first;
    const int32_t input_zero_point = layer->input_zero_point + EDIM_ACTIVATION_SHIFT;
    const int32_t zero_point = layer->output_zero_point, low = layer->output_min;
    for (int32_t i = 0; i < n; i++) {
        /* in this order no part overflows */
        const int32_t sum = accumulator[i] - input_zero_point * weight_sum[i] + bias[i];
        y[i] = saturate(scale_once(sum, multiplier[i], shift[i]), zero_point, low);
    }
}

/* x (n, depth), n <= EDIM_TILE -> y (n, rows). A block of weight rows serves all n inputs while
 * it is in the cache. */
static void multiply(const edim_linear *layer, const edim_activation *x, int32_t n, int8_t *y) {
    const int32_t rows = layer->rows, depth = layer->depth;
    int32_t accumulator[EDIM_ROW_BLOCK];
    for (int32_t first = 0; first < rows; first += EDIM_ROW_BLOCK) {
        const int32_t count = rows - first < EDIM_ROW_BLOCK ? rows - first : EDIM_ROW_BLOCK;
        for (int32_t i = 0; i < n; i++) {
            for (int32_t j = 0; j < count; j += EDIM_ROWS) {
                const int8_t *row[EDIM_ROWS];
                for (int32_t k = 0; k < EDIM_ROWS; k++) { /* past the end: the last row again */
                    const int32_t index = first + (j + k < count ? j + k : count - 1);
                    row[k] = layer->weight + index * depth;
                }
                dot(x + i * depth, row, depth, accumulator + j);
            }
            requantize(layer, first, count, accumulator, y + i * rows + first);
        }
    }
}

void edim_fully_connected(const edim_linear *layer, const int8_t *x, int32_t n, int8_t *y,
                          int8_t *scratch) {
    for (int32_t i = 0; i < n; i += EDIM_TILE) {
        const int32_t count = n - i < EDIM_TILE ? n - i : EDIM_TILE;
        const int8_t *tile = x + i * layer->depth;
        multiply(layer, activations(tile, count * layer->depth, scratch), count,
                 y + i * layer->rows);
    }
}

/* Copies the inputs of `count` outputs from the `first` one on, patch by patch. */
static void gather(const edim_conv *conv, const int8_t *x, int32_t first, int32_t count,
                   int8_t *patch) {
    const int32_t span = conv->kernel_freq * conv->channels; /* contiguous inputs of one frame */
    const int32_t frame = conv->freq * conv->channels;
    for (int32_t position = first; position < first + count; position++) {
        const int32_t time = position / conv->out_freq * conv->stride_time;
        const int32_t freq = position % conv->out_freq * conv->stride_freq;
        const int8_t *corner = x + time * frame + freq * conv->channels;
        for (int32_t k = 0; k < conv->kernel_time; k++, patch += span) {
            edim_copy(patch, corner + k * frame, span);
        }
    }
}

/* One output position from its first input on; weight (depth, rows). */
static void convolve_position(const edim_linear *layer, const edim_conv *conv,
                              const int8_t *corner, const int8_t *weight, int8_t *y) {
    const int32_t rows = layer->rows;
    const int32_t span = conv->kernel_freq * conv->channels;
    const int32_t frame = conv->freq * conv->channels;
    for (int32_t first = 0; first < rows; first += EDIM_ROW_BLOCK) {
        const int32_t count = rows - first < EDIM_ROW_BLOCK ? rows - first : EDIM_ROW_BLOCK;
        const int8_t *tap = weight + first;
        int32_t accumulator[EDIM_ROW_BLOCK] = {0};
        for (int32_t k = 0; k < conv->kernel_time; k++) {
            for (int32_t i = 0; i < span; i++, tap += rows) {
                const int32_t value = corner[k * frame + i] + EDIM_ACTIVATION_SHIFT;
                for (int32_t j = 0; j < count; j++) {
                    accumulator[j] += value * tap[j];
                }
            }
        }
        requantize(layer, first, count, accumulator, y + first);
    }
}

/* A convolution with so few inputs an output, such as the first one, that dot products do not
 * pay: it works on the rows side by side instead. */
static void convolve_shallow(const edim_linear *layer, const edim_conv *conv, const int8_t *x,
                             int8_t *y, int8_t *scratch) {
    const int32_t rows = layer->rows, depth = layer->depth;
    for (int32_t row = 0; row < rows; row++) {
        for (int32_t k = 0; k < depth; k++) {
            scratch[k * rows + row] = layer->weight[row * depth + k];
        }
    }
    for (int32_t time = 0; time < conv->out_time; time++) {
        const int8_t *corner = x + time * conv->stride_time * conv->freq * conv->channels;
        for (int32_t freq = 0; freq < conv->out_freq; freq++) {
            convolve_position(layer, conv, corner, scratch, y);
            corner += conv->stride_freq * conv->channels;
            y += rows;
        }
    }
}

void edim_conv2d(const edim_linear *layer, const edim_conv *conv, const int8_t *x, int8_t *y,
                 int8_t *scratch) {
    const int32_t positions = conv->out_time * conv->out_freq;
    if (layer->depth < EDIM_SHALLOW) {
        convolve_shallow(layer, conv, x, y, scratch);
        return;
    }
    for (int32_t i = 0; i < positions; i += EDIM_TILE) {
        const int32_t count = positions - i < EDIM_TILE ? positions - i : EDIM_TILE;
        gather(conv, x, i, count, scratch);
        multiply(layer, activate(scratch, count * layer->depth), count, y + i * layer->rows);
    }
}

/* x + sign * y */
static inline void sum_elements(const edim_sum *sum, int32_t sign, const int8_t *x,
                                const int8_t *y, int32_t n, int8_t *output) {
    const edim_sum s = *sum; /* a copy cannot overlap the output: the compiler keeps it in registers */
    for (int32_t i = 0; i < n; i++) {
        const int32_t shifted_x = (x[i] - s.x_zero_point) * (INT32_C(1) << 20);
        const int32_t shifted_y = (y[i] - s.y_zero_point) * (INT32_C(1) << 20);
        const int32_t scaled_x = scale_twice(shifted_x, s.x.multiplier, s.x.shift);
        const int32_t scaled_y = scale_twice(shifted_y, s.y.multiplier, s.y.shift);
        const int32_t total = scaled_x + sign * scaled_y;
        const int32_t scaled = scale_twice(total, s.output.multiplier, s.output.shift);
        output[i] = saturate(scaled, s.output_zero_point, -128);
    }
}

void edim_add(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output) {
    sum_elements(sum, 1, x, y, n, output);
}

void edim_sub(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output) {
    sum_elements(sum, -1, x, y, n, output);
}

void edim_mul(const edim_product *product, const int8_t *x, const int8_t *y, int32_t n,
              int8_t *output) {
    const edim_product p = *product;
    for (int32_t i = 0; i < n; i++) {
        const int32_t exact = (x[i] - p.x_zero_point) * (y[i] - p.y_zero_point);
        const int32_t scaled = scale_once(exact, p.output.multiplier, p.output.shift);
        output[i] = saturate(scaled, p.output_zero_point, -128);
    }
}

void edim_relu(int32_t zero_point, const int8_t *x, int32_t n, int8_t *output) {
    for (int32_t i = 0; i < n; i++) {
        output[i] = (int8_t)(x[i] < zero_point ? zero_point : x[i]);
    }
}

void edim_lookup(const int8_t table[256], const int8_t *x, int32_t n, int8_t *output) {
    for (int32_t i = 0; i < n; i++) {
        output[i] = table[x[i] + 128];
    }
}

int32_t edim_embedding(const int8_t *table, int32_t rows, int32_t width, const int32_t *ids,
                       int32_t n, int8_t *output) {
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= rows) {
            return -1;
        }
        edim_copy(output + i * width, table + ids[i] * width, width);
    }
    return 0;
}

void edim_copy_box(const edim_box *box, const int8_t *source, int8_t *target) {
    const int32_t *from = box->source_stride, *to = box->target_stride;
    for (int32_t i = 0; i < box->size[0]; i++) {
        for (int32_t j = 0; j < box->size[1]; j++) {
            for (int32_t k = 0; k < box->size[2]; k++) {
                edim_copy(target + i * to[0] + j * to[1] + k * to[2],
                          source + i * from[0] + j * from[1] + k * from[2], box->size[3]);
            }
        }
    }
}
