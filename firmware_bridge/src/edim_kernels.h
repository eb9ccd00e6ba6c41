/* Int8 kernels of the Edge Imputer: one function for every operation of the quantised graph.
 *
 * C99 without malloc, libm, I/O, recursion or global state. Every kernel computes the same bytes
 * as the integer reference in Python (edge_imputer.export.reference), whatever the compiler and
 * the instruction set.
 *
 * Tensors are int8 in NHWC order (time, frequency, channel), batch size 1:
 * real = scale * (q - zero_point). Counts and sizes are in elements, which are bytes.
 */
#ifndef EDIM_KERNELS_H
#define EDIM_KERNELS_H

#include <stdint.h>

/* Input rows that a matrix multiplication prepares at a time. */
#define EDIM_TILE 4

/* Convolutions of fewer inputs an output take another way. */
#define EDIM_SHALLOW 16

/* Bytes of scratch memory. */
#define EDIM_FULLY_CONNECTED_SCRATCH(depth) (EDIM_TILE * (depth))
#define EDIM_CONV2D_SCRATCH(rows, depth) \
    ((depth) < EDIM_SHALLOW ? (rows) * (depth) : EDIM_TILE * (depth))

/* A real factor, multiplier * 2^(shift - 31): multiplier is 0 or in [2^30, 2^31), shift in
 * [-31, 30]. Accumulators and products are rounded once, sums twice as in TFLite; why is said in
 * edge_imputer.export.fixed_point. */
typedef struct edim_factor {
    int32_t multiplier;
    int32_t shift;
} edim_factor;

/* Weights and requantisation of a fully connected layer or a convolution. */
typedef struct edim_linear {
    const int8_t *weight;       /* (rows, depth), in [-127, 127], one scale a row */
    const int32_t *bias;        /* (rows,), in units of input scale times weight scale */
    const int32_t *weight_sum;  /* (rows,), sum of each row of `weight` */
    const int32_t *multiplier;  /* (rows,), see edim_factor */
    const int8_t *shift;        /* (rows,), see edim_factor */
    int32_t rows;               /* outputs */
    int32_t depth;              /* inputs; of a convolution kernel_time * kernel_freq * channels */
    int32_t input_zero_point;   /* [-128, 127] */
    int32_t output_zero_point;  /* [-128, 127] */
    int32_t output_min;         /* -128, or the output's zero point where ReLU is fused */
} edim_linear;

/* Geometry of a convolution over (time, frequency), without padding. */
typedef struct edim_conv {
    int32_t freq, channels;           /* of the input, (time, freq, channels) */
    int32_t kernel_time, kernel_freq;
    int32_t stride_time, stride_freq;
    int32_t out_time, out_freq;       /* of the output, (out_time, out_freq, rows) */
} edim_conv;

/* Requantisation of an addition or subtraction: both inputs are shifted left by 20 bits, brought
 * to twice the larger of their scales, added, and brought to the output's scale. */
typedef struct edim_sum {
    edim_factor x, y, output;
    int32_t x_zero_point, y_zero_point, output_zero_point;
} edim_sum;

/* Requantisation of an elementwise product. */
typedef struct edim_product {
    edim_factor output;
    int32_t x_zero_point, y_zero_point, output_zero_point;
} edim_product;

/* A box of up to four dimensions inside a source and inside a destination, the innermost one
 * contiguous in both: what concatenation, slicing and padding copy. Strides are in bytes. */
typedef struct edim_box {
    int32_t size[4];
    int32_t source_stride[3];
    int32_t target_stride[3];
} edim_box;

/* x (n, depth) -> y (n, rows). x and y do not overlap. */
void edim_fully_connected(const edim_linear *layer, const int8_t *x, int32_t n, int8_t *y,
                          int8_t *scratch /* EDIM_FULLY_CONNECTED_SCRATCH(depth) */);

/* x (time, freq, channels) -> y (out_time, out_freq, rows). x and y do not overlap. */
void edim_conv2d(const edim_linear *layer, const edim_conv *conv, const int8_t *x, int8_t *y,
                 int8_t *scratch /* EDIM_CONV2D_SCRATCH(rows, depth) */);

/* Elementwise, n elements. The output may be one of the inputs. */
void edim_add(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output);
void edim_sub(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output);
void edim_mul(const edim_product *product, const int8_t *x, const int8_t *y, int32_t n,
              int8_t *output);
void edim_relu(int32_t zero_point, const int8_t *x, int32_t n, int8_t *output);

/* output[i] = table[x[i] + 128]: sigmoid and tanh. The output may be the input. */
void edim_lookup(const int8_t table[256], const int8_t *x, int32_t n, int8_t *output);

/* Rows `ids` (n,) of table (rows, width) -> output (n, width). Returns 0, or -1 at the first id
 * that is not in [0, rows). */
int32_t edim_embedding(const int8_t *table, int32_t rows, int32_t width, const int32_t *ids,
                       int32_t n, int8_t *output);

/* Copies n elements, sets n elements. Source and target do not overlap; `value` is an int8. */
void edim_copy(int8_t *target, const int8_t *source, int32_t n);
void edim_fill(int8_t *target, int32_t value, int32_t n);

/* Copies a box. Source and target do not overlap. */
void edim_copy_box(const edim_box *box, const int8_t *source, int8_t *target);

#endif
