/* One sweep through the blocks of a residual network and back: a loss, and its gradient in all weights.

       forward   y <- y + dt sigma(K y + b)                                                     forward Euler
                 z <- z - dt sigma(K' y + b),  y <- y + dt sigma(K z + b)                       Verlet
       loss      of the logits of the last y
       back      u = dt sigma'(.) p,  dK += u y',  db += u 1,  p <- p + K' u                    forward Euler

   Samples are the lanes of vectors. A block of samples goes through all blocks of the network and back while it is in the
   cache; every `checkpoint` blocks its state is kept, and what lies between is computed again on the way back: keeping
   everything is bound by memory. Each block of samples has its own sums, added in the order of the blocks, so the
   result has the same bits for any number of threads. */

#ifndef SWEEP
#define SWEEP
enum { SWEEP_TANH, SWEEP_RELU, SWEEP_IDENTITY };
enum { SWEEP_CROSS_ENTROPY, SWEEP_LEAST_SQUARES };

typedef struct {
    int64_t width, classes, blocks;      /* of the network */
    int64_t verlet, activation, loss;
    int64_t first, last, head;           /* blocks from `first` on are passed; gradients of first..last-1 and of the head */
    int64_t samples, strip, checkpoint;  /* whole register blocks of samples; how many go together */
    int64_t threads;
    double step;
} SweepPlan;
#endif

INLINE V F(sweep_sigma)(const int act, V z)
{
    if (act == SWEEP_TANH)
        return F(tangens_hyperbolicus)(z);
    if (act == SWEEP_RELU)
        return F(choose)(z < (T)0.0, F(splat)((T)0.0), z); /* not-a-number stays */
    return z;
}

/* factor sigma'(z) p from t = sigma(z). */
INLINE V F(sweep_slope)(const int act, V t, V p, T factor)
{
    if (act == SWEEP_TANH)
        return ((T)1.0 - t * t) * (factor * p);
    if (act == SWEEP_RELU)
        return F(choose)(t > (T)0.0, factor * p, F(splat)((T)0.0));
    return factor * p;
}

/* C (n, strip) = A B, or C += A B, where A(i, l) is a[i * row + l * column]. */
static void F(sweep_product)(int add, long n, long inner, long strip, const T *a, long row, long column, const T *b, T *c)
{
    const long groups = (n + ROWS - 1) / ROWS;
    for (long k = 0; k < groups; k++) {
        const long i = k * n / groups;
        F(multiply)(add, (k + 1) * n / groups - i, inner, strip, a + i * row, row, column, b, strip, c + i * strip, strip);
    }
}

/* t = sigma(t + b), to = from + factor t. */
INLINE void F(sweep_advance_by)(const int act, long n, long strip, const T *b, T factor, T *restrict t, const T *from,
                                T *to)
{
    for (long i = 0; i < n; i++)
        for (long s = i * strip; s < (i + 1) * strip; s += LANES) {
            const V value = F(sweep_sigma)(act, *(const V *)(t + s) + b[i]);
            *(V *)(t + s) = value;
            *(V *)(to + s) = *(const V *)(from + s) + factor * value;
        }
}

static void F(sweep_advance)(const SweepPlan *plan, long strip, const T *b, T factor, T *t, const T *from, T *to)
{
    switch (plan->activation) {
    case SWEEP_TANH: F(sweep_advance_by)(SWEEP_TANH, plan->width, strip, b, factor, t, from, to); break;
    case SWEEP_RELU: F(sweep_advance_by)(SWEEP_RELU, plan->width, strip, b, factor, t, from, to); break;
    default: F(sweep_advance_by)(SWEEP_IDENTITY, plan->width, strip, b, factor, t, from, to);
    }
}

/* u = factor sigma'(.) p, and the sums of its rows added to db unless that is NULL. */
INLINE void F(sweep_pull_by)(const int act, long n, long strip, T factor, const T *t, const T *p, T *restrict u, T *db)
{
    for (long i = 0; i < n; i++) {
        V sum = {0};
        for (long s = i * strip; s < (i + 1) * strip; s += LANES) {
            const V value = F(sweep_slope)(act, *(const V *)(t + s), *(const V *)(p + s), factor);
            *(V *)(u + s) = value;
            sum += value;
        }
        if (db)
            db[i] += F(total)(sum);
    }
}

static void F(sweep_pull)(const SweepPlan *plan, long strip, T factor, const T *t, const T *p, T *u, T *db)
{
    switch (plan->activation) {
    case SWEEP_TANH: F(sweep_pull_by)(SWEEP_TANH, plan->width, strip, factor, t, p, u, db); break;
    case SWEEP_RELU: F(sweep_pull_by)(SWEEP_RELU, plan->width, strip, factor, t, p, u, db); break;
    default: F(sweep_pull_by)(SWEEP_IDENTITY, plan->width, strip, factor, t, p, u, db);
    }
}

/* Networks of at most NARROW neurons, by Euler: weights, states and sums stay in registers. */
#define NARROW 4

INLINE void F(narrow_step)(const int n, const int act, long strip, const T *theta, T step, const T *from, T *to, T *tape)
{
    for (long s = 0; s < strip; s += LANES) {
        V a[NARROW];
        for (int i = 0; i < n; i++)
            a[i] = *(const V *)(from + i * strip + s);
        for (int i = 0; i < n; i++) {
            V z = theta[n * n + i] + theta[i * n] * a[0];
            for (int j = 1; j < n; j++)
                z += theta[i * n + j] * a[j];
            z = F(sweep_sigma)(act, z);
            if (tape)
                *(V *)(tape + i * strip + s) = z;
            *(V *)(to + i * strip + s) = a[i] + step * z;
        }
    }
}

INLINE void F(narrow_back)(const int n, const int act, long strip, const T *theta, T step, const T *y, const T *tape,
                           T *p, T *gradient)
{
    V dk[NARROW * NARROW], db[NARROW];
    for (int i = 0; i < n; i++)
        db[i] = (V){0};
    for (int i = 0; i < n * n; i++)
        dk[i] = (V){0};
    for (long s = 0; s < strip; s += LANES) {
        V a[NARROW], q[NARROW], u[NARROW];
        for (int i = 0; i < n; i++) {
            a[i] = *(const V *)(y + i * strip + s);
            q[i] = *(const V *)(p + i * strip + s);
            u[i] = F(sweep_slope)(act, *(const V *)(tape + i * strip + s), q[i], step);
        }
        for (int i = 0; i < n; i++) {
            db[i] += u[i];
            for (int j = 0; j < n; j++) {
                dk[i * n + j] += u[i] * a[j];
                q[j] += u[i] * theta[i * n + j];
            }
        }
        for (int i = 0; i < n; i++)
            *(V *)(p + i * strip + s) = q[i];
    }
    if (!gradient)
        return;
    for (int i = 0; i < n * n; i++)
        gradient[i] += F(total)(dk[i]);
    for (int i = 0; i < n; i++)
        gradient[n * n + i] += F(total)(db[i]);
}

#define BY_WIDTH(call, act)                                                                                            \
    switch (plan->width) {                                                                                             \
    case 1: call(1, act); return;                                                                                      \
    case 2: call(2, act); return;                                                                                      \
    case 3: call(3, act); return;                                                                                      \
    default: call(4, act); return;                                                                                     \
    }
#define NARROWLY(call)                                                                                                 \
    if (!plan->verlet && plan->width <= NARROW)                                                                        \
        switch (plan->activation) {                                                                                    \
        case SWEEP_TANH: BY_WIDTH(call, SWEEP_TANH)                                                                    \
        case SWEEP_RELU: BY_WIDTH(call, SWEEP_RELU)                                                                    \
        default: BY_WIDTH(call, SWEEP_IDENTITY)                                                                        \
        }

/* One block of the network from a state to the next, which may be the same place; sigma goes to `tape` if it is kept,
   or if there is no other place for it. */
static void F(sweep_step)(const SweepPlan *plan, long strip, const T *theta, const T *from, T *to, T *tape, int keep)
{
    const long n = plan->width, z = n * strip;
    const T step = (T)plan->step;
#define CALL(width, act) F(narrow_step)(width, act, strip, theta, step, from, to, keep ? tape : 0)
    NARROWLY(CALL)
#undef CALL
    if (plan->verlet) {
        F(sweep_product)(0, n, n, strip, theta, 1, n, from, tape);
        F(sweep_advance)(plan, strip, theta + n * n, -step, tape, from + z, to + z);
        F(sweep_product)(0, n, n, strip, theta, n, 1, to + z, tape + z);
        F(sweep_advance)(plan, strip, theta + n * n, step, tape + z, from, to);
        return;
    }
    F(sweep_product)(0, n, n, strip, theta, n, 1, from, tape);
    F(sweep_advance)(plan, strip, theta + n * n, step, tape, from, to);
}

/* The reverse of a block: `y` is the state before it, `next` after it, p the derivative in the state, u scratch. */
static void F(sweep_back)(const SweepPlan *plan, long strip, const T *theta, const T *y, const T *next, const T *tape,
                          T *p, T *u, T *gradient)
{
    const long n = plan->width, z = n * strip;
    const T step = (T)plan->step;
#define CALL(width, act) F(narrow_back)(width, act, strip, theta, step, y, tape, p, gradient)
    NARROWLY(CALL)
#undef CALL
    T *const db = gradient ? gradient + n * n : 0;
    if (plan->verlet) {
        F(sweep_pull)(plan, strip, step, tape + z, p, u, db);
        if (gradient)
            F(outer_products)(n, n, strip, u, next + z, gradient);
        F(sweep_product)(1, n, n, strip, theta, 1, n, u, p + z);
        F(sweep_pull)(plan, strip, -step, tape, p + z, u, db);
        if (gradient)
            F(outer_products)(n, n, strip, y, u, gradient);
        F(sweep_product)(1, n, n, strip, theta, n, 1, u, p);
        return;
    }
    F(sweep_pull)(plan, strip, step, tape, p, u, db);
    if (gradient)
        F(outer_products)(n, n, strip, u, y, gradient);
    F(sweep_product)(1, n, n, strip, theta, 1, n, u, p);
}

/* Loss and number of correct samples are added to sums; z, the logits, becomes the loss's derivative in them. A sample
   is correct if its class's logit is above all others; samples of weight zero are there to fill a vector. */
static void F(sweep_loss)(const SweepPlan *plan, long strip, const T *targets, long row, const T *weight, T *z, T *sums)
{
    const long m = plan->classes;
    V loss = {0}, correct = {0};
    for (long s = 0; s < strip; s += LANES) {
        const V w = *(const VU *)(weight + s);
        V highest = F(splat)((T)-INFINITY), other = highest, own = {0}, sum = {0}, squares = {0};
        for (long a = 0; a < m; a++) {
            const V value = *(V *)(z + a * strip + s), t = *(const VU *)(targets + a * row + s);
            highest = F(choose)(value > highest, value, highest);
            other = F(choose)((value > other) & (t == (T)0.0), value, other);
            own += t * value;
        }
        correct += F(choose)((own > other) & (w > (T)0.0), F(splat)((T)1.0), F(splat)((T)0.0));
        if (plan->loss == SWEEP_LEAST_SQUARES) {
            for (long a = 0; a < m; a++) {
                V *const at = (V *)(z + a * strip + s);
                const V difference = *at - *(const VU *)(targets + a * row + s);
                squares += difference * difference;
                *at = w * difference;
            }
            loss += (T)0.5 * w * squares;
            continue;
        }
        for (long a = 0; a < m; a++) {
            V *const at = (V *)(z + a * strip + s);
            *at = F(exponential)(*at - highest);
            sum += *at;
        }
        V logarithm;
        for (long k = 0; k < LANES; k++)
            logarithm[k] = (T)log((double)sum[k]);
        loss += w * (highest + logarithm - own);
        const V share = w / sum;
        for (long a = 0; a < m; a++) {
            V *const at = (V *)(z + a * strip + s);
            *at = *at * share - w * *(const VU *)(targets + a * row + s);
        }
    }
    sums[0] += F(total)(loss);
    sums[1] += F(total)(correct);
}

/* Samples that make a whole register block of products. */
long F(sweep_quantum)(void)
{
    return COLUMNS * LANES;
}

static long F(sweep_state)(const SweepPlan *plan)
{
    return (plan->verlet ? 2 : 1) * plan->width * plan->strip;
}

/* Numbers of memory that a thread works in. */
long F(sweep_scratch)(const SweepPlan *plan)
{
    const long segments = (plan->blocks + plan->checkpoint - 1) / plan->checkpoint;
    const long states = segments + 2 * plan->checkpoint + 4; /* checkpoints; states and sigma of a segment; current, p, u */
    return states * F(sweep_state)(plan) + plan->classes * plan->strip;
}

typedef struct {
    const SweepPlan *plan;
    const T *theta, *head, *y, *targets, *weight;
    T *scratch, *sums, *gy, *logits, *end;
    long length; /* of a row of sums: gradient, loss, number of correct samples */
    int back;
    T *out;
    long tasks;
} F(SweepCall);

static void F(sweep_task)(void *context, long number, long thread)
{
    const F(SweepCall) *const call = context;
    const SweepPlan *const plan = call->plan;
    const long n = plan->width, m = plan->classes, row = n * n + n, start = number * plan->strip;
    const long strip = plan->samples - start < plan->strip ? plan->samples - start : plan->strip;
    const long state = F(sweep_state)(plan), every = plan->checkpoint, count = plan->blocks - plan->first;
    const long rows = (plan->verlet ? 2 : 1) * n;
    T *const checkpoints = call->scratch + thread * F(sweep_scratch)(plan);
    T *const states = checkpoints + (plan->blocks + every - 1) / every * state;
    T *const tape = states + (every + 1) * state;
    T *const y = tape + every * state, *const p = y + state, *const u = p + state, *const z = u + state;
    T *const sums = call->sums + number * call->length;
    const T *const theta = call->theta + plan->first * row;
    memset(sums, 0, (size_t)call->length * sizeof(T));
    for (long i = 0; i < rows; i++)
        memcpy(y + i * strip, call->y + i * plan->samples + start, (size_t)strip * sizeof(T));
    for (long k = 0; k < count; k++) {
        if (call->back && k % every == 0)
            memcpy(checkpoints + k / every * state, y, (size_t)(rows * strip) * sizeof(T));
        F(sweep_step)(plan, strip, theta + k * row, y, y, tape, 0);
    }
    if (call->end) {
        for (long i = 0; i < rows; i++)
            memcpy(call->end + i * plan->samples + start, y + i * strip, (size_t)strip * sizeof(T));
        return;
    }
    for (long a = 0; a < m; a++)
        for (long s = 0; s < strip; s += LANES)
            *(V *)(z + a * strip + s) = F(splat)(call->head[m * n + a]);
    F(sweep_product)(1, m, n, strip, call->head, n, 1, y, z);
    if (call->logits)
        for (long a = 0; a < m; a++)
            memcpy(call->logits + a * plan->samples + start, z + a * strip, (size_t)strip * sizeof(T));
    F(sweep_loss)(plan, strip, call->targets + start, plan->samples, call->weight + start, z, sums + call->length - 2);
    if (!call->back)
        return;
    if (plan->head) {
        T *const at = sums + (plan->last - plan->first) * row;
        F(outer_products)(m, n, strip, z, y, at);
        for (long a = 0; a < m; a++) {
            V sum = {0};
            for (long s = 0; s < strip; s += LANES)
                sum += *(V *)(z + a * strip + s);
            at[m * n + a] += F(total)(sum);
        }
    }
    if (!call->gy && plan->last == plan->first)
        return;
    memset(p, 0, (size_t)(rows * strip) * sizeof(T));
    F(sweep_product)(1, n, m, strip, call->head, 1, n, z, p);
    for (long segment = (count + every - 1) / every - 1; segment >= 0; segment--) {
        const long low = segment * every, high = low + every < count ? low + every : count;
        memcpy(states, checkpoints + segment * state, (size_t)(rows * strip) * sizeof(T));
        for (long k = low; k < high; k++)
            F(sweep_step)(plan, strip, theta + k * row, states + (k - low) * state, states + (k - low + 1) * state,
                          tape + (k - low) * state, 1);
        for (long k = high - 1; k >= low; k--)
            F(sweep_back)(plan, strip, theta + k * row, states + (k - low) * state, states + (k - low + 1) * state,
                          tape + (k - low) * state, p, u, k < plan->last - plan->first ? sums + k * row : 0);
    }
    if (call->gy)
        for (long i = 0; i < n; i++)
            memcpy(call->gy + i * plan->samples + start, p + i * strip, (size_t)strip * sizeof(T));
}

/* A part of the rows' sum, in the order of the rows. */
#define SWEEP_PART 4096
static void F(sweep_add)(void *context, long number, long thread)
{
    const F(SweepCall) *const call = context;
    const long start = number * SWEEP_PART;
    const long stop = start + SWEEP_PART < call->length ? start + SWEEP_PART : call->length;
    (void)thread;
    memcpy(call->out + start, call->sums + start, (size_t)(stop - start) * sizeof(T));
    for (long k = 1; k < call->tasks; k++)
        for (long i = start; i < stop; i++)
            call->out[i] += call->sums[k * call->length + i];
}

/* `theta` are all blocks' rows (K, b), `head` the classification layer's matrix and bias, y (width or 2 width, samples)
   what enters block `first`. With `back`, out is the gradient of the blocks first..last-1 and of the head, then loss
   and number of correct samples; without, the last two. gy (width, samples) and logits (classes, samples) may be NULL;
   so may `end`, which asks for no more than the last state, shaped as y.
   `sums` holds a row as long as out for each strip; scratch is aligned to vectors, as is each row of y. */
void F(sweep_network)(const SweepPlan *plan, const T *theta, const T *head, const T *y, const T *targets,
                      const T *weight, T *scratch, T *sums, int back, T *gy, T *logits, T *end, T *out)
{
    const long n = plan->width, m = plan->classes, tasks = (plan->samples + plan->strip - 1) / plan->strip;
    long length = 2;
    if (back)
        length += (plan->last - plan->first) * (n * n + n) + (plan->head ? m * n + m : 0);
    F(SweepCall) call = {plan, theta, head, y, targets, weight, scratch, sums, gy, logits, end, length, back, out, tasks};
    ml2hpc_parallel((int)plan->threads, tasks, F(sweep_task), &call);
    if (!end)
        ml2hpc_parallel((int)plan->threads, (length + SWEEP_PART - 1) / SWEEP_PART, F(sweep_add), &call);
}
#undef SWEEP_PART
#undef NARROW
#undef NARROWLY
#undef BY_WIDTH
