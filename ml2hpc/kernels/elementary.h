/* exp, tanh, sine with cosine, and the normal distribution, on vectors.

   Reductions and polynomials after Cody and Waite (1980) and Moshier's Cephes library of methods; errors below 3 units
   in the last place, of 1 for sine and cosine near their zeros but 0. Arguments that the reduction of sine cannot take
   go to libm, one by one. */

static inline V F(splat)(T x)
{
    return x - (V){0};
}

static inline V F(choose)(VI mask, V yes, V no)
{
    return (V)((mask & (VI)yes) | (~mask & (VI)no));
}

static inline V F(absolute)(V x)
{
    return (V)((VI)x & ~(VI)F(splat)((T)-0.0));
}

static inline V F(fma)(V a, V b, V c)
{
    return a * b + c; /* contracted where the processor has it */
}

static inline V F(clamp)(V x, T low, T high)
{
    x = F(choose)(x < low, F(splat)(low), x);
    return F(choose)(x > high, F(splat)(high), x); /* not-a-number stays */
}

/* The nearest integer, as a number and in the low bits of the returned integers. */
static inline V F(nearest)(V x, VI *bits)
{
    const T magic = IS_DOUBLE ? (T)6755399441055744.0 : (T)12582912.0; /* 1.5 * 2^52, 1.5 * 2^23 */
    V shifted = x + magic;
    *bits = (VI)shifted;
    return shifted - magic;
}

static inline V F(exponential)(V x)
{
    VI bits;
    x = IS_DOUBLE ? F(clamp)(x, (T)-708.0, (T)709.0) : F(clamp)(x, (T)-87.0, (T)88.0);
    V n = F(nearest)(x * (T)1.4426950408889634074, &bits);
    V r = F(fma)(n, F(splat)(IS_DOUBLE ? (T)-6.93145751953125e-1 : (T)-0.693359375), x);
    r = F(fma)(n, F(splat)(IS_DOUBLE ? (T)-1.42860682030941723212e-6 : (T)2.12194440e-4), r);
    V p;
    if (IS_DOUBLE) {
        p = F(splat)((T)(1.0 / 6227020800.0));
        p = F(fma)(p, r, F(splat)((T)(1.0 / 479001600.0)));
        p = F(fma)(p, r, F(splat)((T)(1.0 / 39916800.0)));
        p = F(fma)(p, r, F(splat)((T)(1.0 / 3628800.0)));
        p = F(fma)(p, r, F(splat)((T)(1.0 / 362880.0)));
        p = F(fma)(p, r, F(splat)((T)(1.0 / 40320.0)));
        p = F(fma)(p, r, F(splat)((T)(1.0 / 5040.0)));
    } else {
        p = F(splat)((T)(1.0 / 5040.0));
    }
    p = F(fma)(p, r, F(splat)((T)(1.0 / 720.0)));
    p = F(fma)(p, r, F(splat)((T)(1.0 / 120.0)));
    p = F(fma)(p, r, F(splat)((T)(1.0 / 24.0)));
    p = F(fma)(p, r, F(splat)((T)(1.0 / 6.0)));
    p = F(fma)(p, r, F(splat)((T)0.5));
    p = F(fma)(p, r, F(splat)((T)1.0));
    p = F(fma)(p, r, F(splat)((T)1.0));
    VI scale = (bits << (IS_DOUBLE ? 52 : 23)) + (VI)F(splat)((T)1.0);
    return p * (V)scale;
}

/* tanh a = e / (e + 2) with e = exp(2 a) - 1 = 2^n q + (2^n - 1), a >= 0: no cancellation anywhere, no branch. The
   polynomial of q = exp(r) - 1 over r is the Chebyshev approximation on |r| <= log(2) / 2. */
static inline V F(tangens_hyperbolicus)(V x)
{
    VI bits, sign = (VI)x & (VI)F(splat)((T)-0.0);
    V a = (T)2.0 * F(absolute)(x);
    a = F(choose)(a > (T)40.0, F(splat)((T)40.0), a);
    V n = F(nearest)(a * (T)1.4426950408889634074, &bits);
    V r = F(fma)(n, F(splat)(IS_DOUBLE ? (T)-6.93145751953125e-1 : (T)-0.693359375), a);
    r = F(fma)(n, F(splat)(IS_DOUBLE ? (T)-1.42860682030941723212e-6 : (T)2.12194440e-4), r);
    V q, z = r * r;
    if (IS_DOUBLE) { /* even and odd powers apart: two shorter chains */
        V even = F(fma)(z, F(splat)((T)2.5105217004720745164e-8), F(splat)((T)2.755725540020642443e-6));
        V odd = F(fma)(z, F(splat)((T)2.7626371065696356076e-7), F(splat)((T)2.4801504313785540166e-5));
        even = F(fma)(even, z, F(splat)((T)1.9841269874820625271e-4));
        odd = F(fma)(odd, z, F(splat)((T)1.3888888932514779355e-3));
        even = F(fma)(even, z, F(splat)((T)8.3333333333261351258e-3));
        odd = F(fma)(odd, z, F(splat)((T)4.1666666666573067732e-2));
        even = F(fma)(even, z, F(splat)((T)1.6666666666666670991e-1));
        odd = F(fma)(odd, z, F(splat)((T)0.50000000000000056225));
        q = F(fma)(even, z, F(splat)((T)1.0));
        q = F(fma)(odd, r, q) * r;
    } else {
        q = F(fma)(r, F(splat)((T)1.393364999630925043e-3), F(splat)((T)8.3691556676973967831e-3));
        q = F(fma)(q, r, F(splat)((T)4.1666464925285905408e-2));
        q = F(fma)(q, r, F(splat)((T)1.6666505195758111341e-1));
        q = F(fma)(q, r, F(splat)((T)0.50000000134658092001));
        q = F(fma)(q, z, r);
    }
    V power = (V)((bits << (IS_DOUBLE ? 52 : 23)) + (VI)F(splat)((T)1.0));
    V e = F(fma)(power, q, power - (T)1.0);
    return (V)((VI)(e / (e + (T)2.0)) | sign);
}

static inline V F(sine_and_cosine)(V x, V *cosine)
{
    VI bits, far = F(absolute)(x) > (IS_DOUBLE ? (T)1.0e6 : (T)4.0e3);
    V j = F(nearest)(x * (T)0.63661977236758134308, &bits);
    V r = F(fma)(j, F(splat)(IS_DOUBLE ? (T)-1.57079625129699707031 : (T)-1.5703125), x);
    r = F(fma)(j, F(splat)(IS_DOUBLE ? (T)-7.54978941586159635336e-8 : (T)-4.837512969970703125e-4), r);
    r = F(fma)(j, F(splat)(IS_DOUBLE ? (T)-5.39030285815811905290e-15 : (T)-7.54978995489188216e-8), r);
    V z = r * r, s, c;
    if (IS_DOUBLE) {
        s = F(fma)(z, F(splat)((T)1.58962301576546568060e-10), F(splat)((T)-2.50507477628578072866e-8));
        s = F(fma)(s, z, F(splat)((T)2.75573136213857245213e-6));
        s = F(fma)(s, z, F(splat)((T)-1.98412698295895385996e-4));
        s = F(fma)(s, z, F(splat)((T)8.33333333332211858878e-3));
        s = F(fma)(s, z, F(splat)((T)-1.66666666666666307295e-1));
        c = F(fma)(z, F(splat)((T)-1.13585365213876817300e-11), F(splat)((T)2.08757008419747316778e-9));
        c = F(fma)(c, z, F(splat)((T)-2.75573141792967388112e-7));
        c = F(fma)(c, z, F(splat)((T)2.48015872888517045348e-5));
        c = F(fma)(c, z, F(splat)((T)-1.38888888888730564116e-3));
        c = F(fma)(c, z, F(splat)((T)4.16666666666665929218e-2));
    } else {
        s = F(fma)(z, F(splat)((T)-1.9515295891e-4), F(splat)((T)8.3321608736e-3));
        s = F(fma)(s, z, F(splat)((T)-1.6666654611e-1));
        c = F(fma)(z, F(splat)((T)2.443315711809948e-5), F(splat)((T)-1.388731625493765e-3));
        c = F(fma)(c, z, F(splat)((T)4.166664568298827e-2));
    }
    s = F(fma)(r * z, s, r);
    c = F(fma)(z * z, c, (T)1.0 - (T)0.5 * z);
    VI odd = -(bits & 1), sign_of_sine = (bits & 2) << (8 * sizeof(T) - 2), sign_of_cosine = ((bits + 1) & 2)
                                                                                            << (8 * sizeof(T) - 2);
    V sine = (V)((VI)F(choose)(odd, c, s) ^ sign_of_sine);
    *cosine = (V)((VI)F(choose)(odd, s, c) ^ sign_of_cosine);
    for (long i = 0; i < LANES; i++)
        if (far[i]) {
            sine[i] = (T)sin((double)x[i]);
            (*cosine)[i] = (T)cos((double)x[i]);
        }
    return sine;
}

/* The distribution function of the standard normal law, and its density. */
static inline V F(normal)(V x, V *density)
{
    V distribution;
    for (long i = 0; i < LANES; i++)
        distribution[i] = (T)(0.5 * erfc(-0.70710678118654752440 * (double)x[i]));
    *density = (T)0.39894228040143267794 * F(exponential)((T)-0.5 * x * x);
    /* Zero where the exponential ends: powers of x as factors would bring what is left there back. */
    *density = F(choose)(F(absolute)(x) > (IS_DOUBLE ? (T)37.6 : (T)13.1), F(splat)((T)0.0), *density);
    return distribution;
}
