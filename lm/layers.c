#include "lm/layers.h"
#include "lm/mathf.h"

#include <math.h>

static const float norm_eps = 1e-5F;

enum { LANES = 16, COLUMNS = 64 }; /* partial sums of a row; columns that a thread sums at a time */

/* Sum of a[i] * b[i] in an order that depends on n alone and that vector units like. */
static float dot(const float *a, const float *b, int64_t n)
{
    float part[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int64_t l = 0; l < LANES; l++)
            part[l] += a[i + l] * b[i + l];
    }
    for (; i < n; i++)
        part[i % LANES] += a[i] * b[i];
    for (int64_t width = LANES / 2; width > 0; width /= 2) {
        for (int64_t l = 0; l < width; l++)
            part[l] += part[l + width];
    }
    return part[0];
}

void rmsnorm_forward(float *y, float *rstd, const float *x, const float *gain, int64_t rows, int64_t d)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *xr = x + r * d;
        const float s = 1.0F / sqrtf(dot(xr, xr, d) / (float)d + norm_eps);
        rstd[r] = s;
        for (int64_t c = 0; c < d; c++)
            y[r * d + c] = xr[c] * s * gain[c];
    }
}

void rmsnorm_backward(float *dx, float *dgain, const float *dy, const float *x, const float *rstd, const float *gain,
                      int64_t rows, int64_t d)
{
    const int64_t strips = (d + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        const int64_t end = strip * COLUMNS + COLUMNS < d ? strip * COLUMNS + COLUMNS : d;
        for (int64_t c = strip * COLUMNS; c < end; c++)
            dgain[c] = 0.0F;
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = strip * COLUMNS; c < end; c++)
                dgain[c] += dy[r * d + c] * x[r * d + c] * rstd[r];
        }
    }
    /* dx = rstd (g dy - x rstd^2 mean(g dy x)) */
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *xr = x + r * d;
        const float *dyr = dy + r * d;
        float part[LANES] = {0};
        for (int64_t c = 0; c < d / LANES * LANES; c += LANES) {
            for (int64_t l = 0; l < LANES; l++)
                part[l] += dyr[c + l] * gain[c + l] * xr[c + l];
        }
        for (int64_t c = d / LANES * LANES; c < d; c++)
            part[c % LANES] += dyr[c] * gain[c] * xr[c];
        float sum = 0.0F;
        for (int64_t l = 0; l < LANES; l++)
            sum += part[l];
        const float s = rstd[r];
        const float back = sum * s * s / (float)d;
        for (int64_t c = 0; c < d; c++)
            dx[r * d + c] += s * (gain[c] * dyr[c] - xr[c] * back);
    }
}

void rope_table(float *table, int64_t n_positions, int64_t d, double theta)
{
    const int64_t half = d / 2;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < n_positions; p++) {
        for (int64_t c = 0; c < half; c++) {
            const double angle = (double)p * pow(theta, -2.0 * (double)c / (double)d);
            table[(p * 2 + 0) * half + c] = (float)cos(angle);
            table[(p * 2 + 1) * half + c] = (float)sin(angle);
        }
    }
}

void rope_rotate(const rope *r, float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int64_t rows,
                 int32_t n_heads)
{
    const int64_t half = r->d / 2;
    const float sign = r->backward ? -1.0F : 1.0F;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const float *cosine = r->table + (r->first + row % r->seqlen) * r->d;
        const float *sine = cosine + half;
        for (int32_t h = 0; h < n_heads; h++) {
            const float *x = src + row * ld_src + (int64_t)h * r->d;
            float *y = dst + row * ld_dst + (int64_t)h * r->d;
            if (r->add) {
                for (int64_t c = 0; c < half; c++) {
                    y[c] += x[c] * cosine[c] - sign * x[c + half] * sine[c];
                    y[c + half] += x[c + half] * cosine[c] + sign * x[c] * sine[c];
                }
            } else {
                for (int64_t c = 0; c < half; c++) {
                    y[c] = x[c] * cosine[c] - sign * x[c + half] * sine[c];
                    y[c + half] = x[c + half] * cosine[c] + sign * x[c] * sine[c];
                }
            }
        }
    }
}

void swiglu_forward(float *act, const float *pre, int64_t rows, int64_t d_ff)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = pre + r * 2 * d_ff;
        const float *b = a + d_ff;
        for (int64_t c = 0; c < d_ff; c++)
            act[r * d_ff + c] = a[c] * sigmoid(a[c]) * b[c];
    }
}

void swiglu_backward(float *dpre, const float *dact, const float *pre, int64_t rows, int64_t d_ff)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = pre + r * 2 * d_ff;
        const float *b = a + d_ff;
        float *da = dpre + r * 2 * d_ff;
        float *db = da + d_ff;
        for (int64_t c = 0; c < d_ff; c++) {
            const float s = sigmoid(a[c]);
            const float d = dact[r * d_ff + c];
            db[c] = d * a[c] * s;
            da[c] = d * b[c] * s * (1.0F + a[c] * (1.0F - s));
        }
    }
}

void bias_silu_forward(float *hidden, float *pre, const float *bias, int64_t rows, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < n; c++) {
            const float z = pre[r * n + c] + bias[c];
            pre[r * n + c] = z;
            hidden[r * n + c] = z * sigmoid(z);
        }
    }
}

void silu_backward(float *dpre, const float *dhidden, const float *pre, int64_t rows, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = r * n; c < r * n + n; c++) {
            const float s = sigmoid(pre[c]);
            dpre[c] = dhidden[c] * s * (1.0F + pre[c] * (1.0F - s));
        }
    }
}

void bias_sigmoid_forward(float *y, const float *bias, int64_t rows, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < n; c++)
            y[r * n + c] = sigmoid(y[r * n + c] + bias[c]);
    }
}

void sigmoid_backward(float *dy, const float *y, int64_t rows, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = r * n; c < r * n + n; c++)
            dy[c] *= y[c] * (1.0F - y[c]);
    }
}

void sum_rows(float *sum, const float *x, int64_t rows, int64_t n)
{
    const int64_t strips = (n + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(static)
    for (int64_t strip = 0; strip < strips; strip++) {
        const int64_t end = strip * COLUMNS + COLUMNS < n ? strip * COLUMNS + COLUMNS : n;
        for (int64_t c = strip * COLUMNS; c < end; c++)
            sum[c] = 0.0F;
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = strip * COLUMNS; c < end; c++)
                sum[c] += x[r * n + c];
        }
    }
}

static float cross_entropy_row(float *x, int64_t target, int64_t n, float grad_scale)
{
    float top = x[0];
    for (int64_t c = 1; c < n; c++)
        top = x[c] > top ? x[c] : top;
    const float target_logit = x[target] - top;
    float sum = 0.0F;
    for (int64_t c = 0; c < n; c++)
        x[c] = fast_exp(x[c] - top);
    for (int64_t c = 0; c < n; c++)
        sum += x[c];
    const float scale = grad_scale / sum;
    for (int64_t c = 0; c < n; c++)
        x[c] *= scale;
    x[target] -= grad_scale;
    return logf(sum) - target_logit;
}

void cross_entropy(float *loss, float *logits, const uint8_t *target, int64_t rows, int64_t n, float grad_scale)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        loss[r] = cross_entropy_row(logits + r * n, target[r], n, grad_scale);
}
