/* The small matrices of limited-memory BFGS in compact form, see snes/limited.py: R^-1 and Y'Y, m x m, and the diagonal
   sy of D. Orders of additions are fixed, so that ranks which hold the same numbers go on with the same bits. */

static inline T F(dot)(const T *a, const T *b, long n)
{
    const long whole = n - n % LANES;
    V sum = {0};
    for (long j = 0; j < whole; j += LANES)
        sum += *(const VU *)(a + j) * *(const VU *)(b + j);
    T total = 0;
    for (long k = 0; k < LANES; k++)
        total += sum[k];
    for (long j = whole; j < n; j++)
        total += a[j] * b[j];
    return total;
}

/* A new pair takes the place of another. `products`, (2, m): S'y and Y'y. */
void F(limited_learn)(T *inverse, T *yy, T *sy, long m, long place, const T *products)
{
    const T *const with_s = products, *const with_y = products + m;
    sy[place] = with_s[place];
    for (long i = 0; i < m; i++) {
        yy[place * m + i] = yy[i * m + place] = with_y[i];
        inverse[place * m + i] = inverse[i * m + place] = 0;
    }
    for (long i = 0; i < m; i++) /* a row reads its own column `place` only, which is still zero */
        inverse[i * m + place] = F(dot)(inverse + i * m, with_s, m) / -sy[place];
    inverse[place * m + place] = 1 / sy[place];
}

/* Return gamma, by the pair in place `last`, or 1 where that is negative. `products`, (2, m): S'g and Y'g; out, (3, m):
   p, -gamma q, and room for D R^-1 S'g + gamma (Y'Y R^-1 S'g - Y'g). */
double F(limited_weights)(const T *inverse, const T *yy, const T *sy, long m, long last, const T *products, T *out)
{
    const T *const with_s = products, *const with_y = products + m;
    T *const p = out, *const q = out + m, *const t = out + 2 * m;
    const T gamma = last < 0 ? 1 : sy[last] / yy[last * m + last];
    for (long i = 0; i < m; i++) {
        q[i] = F(dot)(inverse + i * m, with_s, m);
        t[i] = -with_y[i];
        p[i] = 0;
    }
    for (long j = 0; j < m; j++)
        for (long i = 0; i < m; i++)
            t[i] += q[j] * yy[j * m + i];
    for (long i = 0; i < m; i++) {
        t[i] = sy[i] * q[i] + gamma * t[i];
        q[i] *= -gamma;
    }
    for (long j = 0; j < m; j++)
        for (long i = 0; i < m; i++)
            p[i] += t[j] * inverse[j * m + i];
    return gamma;
}
