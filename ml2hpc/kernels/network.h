/* Jets of a dense network at a chunk of points: forward, reverse, tangent, tangent of the reverse pass, rows.

   A chunk is cut into strips of points. A strip goes through all layers while it is in the cache; its jets at a layer
   are a tile (width, jets, points of the strip), so a layer is one small product. Through y = sigma(z) a jet is a sum
   of terms: factor * sigma^(m)(z) * product of m jets of z (Faa di Bruno).

   Parameters here are "plain": W (out, in) and b (out) layer after layer; slopes are folded in by the caller. */

/* ---- one layer of one strip --------------------------------------------------------------------------------------- */

/* Where a hidden layer's jets are in what is kept of a strip. y, dy: only where the next layer adds its input. */
typedef struct {
    T *z, *more, *dz, *y, *dy;
} F(Kept);

INLINE long F(kept_size)(const Plan *plan, long k, int tangent)
{
    long jets = plan->jets * (1 + tangent) * (1 + plan->residual) + F(basis)((int)plan->activation) - 1;
    return plan->layer[k].outputs * jets;
}

INLINE F(Kept) F(kept)(const Plan *plan, long k, int tangent, T *state, long strip)
{
    F(Kept) at;
    long tile = plan->layer[k].outputs * plan->jets * strip;
    at.z = state;
    at.more = state + tile;
    at.dz = at.more + plan->layer[k].outputs * (F(basis)((int)plan->activation) - 1) * strip;
    at.y = at.dz + tangent * tile;
    at.dy = at.y + tile;
    return at;
}

/* How many rows a register block of a product takes from row i on: blocks of about equal height. */
INLINE long F(height)(long i, long rows)
{
    long blocks = (rows + ROWS - 1) / ROWS, block = (i * blocks + rows - 1) / rows;
    return (block + 1) * rows / blocks - i;
}

/* Ask for numbers that are needed soon: the state does not fit the second-level cache. */
INLINE void F(ask)(const T *from, long count)
{
    for (long i = 0; i < count; i += 64 / (long)sizeof(T))
        __builtin_prefetch(from + i);
}

INLINE void F(ask_to_write)(T *from, long count)
{
    for (long i = 0; i < count; i += 64 / (long)sizeof(T))
        __builtin_prefetch(from + i, 1);
}

/* row = below + step row, or step row: what follows a neuron whose layer has a step length of its own. */
INLINE void F(stride)(T step, T *row, const T *below, long width)
{
    for (long p = 0; p < width; p += LANES)
        *(V *)(row + p) = below ? *(const V *)(below + p) + step * *(V *)(row + p) : step * *(V *)(row + p);
}

/* Z = W Y + b, then what is kept of sigma, then Y of the next layer. With a tangent, dZ = W dY + dW Y + db too. */
static void F(layer_forward)(const Plan *plan, long k, const T *plain, const T *direction, const T *y, const T *dy,
                             F(Kept) at, T *y_next, T *dy_next, long strip)
{
    const Layer *layer = plan->layer + k;
    long width = plan->jets * strip, inner = layer->inputs, extra = F(basis)((int)plan->activation) - 1;
    const T *w = plain + layer->weight, *b = plain + layer->bias;
    const T *dw = direction ? direction + layer->weight - plan->start : 0;
    const T *db = direction ? direction + layer->bias - plan->start : 0;
    int whole = layer->residual && layer->step == 1.0, part = layer->residual && !whole;
    for (long i = 0, h; i < layer->outputs; i += h) {
        h = F(height)(i, layer->outputs);
        F(ask_to_write)(at.z + (i + h) * width, (i + h < layer->outputs ? h : 0) * width);
        F(multiply)(0, h, inner, width, w + i * inner, inner, 1, y, width, at.z + i * width, width);
        if (dy_next && dy)
            F(multiply)(0, h, inner, width, w + i * inner, inner, 1, dy, width, at.dz + i * width, width);
        else if (dy_next)
            memset(at.dz + i * width, 0, h * width * sizeof(T));
        if (dy_next && k < plan->last)
            F(multiply)(1, h, inner, width, dw + i * inner, inner, 1, y, width, at.dz + i * width, width);
        for (long r = i; r < i + h; r++) {
            T *z = at.z + r * width, *more = at.more + r * extra * strip;
            F(neuron_begin)(plan, b[r], z, more, strip);
            F(neuron)(plan, z, more, y_next + r * width, whole ? y + r * width : 0, strip);
            if (part)
                F(stride)((T)layer->step, y_next + r * width, y + r * width, width);
            if (dy_next) {
                T *dz = at.dz + r * width;
                for (long p = 0; p < strip && k < plan->last; p++)
                    dz[p] += db[r];
                F(neuron_tangent)(plan, z, more, dz, dy_next + r * width, whole && dy ? dy + r * width : 0, strip);
                if (part)
                    F(stride)((T)layer->step, dy_next + r * width, dy ? dy + r * width : 0, width);
            }
        }
    }
}

/* C (outputs, jets, strip) = W Y + b; or, where Y and dY are given, its tangent. */
static void F(output_layer)(const Plan *plan, const T *plain, const T *direction, const T *y, const T *dy, T *out,
                            long strip)
{
    const Layer *layer = plan->layer + plan->hidden;
    long width = plan->jets * strip, inner = layer->inputs;
    const T *w = plain + layer->weight, *b = plain + layer->bias;
    int varied = plan->hidden < plan->last;
    if (direction) {
        memset(out, 0, layer->outputs * width * sizeof(T));
        b = direction + layer->bias - plan->start;
    }
    for (long i = 0, h; i < layer->outputs; i += h) {
        h = F(height)(i, layer->outputs);
        if (!direction)
            F(multiply)(0, h, inner, width, w + i * inner, inner, 1, y, width, out + i * width, width);
        if (direction && dy)
            F(multiply)(1, h, inner, width, w + i * inner, inner, 1, dy, width, out + i * width, width);
        if (direction && varied)
            F(multiply)(1, h, inner, width, direction + layer->weight - plan->start + i * inner, inner, 1, y, width,
                        out + i * width, width);
        for (long r = i; r < i + h && (varied || !direction); r++)
            for (long p = 0; p < strip; p++)
                out[r * width + p] += b[r];
    }
}

/* Gradient of one layer: gW += gz H', gb += row sums of gz's value. */
static void F(layer_gradient)(const Plan *plan, long k, const T *gz, const T *h, T *gradient, int with_bias, long strip)
{
    const Layer *layer = plan->layer + k;
    long width = plan->jets * strip;
    F(outer_products)(layer->outputs, layer->inputs, width, gz, h, gradient + layer->weight - plan->start);
    for (long i = 0; i < layer->outputs && with_bias; i++) {
        V sum = {0};
        for (long p = 0; p < strip; p += LANES)
            sum += *(const V *)(gz + i * width + p);
        gradient[layer->bias - plan->start + i] += F(total)(sum);
    }
}

/* The same, point by point: rows (parameters, n) of which this strip writes columns 0..count-1. */
static void F(layer_rows)(const Plan *plan, long k, const T *gz, const T *h, T *rows, long n, long count, long strip)
{
    const Layer *layer = plan->layer + k;
    long width = plan->jets * strip;
    for (long i = 0; i < layer->outputs; i++) {
        T *bias = rows + (layer->bias - plan->start + i) * n;
        memcpy(bias, gz + i * width, count * sizeof(T));
        for (long l = 0; l < layer->inputs; l++) {
            T *weight = rows + (layer->weight - plan->start + i * layer->inputs + l) * n;
            for (long p = 0; p < count; p += LANES) {
                V sum = {0};
                for (long j = 0; j < width; j += strip)
                    sum += *(const V *)(gz + i * width + j + p) * *(const V *)(h + l * width + j + p);
                if (p + LANES <= count)
                    *(VU *)(weight + p) = sum;
                else
                    memcpy(weight + p, &sum, (count - p) * sizeof(T));
            }
        }
    }
}

/* Tiles of one thread. */
typedef struct {
    T *y[2], *dy[2], *g, *dg, *gz[2], *dgz[2], *h, *dh, *z, *end;
} F(Tiles);

INLINE long F(tile_size)(const Plan *plan)
{
    long widest = 0;
    for (long k = 0; k <= plan->hidden; k++) {
        widest = plan->layer[k].outputs > widest ? plan->layer[k].outputs : widest;
        widest = plan->layer[k].inputs > widest ? plan->layer[k].inputs : widest;
    }
    return widest * (plan->jets + 2) * plan->strip;
}

INLINE F(Tiles) F(tiles)(const Plan *plan, T *scratch)
{
    F(Tiles) t;
    long size = F(tile_size)(plan);
    T **all[] = {&t.y[0], &t.y[1], &t.gz[0], &t.gz[1], &t.h, &t.g, &t.z, &t.dy[0], &t.dy[1], &t.dgz[0], &t.dgz[1],
                 &t.dg, &t.dh, &t.end};
    for (unsigned long i = 0; i < sizeof all / sizeof *all; i++)
        *all[i] = scratch + (long)i * size;
    return t;
}

/* ---- one strip through the network -------------------------------------------------------------------------------- */

/* Carry a strip to the top hidden layer; return its jets there, and those of the tangent in *dy. */
static const T *F(strip_forward)(const Plan *plan, long stop, const T *plain, const T *direction, const T *y,
                                 const T **dy, T *state, const F(Tiles) *t, long strip)
{
    const T *tangent = 0;
    for (long k = plan->first; k < stop; k++) {
        F(Kept) at = F(kept)(plan, k, direction != 0, state ? state : t->z, strip);
        int in_state = state && plan->residual;
        T *next = in_state ? at.y : t->y[k & 1], *next_tangent = in_state ? at.dy : t->dy[k & 1];
        F(layer_forward)(plan, k, plain, direction, y, tangent, at, next, direction ? next_tangent : 0, strip);
        y = next;
        tangent = direction ? next_tangent : 0;
        if (state)
            state += F(kept_size)(plan, k, direction != 0) * strip;
    }
    if (dy)
        *dy = tangent;
    return y;
}

/* g = W' gz (+ g of the layer's output where it adds its input) for rows i..i+h-1 of what enters layer k. */
INLINE void F(pull)(const Plan *plan, long k, int add, const T *w, const T *gz, T *g, long i, long h, long width)
{
    const Layer *layer = plan->layer + k;
    F(multiply)(add, h, layer->outputs, width, w + i, 1, layer->inputs, gz, width, g + i * width, width);
}

/* `rows`: write point by point with row length `n`, else add to `gradient`. */
static void F(strip_reverse)(const Plan *plan, const T *plain, const T *entering, T *state, const T *cotangent,
                             T *gradient, T *rows, long n, long count, const F(Tiles) *t, long strip)
{
    long width = plan->jets * strip, extra = F(basis)((int)plan->activation) - 1;
    const T *gz = cotangent, *h = 0;
    for (long k = plan->first; k < plan->hidden; k++)
        state += F(kept_size)(plan, k, 0) * strip;
    for (long k = plan->hidden; k >= plan->first; k--) {
        const Layer *layer = plan->layer + k;
        if (k > plan->first) {
            state -= F(kept_size)(plan, k - 1, 0) * strip;
            F(Kept) at = F(kept)(plan, k - 1, 0, state, strip);
            T *next = t->gz[k & 1], *g = plan->residual ? t->g : next;
            int recomputed = k < plan->last && !plan->residual;
            for (long i = 0, rows_now; i < layer->inputs; i += rows_now) {
                rows_now = F(height)(i, layer->inputs);
                F(ask)(at.z + i * width, rows_now * width);
                F(pull)(plan, k, layer->residual != 0, plain + layer->weight, gz, g, i, rows_now, width);
                for (long r = i; r < i + rows_now; r++) {
                    const T *z = at.z + r * width, *more = at.more + r * extra * strip;
                    F(neuron_reverse)(plan, z, more, g + r * width, next + r * width, strip);
                    if (layer[-1].step != 1.0)
                        F(stride)((T)layer[-1].step, next + r * width, 0, width);
                    if (recomputed)
                        F(neuron)(plan, z, more, t->h + r * width, 0, strip);
                }
            }
            h = recomputed ? t->h : at.y;
            if (k < plan->last && rows)
                F(layer_rows)(plan, k, gz, h, rows, n, count, strip);
            else if (k < plan->last)
                F(layer_gradient)(plan, k, gz, h, gradient, 1, strip);
            gz = next;
        } else if (rows) {
            F(layer_rows)(plan, k, gz, entering, rows, n, count, strip);
        } else {
            F(layer_gradient)(plan, k, gz, entering, gradient, 1, strip);
        }
    }
}

/* The tangent of strip_reverse along `direction`. */
static void F(strip_reverse_tangent)(const Plan *plan, const T *plain, const T *direction, const T *entering, T *state,
                                     const T *cotangent, const T *change, T *gradient, const F(Tiles) *t, long strip)
{
    long width = plan->jets * strip, extra = F(basis)((int)plan->activation) - 1;
    const T *gz = cotangent, *dgz = change;
    for (long k = plan->first; k < plan->hidden; k++)
        state += F(kept_size)(plan, k, 1) * strip;
    for (long k = plan->hidden; k > plan->first; k--) {
        const Layer *layer = plan->layer + k;
        state -= F(kept_size)(plan, k - 1, 1) * strip;
        F(Kept) at = F(kept)(plan, k - 1, 1, state, strip);
        T *next = t->gz[k & 1], *next_change = t->dgz[k & 1];
        int recomputed = k < plan->last && !plan->residual;
        for (long i = 0, rows_now; i < layer->inputs; i += rows_now) {
            rows_now = F(height)(i, layer->inputs);
            F(pull)(plan, k, layer->residual != 0, plain + layer->weight, gz, t->g, i, rows_now, width);
            F(pull)(plan, k, layer->residual != 0, plain + layer->weight, dgz, t->dg, i, rows_now, width);
            if (k < plan->last)
                F(pull)(plan, k, 1, direction + layer->weight - plan->start, gz, t->dg, i, rows_now, width);
            for (long r = i; r < i + rows_now; r++) {
                const T *z = at.z + r * width, *more = at.more + r * extra * strip, *dz = at.dz + r * width;
                F(neuron_tangent_reverse)(plan, z, more, dz, t->g + r * width, t->dg + r * width, next + r * width,
                                          next_change + r * width, strip);
                if (layer[-1].step != 1.0) {
                    F(stride)((T)layer[-1].step, next + r * width, 0, width);
                    F(stride)((T)layer[-1].step, next_change + r * width, 0, width);
                }
                if (recomputed) {
                    F(neuron)(plan, z, more, t->h + r * width, 0, strip);
                    F(neuron_tangent)(plan, z, more, dz, t->dh + r * width, 0, strip);
                }
            }
        }
        if (k < plan->last) {
            F(layer_gradient)(plan, k, dgz, recomputed ? t->h : at.y, gradient, 1, strip);
            F(layer_gradient)(plan, k, gz, recomputed ? t->dh : at.dy, gradient, 0, strip);
        }
        gz = next;
        dgz = next_change;
    }
    F(layer_gradient)(plan, plan->first, dgz, entering, gradient, 1, strip);
}

/* ---- a chunk of points: what Python calls ------------------------------------------------------------------------- */

#define GROUPS 8 /* of strips, with a gradient each: the order of additions does not depend on the number of threads */

typedef struct {
    const Plan *plan;
    const T *plain, *direction, *entering, *cotangent, *change;
    long n, stop;
    T *state, *scratch, *out;
} F(Call);

/* Points of a strip come in multiples of this: whole register blocks in every product. */
INLINE long F(granule)(long jets)
{
    long a = jets, b = COLUMNS;
    while (b) {
        long rest = a % b;
        a = b;
        b = rest;
    }
    return LANES * (COLUMNS / a);
}

INLINE long F(round_up)(long n, long to)
{
    return (n + to - 1) / to * to;
}

INLINE long F(state_points)(const Plan *plan, int tangent)
{
    long size = 0;
    for (long k = plan->first; k < plan->hidden; k++)
        size += F(kept_size)(plan, k, tangent);
    return size;
}

INLINE long F(scratch_size)(const Plan *plan)
{
    return 13 * F(tile_size)(plan) + 3 * F(round_up)(plan->layer[plan->hidden].outputs * plan->jets * plan->strip, LANES);
}

/* The strip length that makes a tile about `bytes` large. */
long F(jets_strip)(const Plan *plan, long bytes)
{
    long widest = F(tile_size)(plan) / (plan->jets + 2) / plan->strip;
    long granule = F(granule)(plan->jets), strip = bytes / (long)sizeof(T) / (widest * plan->jets);
    return strip < granule ? granule : strip / granule * granule;
}

/* Numbers that n points take when packed as tiles with `rows` rows. */
long F(jets_packed)(const Plan *plan, long rows, long n)
{
    return rows * plan->jets * F(round_up)(n, F(granule)(plan->jets));
}

/* Numbers that `state` and `scratch` hold for n points. */
long F(jets_state)(const Plan *plan, long n, long tangent)
{
    return F(state_points)(plan, (int)tangent) * F(round_up)(n, F(granule)(plan->jets));
}

long F(jets_scratch)(const Plan *plan)
{
    long window = plan->stop - plan->start;
    return plan->threads * F(scratch_size)(plan) + GROUPS * F(round_up)(window, LANES);
}

/* One strip of a matrix (rows, jets, n), padded with zeros. */
static void F(pack_strip)(long rows, long jets, long n, long point, long strip, const T *from, T *to)
{
    long count = n - point < strip ? n - point : strip;
    for (long i = 0; i < rows * jets; i++) {
        memcpy(to + i * strip, from + i * n + point, count * sizeof(T));
        memset(to + i * strip + count, 0, (strip - count) * sizeof(T));
    }
}

static void F(unpack_strip)(long rows, long jets, long n, long point, long strip, const T *from, T *to)
{
    long count = n - point < strip ? n - point : strip;
    for (long i = 0; i < rows * jets; i++)
        memcpy(to + i * n + point, from + i * strip, count * sizeof(T));
}

/* Cut jets (rows, jets, n) into tiles. */
void F(jets_pack)(const Plan *plan, long rows, long n, const T *from, T *to)
{
    for (long point = 0; point < n; point += plan->strip) {
        long rest = F(round_up)(n - point, F(granule)(plan->jets)), strip = rest < plan->strip ? rest : plan->strip;
        F(pack_strip)(rows, plan->jets, n, point, strip, from, to + rows * plan->jets * point);
    }
}

INLINE long F(strips)(const F(Call) *call)
{
    return (call->n + call->plan->strip - 1) / call->plan->strip;
}

/* Where strip number q is. */
typedef struct {
    long point, length, count;
    const T *entering;
    T *state;
} F(Strip);

INLINE F(Strip) F(strip)(const F(Call) *call, long q, int tangent)
{
    const Plan *plan = call->plan;
    F(Strip) s;
    s.point = q * plan->strip;
    long rest = F(round_up)(call->n - s.point, F(granule)(plan->jets));
    s.length = rest < plan->strip ? rest : plan->strip;
    s.count = call->n - s.point < s.length ? call->n - s.point : s.length;
    s.entering = call->entering + plan->layer[plan->first].inputs * plan->jets * s.point;
    s.state = call->state ? call->state + F(state_points)(plan, tangent) * s.point : 0;
    return s;
}

INLINE T *F(tile_of_outputs)(const Plan *plan, const F(Tiles) *t, long which)
{
    return t->end + which * F(round_up)(plan->layer[plan->hidden].outputs * plan->jets * plan->strip, LANES);
}

INLINE T *F(gradient_of)(const F(Call) *call, long group)
{
    long window = F(round_up)(call->plan->stop - call->plan->start, LANES);
    return call->scratch + call->plan->threads * F(scratch_size)(call->plan) + group * window;
}

static void F(task_forward)(void *context, long group, long thread)
{
    const F(Call) *call = context;
    const Plan *plan = call->plan;
    F(Tiles) t = F(tiles)(plan, call->scratch + thread * F(scratch_size)(plan));
    long strips = F(strips)(call), outputs = plan->layer[plan->hidden].outputs;
    for (long q = group * strips / GROUPS; q < (group + 1) * strips / GROUPS; q++) {
        F(Strip) s = F(strip)(call, q, call->direction != 0);
        const T *dy = 0, *y = F(strip_forward)(plan, plan->hidden, call->plain, call->direction, s.entering, &dy,
                                               s.state, &t, s.length);
        T *out = F(tile_of_outputs)(plan, &t, 0);
        F(output_layer)(plan, call->plain, call->direction, y, dy, out, s.length);
        F(unpack_strip)(outputs, plan->jets, call->n, s.point, s.length, out, call->out);
    }
}

static void F(task_prefix)(void *context, long group, long thread)
{
    const F(Call) *call = context;
    const Plan *plan = call->plan;
    F(Tiles) t = F(tiles)(plan, call->scratch + thread * F(scratch_size)(plan));
    long strips = F(strips)(call), rows = plan->layer[call->stop - 1].outputs;
    for (long q = group * strips / GROUPS; q < (group + 1) * strips / GROUPS; q++) {
        F(Strip) s = F(strip)(call, q, 0);
        const T *y = F(strip_forward)(plan, call->stop, call->plain, 0, s.entering, 0, 0, &t, s.length);
        memcpy(call->out + rows * plan->jets * s.point, y, rows * plan->jets * s.length * sizeof(T));
    }
}

static void F(task_reverse)(void *context, long group, long thread)
{
    const F(Call) *call = context;
    const Plan *plan = call->plan;
    F(Tiles) t = F(tiles)(plan, call->scratch + thread * F(scratch_size)(plan));
    long strips = F(strips)(call), outputs = plan->layer[plan->hidden].outputs;
    T *gradient = F(gradient_of)(call, group), *tile = F(tile_of_outputs)(plan, &t, 0);
    memset(gradient, 0, (plan->stop - plan->start) * sizeof(T));
    for (long q = group * strips / GROUPS; q < (group + 1) * strips / GROUPS; q++) {
        F(Strip) s = F(strip)(call, q, call->change != 0);
        F(pack_strip)(outputs, plan->jets, call->n, s.point, s.length, call->cotangent, tile);
        if (call->change) {
            T *change = F(tile_of_outputs)(plan, &t, 1);
            F(pack_strip)(outputs, plan->jets, call->n, s.point, s.length, call->change, change);
            F(strip_reverse_tangent)(plan, call->plain, call->direction, s.entering, s.state, tile, change, gradient,
                                     &t, s.length);
        } else {
            F(strip_reverse)(plan, call->plain, s.entering, s.state, tile, gradient, 0, 0, 0, &t, s.length);
        }
    }
}

static void F(task_rows)(void *context, long group, long thread)
{
    const F(Call) *call = context;
    const Plan *plan = call->plan;
    F(Tiles) t = F(tiles)(plan, call->scratch + thread * F(scratch_size)(plan));
    long strips = F(strips)(call), outputs = plan->layer[plan->hidden].outputs;
    T *tile = F(tile_of_outputs)(plan, &t, 0);
    for (long q = group * strips / GROUPS; q < (group + 1) * strips / GROUPS; q++) {
        F(Strip) s = F(strip)(call, q, 0);
        F(pack_strip)(outputs, plan->jets, call->n, s.point, s.length, call->cotangent, tile);
        F(strip_reverse)(plan, call->plain, s.entering, s.state, tile, 0, call->out + s.point, call->n, s.count, &t,
                         s.length);
    }
}

/* Jets (outputs, jets, n). `state` is null where no reverse pass follows. `direction`: the tangent's jets instead. */
void F(jets_forward)(const Plan *plan, const T *plain, const T *direction, const T *entering, long n, T *state,
                     T *scratch, T *out)
{
    F(Call) call = {plan, plain, direction, entering, 0, 0, n, 0, state, scratch, out};
    ml2hpc_parallel((int)plan->threads, GROUPS, F(task_forward), &call);
}

/* Packed jets after hidden layer stop - 1. */
void F(jets_prefix)(const Plan *plan, const T *plain, const T *entering, long n, long stop, T *scratch, T *out)
{
    F(Call) call = {plan, plain, 0, entering, 0, 0, n, stop, 0, scratch, out};
    ml2hpc_parallel((int)plan->threads, GROUPS, F(task_prefix), &call);
}

/* Gradient of <cotangent, jets> over the window; with `direction` and `change`, its tangent. */
void F(jets_reverse)(const Plan *plan, const T *plain, const T *direction, const T *entering, long n, T *state,
                     T *scratch, const T *cotangent, const T *change, T *out)
{
    F(Call) call = {plan, plain, direction, entering, cotangent, change, n, 0, state, scratch, out};
    ml2hpc_parallel((int)plan->threads, GROUPS, F(task_reverse), &call);
    long window = plan->stop - plan->start;
    memcpy(out, F(gradient_of)(&call, 0), window * sizeof(T));
    for (long group = 1; group < GROUPS; group++) {
        const T *part = F(gradient_of)(&call, group);
        for (long i = 0; i < window; i++)
            out[i] += part[i];
    }
}

/* The gradient point by point, (window, n). */
void F(jets_rows)(const Plan *plan, const T *plain, const T *entering, long n, T *state, T *scratch,
                  const T *cotangent, T *out)
{
    F(Call) call = {plan, plain, 0, entering, cotangent, 0, n, 0, state, scratch, out};
    ml2hpc_parallel((int)plan->threads, GROUPS, F(task_rows), &call);
}
#undef GROUPS

/* ---- rows of neurons, for an engine that does its products elsewhere: the counterpart of the CUDA kernels --------- */

/* z (width, jets, n) + bias through sigma; n is whole vectors. `below` is added where given. */
void F(neurons_forward)(const Plan *plan, long width, const T *bias, T *z, T *more, T *y, const T *below, long n)
{
    long row = plan->jets * n, extra = (F(basis)((int)plan->activation) - 1) * n;
    for (long i = 0; i < width; i++) {
        F(neuron_begin)(plan, bias[i], z + i * row, more + i * extra, n);
        F(neuron)(plan, z + i * row, more + i * extra, y + i * row, below ? below + i * row : 0, n);
    }
}

void F(neurons_reverse)(const Plan *plan, long width, const T *z, const T *more, const T *g, T *gz, long n)
{
    long row = plan->jets * n, extra = (F(basis)((int)plan->activation) - 1) * n;
    for (long i = 0; i < width; i++)
        F(neuron_reverse)(plan, z + i * row, more + i * extra, g + i * row, gz + i * row, n);
}
