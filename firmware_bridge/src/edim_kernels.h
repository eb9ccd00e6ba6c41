/* Kernels of the Edge Imputer: one function for every operation of the quantised graph.
 *
 * C99 without malloc, libm, I/O, recursion or global state. Every kernel computes the same bytes
 * as the integer reference in Python (edge_imputer.export.reference), whatever the compiler and
 * the instruction set.
 *
 * Tensors are int8, but for a few sums of int16, in NHWC order (time, frequency, channel), batch
 * size 1: real = scale * (q - zero_point). Counts and sizes are in elements, which are bytes but
 * for int16.
 */
#ifndef EDIM_KERNELS_H
#define EDIM_KERNELS_H

#include <stdint.h>

/* Input rows that a matrix multiplication prepares at a time. */
#define EDIM_TILE 4

/* Convolutions of fewer inputs an output take another way. */
#define EDIM_SHALLOW 16

/* Bits behind the point of the lengths of edim_l2_norm. */
#define EDIM_NORM_BITS 10

/* Bytes of scratch memory. */
#define EDIM_FULLY_CONNECTED_SCRATCH(depth) (EDIM_TILE * (depth))
#define EDIM_CONV2D_SCRATCH(rows, depth) \
    ((depth) < EDIM_SHALLOW ? (rows) * (depth) : EDIM_TILE * (depth))
#define EDIM_BATCH_MATMUL_SCRATCH(depth, transposed) ((transposed) ? EDIM_TILE * (depth) : 0)

/* A real factor, multiplier * 2^(shift - 31): multiplier is 0 or in [2^30, 2^31), shift in
 * [-31, 30]. Accumulators, products and means are rounded once, sums twice as in TFLite; why is
 * said in edge_imputer.export.fixed_point. */
typedef struct edim_factor {
    int32_t multiplier;
    int32_t shift;
} edim_factor;

/* Weights and requantisation of a fully connected layer or a convolution. The weight is
 * (rows, depth), but that of a depthwise convolution (depth, rows): kernel_time * kernel_freq
 * weights of every channel, side by side. */
typedef struct edim_linear {
    const int8_t *weight;       /* in [-127, 127], one scale a row */
    const int32_t *bias;        /* (rows,), in units of input scale times weight scale */
    const int32_t *weight_sum;  /* (rows,), sum of each row of `weight` */
    const int32_t *multiplier;  /* (rows,), see edim_factor */
    const int8_t *shift;        /* (rows,), see edim_factor */
    int32_t rows;               /* outputs; of a depthwise convolution its channels */
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

/* Geometry of an operation on every channel by itself, over windows of (time, frequency),
 * without padding: depthwise convolution and maximum. */
typedef struct edim_window {
    int32_t freq, channels;               /* of the input, (time, freq, channels) */
    int32_t kernel_time, kernel_freq;
    int32_t stride_time, stride_freq;     /* from window to window */
    int32_t dilation_time, dilation_freq; /* from element to element of a window */
    int32_t out_time, out_freq;           /* of the output, (out_time, out_freq, channels) */
} edim_window;

/* Requantisation of an addition or subtraction: both inputs are shifted left by 20 bits, brought
 * to twice the larger of their scales, added, and brought to the output's scale. */
typedef struct edim_sum {
    edim_factor x, y, output;
    int32_t x_zero_point, y_zero_point, output_zero_point;
} edim_sum;

/* From int8 to int16 or back; zero points of int16 are 0. */
typedef struct edim_rescale {
    edim_factor output;
    int32_t input_zero_point, output_zero_point;
} edim_rescale;

/* Requantisation of an elementwise product. */
typedef struct edim_product {
    edim_factor output;
    int32_t x_zero_point, y_zero_point, output_zero_point;
} edim_product;

/* Shape and requantisation of x (batch, n, depth) times y -> (batch, n, columns). */
typedef struct edim_matmul {
    edim_factor output;
    int32_t x_zero_point, y_zero_point, output_zero_point;
    int32_t batch, n, depth, columns; /* depth below 2^15 */
    int32_t transposed;               /* 0: y (batch, depth, columns), 1: (batch, columns, depth) */
} edim_matmul;

/* Requantisation of a sum over `depth` elements, at most 1024, to their mean. */
typedef struct edim_average {
    edim_factor output;
    int32_t input_zero_point, output_zero_point;
    int32_t depth;
} edim_average;

/* The shape of an elementwise operation in up to four dimensions, and where the elements of both
 * inputs lie: 0 is the stride of a dimension along which an input is repeated. The innermost
 * strides are 0 or 1, not both 0; the output is contiguous. Strides are in bytes. */
typedef struct edim_broadcast {
    int32_t size[4];
    int32_t x_stride[4];
    int32_t y_stride[4];
} edim_broadcast;

/* A box of up to four dimensions inside a source and inside a destination, in which the innermost
 * one is contiguous: what concatenation, slicing, padding and transposition copy. Strides are in
 * bytes. */
typedef struct edim_box {
    int32_t size[4];
    int32_t source_stride[4];
    int32_t target_stride[3];
} edim_box;

/* x (n, depth) -> y (n, rows). x and y do not overlap. */
void edim_fully_connected(const edim_linear *layer, const int8_t *x, int32_t n, int8_t *y,
                          int8_t *scratch /* EDIM_FULLY_CONNECTED_SCRATCH(depth) */);

/* x (time, freq, channels) -> y (out_time, out_freq, rows). x and y do not overlap. */
void edim_conv2d(const edim_linear *layer, const edim_conv *conv, const int8_t *x, int8_t *y,
                 int8_t *scratch /* EDIM_CONV2D_SCRATCH(rows, depth) */);

/* x (time, freq, channels) -> y (out_time, out_freq, channels), channels the rows of the layer.
 * x and y do not overlap. */
void edim_depthwise_conv2d(const edim_linear *layer, const edim_window *window, const int8_t *x,
                           int8_t *y);

/* The largest of every window. x and y do not overlap. */
void edim_max_pool(const edim_window *window, const int8_t *x, int8_t *y);

/* The product of two activations. The output overlaps neither. */
void edim_batch_matmul(const edim_matmul *matmul, const int8_t *x, const int8_t *y, int8_t *output,
                       int8_t *scratch /* EDIM_BATCH_MATMUL_SCRATCH(depth, transposed) */);

/* Elementwise, n elements. The output may be one of the inputs. */
void edim_add(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output);
void edim_sub(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output);
void edim_mul(const edim_product *product, const int8_t *x, const int8_t *y, int32_t n,
              int8_t *output);
void edim_minimum(const int8_t *x, const int8_t *y, int32_t n, int8_t *output);
void edim_relu(int32_t zero_point, const int8_t *x, int32_t n, int8_t *output);

/* The same of int16 with zero points of 0, for which inputs are shifted left by 15 bits. An int16 is
 * two bytes at any address, low byte first. */
void edim_add16(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output);
void edim_sub16(const edim_sum *sum, const int8_t *x, const int8_t *y, int32_t n, int8_t *output);

/* n elements from int8 to int16, and from int16 to int8. The output does not overlap the input. */
void edim_widen(const edim_rescale *rescale, const int8_t *x, int32_t n, int8_t *output);
void edim_narrow(const edim_rescale *rescale, const int8_t *x, int32_t n, int8_t *output);

/* The same of inputs that are repeated along some dimensions. The output overlaps neither. */
void edim_add_broadcast(const edim_sum *sum, const edim_broadcast *shape, const int8_t *x,
                        const int8_t *y, int8_t *output);
void edim_sub_broadcast(const edim_sum *sum, const edim_broadcast *shape, const int8_t *x,
                        const int8_t *y, int8_t *output);
void edim_mul_broadcast(const edim_product *product, const edim_broadcast *shape, const int8_t *x,
                        const int8_t *y, int8_t *output);
void edim_minimum_broadcast(const edim_broadcast *shape, const int8_t *x, const int8_t *y,
                            int8_t *output);

/* output[i] = table[x[i] + 128]: sigmoid and tanh. The output may be the input. */
void edim_lookup(const int8_t table[256], const int8_t *x, int32_t n, int8_t *output);

/* Every row of x (rows, depth) by itself: depth at most 511 of a softmax, 1024 of the others. The
 * output of the first two, with scales and zero points (1/256, -128) and (1/128, 0), may be the
 * input; that of edim_mean is (rows,). table[k] is exp(-k * scale) in units of 2^-22; edim_l2_norm
 * leaves zeros zero. */
void edim_softmax(const int32_t table[256], const int8_t *x, int32_t rows, int32_t depth,
                  int8_t *output);
void edim_l2_norm(int32_t zero_point, const int8_t *x, int32_t rows, int32_t depth,
                  int8_t *output);
void edim_mean(const edim_average *average, const int8_t *x, int32_t rows, int8_t *output);

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
