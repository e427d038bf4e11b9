/* product.c - from a matrix's float input to integers, and from integer products back to floats.
 *
 * W1.58A8 quantises the input to one int8 a token.  W1.58A16 does not quantise: an input becomes an
 * integer of 23 bits, as three int8 digits in base 255, which the integer products take for three
 * tokens; their sums are put together exactly and rounded once. */
#include "lora.h"

static digit_rows digits_of(const tern_state *s, size_t i, size_t t)
{
    const size_t n_digits = s->model->config.n_digits;
    return (digit_rows){ product(s, i, t * n_digits), s->z_stride, n_digits };
}

void prepare_input(tern_state *s, const tern_matrix *w, const float *x, size_t t)
{
    const size_t n_digits = s->model->config.n_digits;
    quantized *in = &s->in[t * n_digits];
    if (w->packing == TERN_F16) { /* takes the input as it is */
        in->act = (tern_act){ .n = w->n_in };
        in->n_zero = 0;
        return;
    }
    if (n_digits == 1)
        quantize(x, w->n_in, in);
    else
        quantize_digits(x, w->n_in, in);
    for (size_t d = 0; d < n_digits; d++) {
        if (w->n_groups > 1) sum_groups(&in[d], w->n_groups);
        if (pays_to_skip(s, w, t * n_digits + d)) list_live(&in[d]);
    }
}

static void scale_floats(const float *z, size_t n, float scale, float *y)
{
    for (size_t o = 0; o < n; o++) y[o] = z[o] * scale;
}

void take_product(const tern_state *s, const tern_matrix *w, size_t i, size_t t, float *y)
{
    const digit_rows z = digits_of(s, i, t);
    const float inverse = s->in[t * z.n_digits].inverse;
    if (w->packing == TERN_F16)
        scale_floats(float_product(s, i, t), w->n_out, w->scale, y);
    else if (w->n_groups > 1)
        scale_floats(float_product(s, i, t), w->n_out, inverse, y);
    else if (w->scales)
        dequantize_rows(z, w->n_out, w->scales, inverse, y);
    else if (z.n_digits > 1)
        dequantize_digits(z, w->n_out, w->scale * inverse, y);
    else
        dequantize(z.z, w->n_out, w->scale * inverse, y);
    if (s->lora.is_on[i]) add_scaled(lora_delta(s, i, t), w->n_out, 1.0f, y);
}

/* Products that go to the residual stream as they are: W1.58A8 with one scale a matrix, no adapter. */
static bool is_plain(const tern_state *s, const tern_matrix *w)
{
    const tern_config *c = &s->model->config;
    return w->packing != TERN_F16 && !w->scales && c->n_digits == 1 && c->residual_scale == 1.0f &&
           !s->lora.is_on[0];
}

void add_product(const tern_state *s, const tern_matrix *w, size_t t, float *x)
{
    if (is_plain(s, w)) {
        add_dequantized(product(s, 0, t), w->n_out, w->scale * s->in[t].inverse, x);
        return;
    }
    float *y = row(s->h, t, s->width);
    take_product(s, w, 0, t, y);
    add_scaled(y, w->n_out, s->model->config.residual_scale, x);
}
