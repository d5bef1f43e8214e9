/* One sweep over rows of the lower triangle of a symmetric matrix H, stored by rows `stride` numbers apart:

       H <- scale H + [u w] M [u w]',   M = (m11 m12; m12 m22),   and with the new H
       out_i += H_ij g_j for j <= i,   out_j += H_ij g_i for j < i.

   Each number is read once and written once. Vectors and rows start at whole vectors V and are padded to them; right of
   its diagonal a row's last vector is never used. */

/* Rows at a time. They share the loads of u, w, g and out; with more of them, their coefficients fill the first cache
   and their streams the prefetchers: 4, 8 and 16 rows take 34, 27 and 41 ms for 12951 rows. */
#define TILE 8

static inline __attribute__((always_inline)) void F(sweep_tile)(
    T *restrict H, long stride, long i, const long rows, const int updates, const T *restrict c, const T *restrict u,
    const T *restrict w, const T *restrict g, T *restrict out)
{
    V dots[TILE];
    T a[TILE], b[TILE];
    VI iota;
    for (long k = 0; k < LANES; k++)
        iota[k] = (INTEGER)k;
    for (long r = 0; r < rows; r++) {
        dots[r] = (V){0};
        if (updates) {
            a[r] = c[1] * u[i + r] + c[2] * w[i + r];
            b[r] = c[2] * u[i + r] + c[3] * w[i + r];
        }
    }
    const long whole = i - i % LANES; /* left of here no row meets its diagonal */
    for (long j = 0; j < whole; j += LANES) {
        const V gj = *(const V *)(g + j);
        V sum = *(V *)(out + j);
        for (long r = 0; r < rows; r++) {
            V *const at = (V *)(H + r * stride + j);
            V h = *at;
            if (updates)
                *at = h = c[0] * h + a[r] * *(const V *)(u + j) + b[r] * *(const V *)(w + j);
            dots[r] += h * gj;
            sum += h * g[i + r];
        }
        *(V *)(out + j) = sum;
    }
    for (long j = whole; j < i + rows; j += LANES) {
        const V gj = *(const V *)(g + j);
        V sum = *(V *)(out + j);
        for (long r = 0; r < rows; r++) {
            const VI column = iota + (INTEGER)j, row = (VI){0} + (INTEGER)(i + r);
            V *const at = (V *)(H + r * stride + j);
            V h = *at;
            if (updates)
                h = c[0] * h + a[r] * *(const V *)(u + j) + b[r] * *(const V *)(w + j);
            h = (V)((VI)h & (column <= row));
            if (updates)
                *at = h;
            dots[r] += h * gj;
            sum += (V)((VI)h & (column < row)) * g[i + r];
        }
        *(V *)(out + j) = sum;
    }
    for (long r = 0; r < rows; r++) {
        T total = 0;
        for (long k = 0; k < LANES; k++)
            total += dots[r][k];
        out[i + r] += total;
    }
}

/* Rows first..last-1, where H points at row `first`. `coefficients` are scale, m11, m12, m22, or NULL to leave H as it
   is. `out` starts `shift` numbers behind an array of `n` numbers, all of which are overwritten. */
void F(sweep)(T *H, long stride, long first, long last, const T *coefficients, const T *u, const T *w, const T *g,
              T *array, long shift, long n)
{
    memset(array, 0, (size_t)n * sizeof(T));
    T *const out = array + shift;
    long i = first;
    if (coefficients) {
        const T c[4] = {coefficients[0], coefficients[1], coefficients[2], coefficients[3]};
        for (; i + TILE <= last; i += TILE)
            F(sweep_tile)(H + (i - first) * stride, stride, i, TILE, 1, c, u, w, g, out);
        for (; i < last; i++)
            F(sweep_tile)(H + (i - first) * stride, stride, i, 1, 1, c, u, w, g, out);
    } else {
        for (; i + TILE <= last; i += TILE)
            F(sweep_tile)(H + (i - first) * stride, stride, i, TILE, 0, 0, u, w, g, out);
        for (; i < last; i++)
            F(sweep_tile)(H + (i - first) * stride, stride, i, 1, 0, 0, u, w, g, out);
    }
}

/* The least that a sweep can cost: h <- factor h over the same rows. */
void F(scale_rows)(T *H, long stride, long first, long last, T factor)
{
    for (long i = first; i < last; i++)
        for (long j = 0; j <= i; j += LANES)
            *(V *)(H + (i - first) * stride + j) *= factor;
}
#undef TILE
