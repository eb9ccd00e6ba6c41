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

/* The first input of a window. */
static const int8_t *corner_of(const edim_window *window, const int8_t *x, int32_t time,
                               int32_t freq) {
    const int32_t t = time * window->stride_time, f = freq * window->stride_freq;
    return x + (t * window->freq + f) * window->channels;
}

/* How far an element of a window lies behind the first. */
static int32_t tap_of(const edim_window *window, int32_t time, int32_t freq) {
    const int32_t t = time * window->dilation_time, f = freq * window->dilation_freq;
    return (t * window->freq + f) * window->channels;
}

/* Channels [first, first + n), n <= EDIM_ROW_BLOCK, of one output position. */
static void convolve_channels(const edim_linear *layer, const edim_window *window,
                              const int8_t *corner, int32_t first, int32_t n, int8_t *y) {
    int32_t accumulator[EDIM_ROW_BLOCK] = {0};
    for (int32_t i = 0; i < window->kernel_time; i++) {
        for (int32_t j = 0; j < window->kernel_freq; j++) {
            const int32_t tap = i * window->kernel_freq + j;
            const int8_t *restrict weight = layer->weight + tap * layer->rows + first;
            const int8_t *restrict x = corner + tap_of(window, i, j) + first;
            for (int32_t c = 0; c < n; c++) {
                accumulator[c] += (x[c] + EDIM_ACTIVATION_SHIFT) * weight[c];
            }
        }
    }
    requantize(layer, first, n, accumulator, y + first);
}

void edim_depthwise_conv2d(const edim_linear *layer, const edim_window *window, const int8_t *x,
                           int8_t *y) {
    const int32_t rows = layer->rows;
    for (int32_t time = 0; time < window->out_time; time++) {
        for (int32_t freq = 0; freq < window->out_freq; freq++, y += rows) {
            const int8_t *corner = corner_of(window, x, time, freq);
            for (int32_t first = 0; first < rows; first += EDIM_ROW_BLOCK) {
                const int32_t rest = rows - first;
                const int32_t count = rest < EDIM_ROW_BLOCK ? rest : EDIM_ROW_BLOCK;
                convolve_channels(layer, window, corner, first, count, y);
            }
        }
    }
}

static void maximum(int8_t *restrict y, const int8_t *restrict x, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        y[i] = (int8_t)(x[i] > y[i] ? x[i] : y[i]);
    }
}

void edim_max_pool(const edim_window *window, const int8_t *x, int8_t *y) {
    const int32_t channels = window->channels;
    for (int32_t time = 0; time < window->out_time; time++) {
        for (int32_t freq = 0; freq < window->out_freq; freq++, y += channels) {
            const int8_t *corner = corner_of(window, x, time, freq);
            edim_copy(y, corner, channels);
            for (int32_t i = 0; i < window->kernel_time; i++) {
                for (int32_t j = 0; j < window->kernel_freq; j++) {
                    maximum(y, corner + tap_of(window, i, j), channels);
                }
            }
        }
    }
}

/* Accumulators sum((x - x_zero_point) * y), and sum_x = sum(x - x_zero_point), -> int8. */
static void requantize_products(const edim_matmul *restrict matmul, int32_t sum_x, int32_t n,
                                const int32_t *restrict accumulator, int8_t *restrict output) {
    const edim_factor factor = matmul->output;
    const int32_t rest = matmul->y_zero_point * sum_x, zero_point = matmul->output_zero_point;
    for (int32_t i = 0; i < n; i++) {
        const int32_t scaled = scale_once(accumulator[i] - rest, factor.multiplier, factor.shift);
        output[i] = saturate(scaled, zero_point, -128);
    }
}

/* x (n, depth), n <= EDIM_TILE, times y (columns, depth) -> output (n, columns). */
static void multiply_transposed(const edim_matmul *matmul, const edim_activation *x, int32_t n,
                                const int8_t *y, int8_t *output) {
    const int32_t depth = matmul->depth, columns = matmul->columns;
    const int32_t x_zero_point = matmul->x_zero_point + EDIM_ACTIVATION_SHIFT;
    int32_t accumulator[EDIM_ROWS], sum_x[EDIM_TILE] = {0};
    for (int32_t i = 0; i < n; i++) {
        for (int32_t k = 0; k < depth; k++) {
            sum_x[i] += x[i * depth + k] - x_zero_point;
        }
    }
    for (int32_t first = 0; first < columns; first += EDIM_ROWS) {
        const int32_t count = columns - first < EDIM_ROWS ? columns - first : EDIM_ROWS;
        const int8_t *row[EDIM_ROWS];
        int32_t sum_y[EDIM_ROWS] = {0};
        for (int32_t j = 0; j < EDIM_ROWS; j++) { /* past the end: the last row again */
            row[j] = y + (first + (j < count ? j : count - 1)) * depth;
            for (int32_t k = 0; k < depth; k++) {
                sum_y[j] += row[j][k];
            }
        }
        for (int32_t i = 0; i < n; i++) {
            dot(x + i * depth, row, depth, accumulator);
            for (int32_t j = 0; j < EDIM_ROWS; j++) {
                accumulator[j] -= x_zero_point * sum_y[j];
            }
            requantize_products(matmul, sum_x[i], count, accumulator,
                                output + i * columns + first);
        }
    }
}

/* x (depth,) times y (depth, columns) -> output (columns,), the columns side by side. */
static void multiply_plain(const edim_matmul *matmul, const int8_t *x, const int8_t *y,
                           int8_t *output) {
    const int32_t depth = matmul->depth, columns = matmul->columns;
    int32_t sum_x = 0;
    for (int32_t k = 0; k < depth; k++) {
        sum_x += x[k] - matmul->x_zero_point;
    }
    for (int32_t first = 0; first < columns; first += EDIM_ROW_BLOCK) {
        const int32_t rest = columns - first;
        const int32_t count = rest < EDIM_ROW_BLOCK ? rest : EDIM_ROW_BLOCK;
        int32_t accumulator[EDIM_ROW_BLOCK] = {0};
        for (int32_t k = 0; k < depth; k++) {
            const int32_t value = x[k] - matmul->x_zero_point;
            const int8_t *restrict row = y + k * columns + first;
            for (int32_t j = 0; j < count; j++) {
                accumulator[j] += value * row[j];
            }
        }
        requantize_products(matmul, sum_x, count, accumulator, output + first);
    }
}

void edim_batch_matmul(const edim_matmul *matmul, const int8_t *x, const int8_t *y, int8_t *output,
                       int8_t *scratch) {
    const int32_t n = matmul->n, depth = matmul->depth, columns = matmul->columns;
    const int32_t tile = matmul->transposed ? EDIM_TILE : 1;
    for (int32_t b = 0; b < matmul->batch; b++, y += depth * columns) {
        for (int32_t i = 0; i < n; i += tile) {
            const int32_t count = n - i < tile ? n - i : tile;
            if (matmul->transposed) {
                const edim_activation *rows = activations(x, count * depth, scratch);
                multiply_transposed(matmul, rows, count, y, output);
            } else {
                multiply_plain(matmul, x, y, output);
            }
            x += count * depth;
            output += count * columns;
        }
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

void edim_minimum(const int8_t *x, const int8_t *y, int32_t n, int8_t *output) {
    for (int32_t i = 0; i < n; i++) {
        output[i] = (int8_t)(x[i] < y[i] ? x[i] : y[i]);
    }
}

/* The i-th int16, low byte first. */
static inline int32_t load16(const int8_t *x, int32_t i) {
    return x[2 * i + 1] * 256 + (uint8_t)x[2 * i];
}

/* Saturates a value to int16 and stores it as the i-th one. */
static inline void store16(int8_t *x, int32_t i, int32_t value) {
    const int32_t whole = clamp(value, -32768, 32767);
    x[2 * i] = (int8_t)((whole & 127) - (whole & 128));
    x[2 * i + 1] = (int8_t)((whole - (whole & 255)) / 256);
}

/* x + sign * y of int16 */
static inline void sum_elements16(const edim_sum *sum, int32_t sign, const int8_t *x,
                                  const int8_t *y, int32_t n, int8_t *output) {
    const edim_sum s = *sum;
    for (int32_t i = 0; i < n; i++) {
        const int32_t shifted_x = load16(x, i) * (INT32_C(1) << 15);
        const int32_t shifted_y = load16(y, i) * (INT32_C(1) << 15);
        const int32_t scaled_x = scale_twice(shifted_x, s.x.multiplier, s.x.shift);
        const int32_t scaled_y = scale_twice(shifted_y, s.y.multiplier, s.y.shift);
        const int32_t total = scaled_x + sign * scaled_y;
        store16(output, i, scale_twice(total, s.output.multiplier, s.output.shift));
    }
}

void edim_add16(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output) {
    sum_elements16(sum, 1, x, y, n, output);
}

void edim_sub16(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output) {
    sum_elements16(sum, -1, x, y, n, output);
}

void edim_widen(const edim_rescale *rescale, const int8_t *x, int32_t n, int8_t *output) {
    const edim_rescale r = *rescale;
    for (int32_t i = 0; i < n; i++) {
        const int32_t value = x[i] - r.input_zero_point;
        store16(output, i, scale_once(value, r.output.multiplier, r.output.shift));
    }
}

void edim_narrow(const edim_rescale *rescale, const int8_t *x, int32_t n, int8_t *output) {
    const edim_rescale r = *rescale;
    for (int32_t i = 0; i < n; i++) {
        const int32_t scaled = scale_once(load16(x, i), r.output.multiplier, r.output.shift);
        output[i] = saturate(scaled, r.output_zero_point, -128);
    }
}

/* An elementwise kernel, whatever its constants are. */
typedef void binary_kernel(const void *constants, const int8_t *x, const int8_t *y, int32_t n,
                           int8_t *output);

static void add_any(const void *constants, const int8_t *x, const int8_t *y, int32_t n,
                    int8_t *output) {
    edim_add((const edim_sum *)constants, x, y, n, output);
}

static void sub_any(const void *constants, const int8_t *x, const int8_t *y, int32_t n,
                    int8_t *output) {
    edim_sub((const edim_sum *)constants, x, y, n, output);
}

static void mul_any(const void *constants, const int8_t *x, const int8_t *y, int32_t n,
                    int8_t *output) {
    edim_mul((const edim_product *)constants, x, y, n, output);
}

static void minimum_any(const void *constants, const int8_t *x, const int8_t *y, int32_t n,
                        int8_t *output) {
    (void)constants;
    edim_minimum(x, y, n, output);
}

/* The innermost dimension, of which one input may be a single element: that is repeated in blocks,
 * for the kernel to work on contiguous elements only. */
static void broadcast_row(binary_kernel *kernel, const void *constants, const int8_t *x,
                          int32_t x_stride, const int8_t *y, int32_t y_stride, int32_t n,
                          int8_t *output) {
    if (x_stride && y_stride) {
        kernel(constants, x, y, n, output);
        return;
    }
    int8_t repeated[EDIM_ROW_BLOCK];
    edim_fill(repeated, x_stride ? *y : *x, EDIM_ROW_BLOCK);
    for (int32_t i = 0; i < n; i += EDIM_ROW_BLOCK) {
        const int32_t count = n - i < EDIM_ROW_BLOCK ? n - i : EDIM_ROW_BLOCK;
        kernel(constants, x_stride ? x + i : repeated, x_stride ? repeated : y + i, count,
               output + i);
    }
}

static void broadcast(binary_kernel *kernel, const void *constants, const edim_broadcast *shape,
                      const int8_t *x, const int8_t *y, int8_t *output) {
    const int32_t *size = shape->size, *sx = shape->x_stride, *sy = shape->y_stride;
    for (int32_t i = 0; i < size[0]; i++) {
        for (int32_t j = 0; j < size[1]; j++) {
            for (int32_t k = 0; k < size[2]; k++, output += size[3]) {
                broadcast_row(kernel, constants, x + i * sx[0] + j * sx[1] + k * sx[2], sx[3],
                              y + i * sy[0] + j * sy[1] + k * sy[2], sy[3], size[3], output);
            }
        }
    }
}

void edim_add_broadcast(const edim_sum *sum, const edim_broadcast *shape, const int8_t *x,
                        const int8_t *y, int8_t *output) {
    broadcast(add_any, sum, shape, x, y, output);
}

void edim_sub_broadcast(const edim_sum *sum, const edim_broadcast *shape, const int8_t *x,
                        const int8_t *y, int8_t *output) {
    broadcast(sub_any, sum, shape, x, y, output);
}

void edim_mul_broadcast(const edim_product *product, const edim_broadcast *shape, const int8_t *x,
                        const int8_t *y, int8_t *output) {
    broadcast(mul_any, product, shape, x, y, output);
}

void edim_minimum_broadcast(const edim_broadcast *shape, const int8_t *x, const int8_t *y,
                            int8_t *output) {
    broadcast(minimum_any, 0, shape, x, y, output);
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

/* y[i] = 256 * exp(x[i]) / sum(exp(x)), halves up, from -128 on. No part reaches 2^31. */
static void softmax_row(const int32_t table[256], const int8_t *x, int32_t n, int8_t *y) {
    int32_t largest = -128;
    for (int32_t i = 0; i < n; i++) {
        largest = x[i] > largest ? x[i] : largest;
    }
    int32_t total = 0;
    for (int32_t i = 0; i < n; i++) {
        total += table[largest - x[i]];
    }
    for (int32_t i = 0; i < n; i++) {
        const int32_t share = (table[largest - x[i]] * 256 + total / 2) / total;
        y[i] = (int8_t)((share < 255 ? share : 255) - 128);
    }
}

void edim_softmax(const int32_t table[256], const int8_t *x, int32_t rows, int32_t depth,
                  int8_t *output) {
    for (int32_t i = 0; i < rows; i++) {
        softmax_row(table, x + i * depth, depth, output + i * depth);
    }
}

/* The largest integer whose square is at most x < 2^52, bit by bit. */
static uint32_t integer_root(uint64_t x) {
    uint64_t root = 0;
    for (uint64_t bit = UINT64_C(1) << 50; bit != 0; bit >>= 2) {
        const uint64_t next = root + bit;
        root >>= 1;
        if (x >= next) {
            x -= next;
            root += bit;
        }
    }
    return (uint32_t)root;
}

/* y[i] = 128 * v[i] / |v|, v = x - zero_point; halves away from zero. */
static void l2_norm_row(int32_t zero_point, const int8_t *x, int32_t n, int8_t *y) {
    int32_t squares = 0; /* less than 2^26 */
    for (int32_t i = 0; i < n; i++) {
        squares += (x[i] - zero_point) * (x[i] - zero_point);
    }
    const uint32_t length = integer_root((uint64_t)squares << (2 * EDIM_NORM_BITS));
    const uint32_t divisor = length ? length : 1; /* a row of zeros */
    for (int32_t i = 0; i < n; i++) {
        const int32_t value = x[i] - zero_point;
        const uint32_t size = (uint32_t)(value < 0 ? -value : value) << (7 + EDIM_NORM_BITS);
        const int32_t rounded = (int32_t)((size + divisor / 2) / divisor);
        y[i] = (int8_t)clamp(value < 0 ? -rounded : rounded, -128, 127);
    }
}

void edim_l2_norm(int32_t zero_point, const int8_t *x, int32_t rows, int32_t depth,
                  int8_t *output) {
    for (int32_t i = 0; i < rows; i++) {
        l2_norm_row(zero_point, x + i * depth, depth, output + i * depth);
    }
}

void edim_mean(const edim_average *average, const int8_t *x, int32_t rows, int8_t *output) {
    const edim_factor factor = average->output;
    for (int32_t i = 0; i < rows; i++, x += average->depth) {
        int32_t total = -average->depth * average->input_zero_point;
        for (int32_t k = 0; k < average->depth; k++) {
            total += x[k];
        }
        const int32_t scaled = scale_once(total, factor.multiplier, factor.shift);
        output[i] = saturate(scaled, average->output_zero_point, -128);
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

/* Collects n elements that are `stride` apart. */
static void copy_strided(int8_t *restrict target, const int8_t *restrict source, int32_t stride,
                         int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        target[i] = source[i * stride];
    }
}

void edim_copy_box(const edim_box *box, const int8_t *source, int8_t *target) {
    const int32_t *from = box->source_stride, *to = box->target_stride;
    for (int32_t i = 0; i < box->size[0]; i++) {
        for (int32_t j = 0; j < box->size[1]; j++) {
            for (int32_t k = 0; k < box->size[2]; k++) {
                const int8_t *first = source + i * from[0] + j * from[1] + k * from[2];
                int8_t *row = target + i * to[0] + j * to[1] + k * to[2];
                if (from[3] == 1) {
                    edim_copy(row, first, box->size[3]);
                } else {
                    copy_strided(row, first, from[3], box->size[3]);
                }
            }
        }
    }
}
