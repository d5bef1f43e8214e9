/* One neuron at some points: sigma and its derivatives, jets through it, and the way back.

   Compiled for vectors of a processor and, point by point, for CUDA: POINTS runs over the vectors of a row, or over the
   points of a thread. Planes of a row (value, first derivatives, ...) are `strip` numbers apart. */

#define MOST_JETS 70   /* all derivatives up to order 4 in 4 coordinates; problem/plan.py refuses more */
#define MOST_CURVED 16 /* jets of the path for order 2, as in problem/plan.py */
#define HIGHEST 7      /* sigma and its derivatives up to order 6 */

/* What is kept of sigma at z: enough to form every derivative without another exponential. */
INLINE long F(basis)(int activation)
{
    return activation == TANH ? 1 : activation == GELU ? 3 : 2;
}

INLINE void F(fill)(int activation, V z, V *kept)
{
    switch (activation) {
    case TANH: kept[0] = F(tangens_hyperbolicus)(z); break;
    case SINE: kept[0] = F(sine_and_cosine)(z, &kept[1]); break;
    case SILU:
        kept[0] = z;
        kept[1] = (T)1.0 / ((T)1.0 + F(exponential)(-z));
        break;
    default:
        kept[0] = z;
        kept[1] = F(normal)(z, &kept[2]);
    }
}

/* s[m] = sigma^(m) for m = 0..order, order <= 6. */
INLINE void F(derive)(int activation, int order, const V *kept, V *s)
{
    V one = F(splat)((T)1.0), y = kept[0];
    if (activation == TANH) {
        V q = y * y, d = one - q;
        s[0] = y;
        if (order > 0) s[1] = d;
        if (order > 1) s[2] = (T)-2.0 * y * d;
        if (order > 2) s[3] = d * ((T)4.0 - (T)6.0 * d);
        if (order > 3) s[4] = y * d * ((T)16.0 - (T)24.0 * q);
        if (order > 4) s[5] = d * ((T)16.0 + q * ((T)-120.0 + (T)120.0 * q));
        if (order > 5) s[6] = y * d * ((T)-272.0 + q * ((T)960.0 - (T)720.0 * q));
    } else if (activation == SINE) {
        for (int m = 0; m <= order; m++)
            s[m] = m % 4 == 0 ? kept[0] : m % 4 == 1 ? kept[1] : m % 4 == 2 ? -kept[0] : -kept[1];
    } else {
        V p[HIGHEST]; /* derivatives of the logistic function, or of the normal distribution */
        p[0] = kept[1];
        if (activation == SILU) {
            p[1] = p[0] * (one - p[0]);
            p[2] = p[1] * (one - (T)2.0 * p[0]);
            p[3] = p[1] * (one - (T)6.0 * p[1]);
            if (order > 3) p[4] = p[2] * (one - (T)12.0 * p[1]);
            if (order > 4) p[5] = p[3] * (one - (T)12.0 * p[1]) - (T)12.0 * p[2] * p[2];
            if (order > 5) p[6] = p[4] * (one - (T)12.0 * p[1]) - (T)36.0 * p[2] * p[3];
        } else {
            V q = y * y;
            p[1] = kept[2];
            p[2] = -y * p[1];
            p[3] = (q - (T)1.0) * p[1];
            if (order > 3) p[4] = y * ((T)3.0 - q) * p[1];
            if (order > 4) p[5] = (q * (q - (T)6.0) + (T)3.0) * p[1];
            if (order > 5) p[6] = -y * (q * (q - (T)10.0) + (T)15.0) * p[1];
        }
        s[0] = y * p[0];
        for (int m = 1; m <= order; m++)
            s[m] = y * p[m] + (T)m * p[m - 1];
    }
}

/* One neuron of one strip. `z` are its jets (jets, strip); after `neuron_forward` the value's plane holds kept[0]. */

/* Turn z into what is kept, in place. */
INLINE void F(neuron_fill)(int activation, T bias, T *z, T *more, long strip)
{
    long planes = F(basis)(activation);
    POINTS(p, strip) {
        V kept[3];
        F(fill)(activation, *(V *)(z + p) + bias, kept);
        *(V *)(z + p) = kept[0];
        for (long k = 1; k < planes; k++)
            *(V *)(more + (k - 1) * strip + p) = kept[k];
    }
}

INLINE void F(neuron_kept)(int activation, const T *z, const T *more, long strip, V *kept)
{
    kept[0] = *(const V *)z;
    for (long k = 1; k < F(basis)(activation); k++)
        kept[k] = *(const V *)(more + (k - 1) * strip);
}

/* The commonest set of jets: value, first derivatives, and last one operator of second ones without mixed derivatives,
   y_last = s1 z_last + s2 sum_j c_j z_j^2. Everything stays in registers. */
INLINE void F(neuron_diagonal)(int activation, long jets, const Plan *plan, const T *z, const T *more, T *y,
                               const T *below, long strip)
{
    POINTS(p, strip) {
        V kept[3], s[3], square = F(splat)((T)0.0);
        F(neuron_kept)(activation, z + p, more + p, strip, kept);
        F(derive)(activation, 2, kept, s);
        V value = s[0], last = s[1] * *(const V *)(z + (jets - 1) * strip + p);
        *(V *)(y + p) = below ? value + *(const V *)(below + p) : value;
        UNROLL
        for (long j = 1; j < jets - 1; j++) {
            V one = *(const V *)(z + j * strip + p), out = s[1] * one;
            square += (T)plan->diagonal[j] * one * one;
            *(V *)(y + j * strip + p) = below ? out + *(const V *)(below + j * strip + p) : out;
        }
        last += s[2] * square;
        long j = jets - 1;
        *(V *)(y + j * strip + p) = below ? last + *(const V *)(below + j * strip + p) : last;
    }
}

INLINE void F(neuron_diagonal_reverse)(int activation, long jets, const Plan *plan, const T *z, const T *more,
                                       const T *g, T *gz, long strip)
{
    POINTS(p, strip) {
        V kept[3], s[4], square = F(splat)((T)0.0);
        F(neuron_kept)(activation, z + p, more + p, strip, kept);
        F(derive)(activation, 3, kept, s);
        V last = *(const V *)(g + (jets - 1) * strip + p), bent = (T)2.0 * s[2] * last;
        V along = last * *(const V *)(z + (jets - 1) * strip + p), out = s[1] * *(const V *)(g + p);
        UNROLL
        for (long j = 1; j < jets - 1; j++) {
            V one = *(const V *)(z + j * strip + p), cotangent = *(const V *)(g + j * strip + p);
            V scaled = (T)plan->diagonal[j] * one;
            square += scaled * one;
            along += cotangent * one;
            *(V *)(gz + j * strip + p) = s[1] * cotangent + bent * scaled;
        }
        *(V *)(gz + p) = out + s[2] * along + s[3] * last * square;
        *(V *)(gz + (jets - 1) * strip + p) = s[1] * last;
    }
}

/* Order 2 at most: y_j = s1 z_j, and factor * s2 z_a z_b for each quadratic term. `y` gets the jets of sigma(z). */
INLINE void F(neuron_curved)(int activation, long jets, long quadratic, const Term *terms, const T *z, const T *more,
                             T *y, const T *below, long strip)
{
    POINTS(p, strip) {
        V kept[3], s[3] = {{0}}, jet[MOST_CURVED];
        F(neuron_kept)(activation, z + p, more + p, strip, kept);
        F(derive)(activation, quadratic ? 2 : 1, kept, s);
        jet[0] = s[0];
        for (long j = 1; j < jets; j++)
            jet[j] = s[1] * *(const V *)(z + j * strip + p);
        for (long t = 0; t < quadratic; t++)
            jet[terms[t].jet] += s[2] * ((T)terms[t].factor * *(const V *)(z + terms[t].of[0] * strip + p)
                                         * *(const V *)(z + terms[t].of[1] * strip + p));
        for (long j = 0; j < jets; j++)
            *(V *)(y + j * strip + p) = below ? jet[j] + *(const V *)(below + j * strip + p) : jet[j];
    }
}

/* Any order. */
INLINE void F(neuron_general)(int activation, const Plan *plan, const T *z, const T *more, T *y, const T *below,
                              long strip)
{
    POINTS(p, strip) {
        V kept[3], s[HIGHEST], jet[MOST_JETS];
        F(neuron_kept)(activation, z + p, more + p, strip, kept);
        F(derive)(activation, 4, kept, s);
        jet[0] = s[0];
        for (long j = 1; j < plan->jets; j++)
            jet[j] = s[1] * *(const V *)(z + j * strip + p);
        for (long t = 0; t < plan->terms; t++) {
            const Term *term = plan->term + t;
            V product = (T)term->factor * s[term->degree];
            for (long i = 0; i < term->degree; i++)
                product *= *(const V *)(z + term->of[i] * strip + p);
            jet[term->jet] += product;
        }
        for (long j = 0; j < plan->jets; j++)
            *(V *)(y + j * strip + p) = below ? jet[j] + *(const V *)(below + j * strip + p) : jet[j];
    }
}

/* Cotangents of z from those of y, `g`: gz = A(z)' g. May be in place. */
INLINE void F(neuron_curved_reverse)(int activation, long jets, long quadratic, const Term *terms, const T *z,
                                     const T *more, const T *g, T *gz, long strip)
{
    POINTS(p, strip) {
        V kept[3], s[4] = {{0}}, out[MOST_CURVED], along = {0}, square = {0};
        F(neuron_kept)(activation, z + p, more + p, strip, kept);
        F(derive)(activation, quadratic ? 3 : 2, kept, s);
        out[0] = s[1] * *(const V *)(g + p);
        for (long j = 1; j < jets; j++) {
            V one = *(const V *)(g + j * strip + p);
            along += one * *(const V *)(z + j * strip + p);
            out[j] = s[1] * one;
        }
        for (long t = 0; t < quadratic; t++) {
            long a = terms[t].of[0], b = terms[t].of[1];
            V left = *(const V *)(z + a * strip + p), right = *(const V *)(z + b * strip + p);
            V one = (T)terms[t].factor * *(const V *)(g + terms[t].jet * strip + p);
            square += one * left * right;
            one *= s[2];
            out[a] += one * right;
            out[b] += one * left;
        }
        out[0] += s[2] * along;
        if (quadratic)
            out[0] += s[3] * square;
        for (long j = 0; j < jets; j++)
            *(V *)(gz + j * strip + p) = out[j];
    }
}

INLINE void F(neuron_general_reverse)(int activation, const Plan *plan, const T *z, const T *more, const T *g, T *gz,
                                      long strip)
{
    POINTS(p, strip) {
        V kept[3], s[HIGHEST], out[MOST_JETS], along = {0};
        F(neuron_kept)(activation, z + p, more + p, strip, kept);
        F(derive)(activation, 5, kept, s);
        out[0] = s[1] * *(const V *)(g + p);
        for (long j = 1; j < plan->jets; j++) {
            V one = *(const V *)(g + j * strip + p);
            along += one * *(const V *)(z + j * strip + p);
            out[j] = s[1] * one;
        }
        out[0] += s[2] * along;
        for (long t = 0; t < plan->terms; t++) {
            const Term *term = plan->term + t;
            V before[5], after = F(splat)((T)1.0), one = (T)term->factor * *(const V *)(g + term->jet * strip + p);
            before[0] = after;
            for (long i = 0; i < term->degree; i++)
                before[i + 1] = before[i] * *(const V *)(z + term->of[i] * strip + p);
            out[0] += one * s[term->degree + 1] * before[term->degree];
            one *= s[term->degree];
            for (long i = term->degree - 1; i >= 0; i--) {
                out[term->of[i]] += one * before[i] * after;
                after *= *(const V *)(z + term->of[i] * strip + p);
            }
        }
        for (long j = 0; j < plan->jets; j++)
            *(V *)(gz + j * strip + p) = out[j];
    }
}

/* The tangent of neuron_general: dy = A(z) dz; and of its reverse: dgz = A(z)' dg + (dA)' g. `dz` is not in place. */
FUNCTION void F(neuron_tangent)(const Plan *plan, const T *z, const T *more, const T *dz, T *dy, const T *below,
                              long strip)
{
    int activation = (int)plan->activation;
    POINTS(p, strip) {
        V kept[3], s[HIGHEST], out[MOST_JETS], inner = *(const V *)(dz + p);
        F(neuron_kept)(activation, z + p, more + p, strip, kept);
        F(derive)(activation, 5, kept, s);
        out[0] = s[1] * inner;
        for (long j = 1; j < plan->jets; j++)
            out[j] = s[1] * *(const V *)(dz + j * strip + p) + s[2] * inner * *(const V *)(z + j * strip + p);
        for (long t = 0; t < plan->terms; t++) {
            const Term *term = plan->term + t;
            V product = F(splat)((T)term->factor), moved = {0};
            for (long i = 0; i < term->degree; i++) {
                V one = *(const V *)(z + term->of[i] * strip + p);
                moved = moved * one + product * *(const V *)(dz + term->of[i] * strip + p);
                product *= one;
            }
            out[term->jet] += s[term->degree] * moved + s[term->degree + 1] * inner * product;
        }
        for (long j = 0; j < plan->jets; j++)
            *(V *)(dy + j * strip + p) = below ? out[j] + *(const V *)(below + j * strip + p) : out[j];
    }
}

FUNCTION void F(neuron_tangent_reverse)(const Plan *plan, const T *z, const T *more, const T *dz, const T *g, const T *dg,
                                      T *gz, T *dgz, long strip)
{
    int activation = (int)plan->activation;
    POINTS(p, strip) {
        V kept[3], s[HIGHEST], out[MOST_JETS], moved[MOST_JETS], inner = *(const V *)(dz + p);
        V along = {0}, along_moved = {0};
        F(neuron_kept)(activation, z + p, more + p, strip, kept);
        F(derive)(activation, 6, kept, s);
        V value = *(const V *)(g + p);
        out[0] = s[1] * value;
        moved[0] = s[1] * *(const V *)(dg + p) + s[2] * inner * value;
        for (long j = 1; j < plan->jets; j++) {
            V one = *(const V *)(g + j * strip + p), change = *(const V *)(dg + j * strip + p);
            V jet = *(const V *)(z + j * strip + p);
            along += one * jet;
            along_moved += change * jet + one * *(const V *)(dz + j * strip + p);
            out[j] = s[1] * one;
            moved[j] = s[1] * change + s[2] * inner * one;
        }
        out[0] += s[2] * along;
        moved[0] += s[2] * along_moved + s[3] * inner * along;
        for (long t = 0; t < plan->terms; t++) {
            const Term *term = plan->term + t;
            long degree = term->degree;
            V before[5], before_moved[5], after = F(splat)((T)1.0), after_moved = {0};
            V one = (T)term->factor * *(const V *)(g + term->jet * strip + p);
            V change = (T)term->factor * *(const V *)(dg + term->jet * strip + p);
            before[0] = after;
            before_moved[0] = after_moved;
            for (long i = 0; i < degree; i++) {
                V jet = *(const V *)(z + term->of[i] * strip + p);
                before[i + 1] = before[i] * jet;
                before_moved[i + 1] = before_moved[i] * jet + before[i] * *(const V *)(dz + term->of[i] * strip + p);
            }
            V first = s[degree + 1], second = s[degree + 2] * inner;
            out[0] += one * first * before[degree];
            moved[0] += (change * first + one * second) * before[degree] + one * first * before_moved[degree];
            V scaled = one * s[degree], scaled_moved = change * s[degree] + one * first * inner;
            for (long i = degree - 1; i >= 0; i--) {
                V others = before[i] * after, others_moved = before_moved[i] * after + before[i] * after_moved;
                out[term->of[i]] += scaled * others;
                moved[term->of[i]] += scaled_moved * others + scaled * others_moved;
                V jet = *(const V *)(z + term->of[i] * strip + p);
                after_moved = after_moved * jet + after * *(const V *)(dz + term->of[i] * strip + p);
                after *= jet;
            }
        }
        for (long j = 0; j < plan->jets; j++) {
            *(V *)(gz + j * strip + p) = out[j];
            *(V *)(dgz + j * strip + p) = moved[j];
        }
    }
}

/* ---- one neuron, by activation and set of jets -------------------------------------------------------------------- */

#define BY_ACTIVATION(call)                                                                                            \
    switch (plan->activation) {                                                                                        \
    case TANH: call(TANH); break;                                                                                      \
    case SINE: call(SINE); break;                                                                                      \
    case SILU: call(SILU); break;                                                                                      \
    default: call(GELU);                                                                                               \
    }


FUNCTION void F(neuron)(const Plan *plan, const T *z, const T *more, T *y, const T *below, long strip)
{
#define CALL(act)                                                                                                      \
    switch (plan->kind) {                                                                                              \
    case DIAGONAL + 3: F(neuron_diagonal)(act, 3, plan, z, more, y, below, strip); break;                              \
    case DIAGONAL + 4: F(neuron_diagonal)(act, 4, plan, z, more, y, below, strip); break;                              \
    case DIAGONAL + 5: F(neuron_diagonal)(act, 5, plan, z, more, y, below, strip); break;                              \
    case CURVED: F(neuron_curved)(act, plan->jets, plan->terms, plan->term, z, more, y, below, strip); break;          \
    default: F(neuron_general)(act, plan, z, more, y, below, strip);                                                   \
    }
    BY_ACTIVATION(CALL)
#undef CALL
}

FUNCTION void F(neuron_reverse)(const Plan *plan, const T *z, const T *more, const T *g, T *gz, long strip)
{
#define CALL(act)                                                                                                      \
    switch (plan->kind) {                                                                                              \
    case DIAGONAL + 3: F(neuron_diagonal_reverse)(act, 3, plan, z, more, g, gz, strip); break;                         \
    case DIAGONAL + 4: F(neuron_diagonal_reverse)(act, 4, plan, z, more, g, gz, strip); break;                         \
    case DIAGONAL + 5: F(neuron_diagonal_reverse)(act, 5, plan, z, more, g, gz, strip); break;                         \
    case CURVED: F(neuron_curved_reverse)(act, plan->jets, plan->terms, plan->term, z, more, g, gz, strip); break;     \
    default: F(neuron_general_reverse)(act, plan, z, more, g, gz, strip);                                              \
    }
    BY_ACTIVATION(CALL)
#undef CALL
}

FUNCTION void F(neuron_begin)(const Plan *plan, T bias, T *z, T *more, long strip)
{
#define CALL(act) F(neuron_fill)(act, bias, z, more, strip)
    BY_ACTIVATION(CALL)
#undef CALL
}
