/* A matrix A of a few long rows, `n` numbers each without gaps, that no cache holds: each function reads it once. A
   number's order of additions follows from its place alone, so its bits depend on neither threads nor other rows. */

/* Rows at a time. They share the loads of x, y and out; 4, 8 and 16 rows take 0.64, 0.55 and 0.62 ms for 200 x 12951. */
#define TILE 8
/* Numbers of a row at a time, where threads share the columns: shorter pieces are too short for the prefetchers. */
#define PIECE 4096

typedef struct {
    const T *rows, *x, *y;
    T scale, *out;
    long count, n;
} F(Rows);

static inline __attribute__((always_inline)) void F(two_dots)(const F(Rows) *call, long i, const long rows)
{
    const long n = call->n, whole = n - n % LANES;
    const T *const a = call->rows + i * n, *const x = call->x, *const y = call->y;
    V with_x[TILE], with_y[TILE];
    for (long r = 0; r < rows; r++)
        with_x[r] = with_y[r] = (V){0};
    for (long j = 0; j < whole; j += LANES) {
        const V xj = *(const VU *)(x + j), yj = *(const VU *)(y + j);
        for (long r = 0; r < rows; r++) {
            const V aj = *(const VU *)(a + r * n + j);
            with_x[r] += aj * xj;
            with_y[r] += aj * yj;
        }
    }
    for (long r = 0; r < rows; r++) {
        T total_x = 0, total_y = 0;
        for (long k = 0; k < LANES; k++) {
            total_x += with_x[r][k];
            total_y += with_y[r][k];
        }
        for (long j = whole; j < n; j++) {
            total_x += a[r * n + j] * x[j];
            total_y += a[r * n + j] * y[j];
        }
        call->out[i + r] = total_x;
        call->out[call->count + i + r] = total_y;
    }
}

static void F(task_products)(void *context, long tile, long thread)
{
    const F(Rows) *call = context;
    (void)thread;
    long i = tile * TILE;
    if (i + TILE <= call->count)
        F(two_dots)(call, i, TILE);
    else
        for (; i < call->count; i++)
            F(two_dots)(call, i, 1);
}

/* out, (2, count): A x and A y. */
void F(rows_products)(const T *rows, long count, long n, const T *x, const T *y, T *out, int threads)
{
    F(Rows) call = {rows, x, y, 0, out, count, n};
    ml2hpc_parallel(threads, (count + TILE - 1) / TILE, F(task_products), &call);
}

static inline __attribute__((always_inline)) void F(add_rows)(const F(Rows) *call, long i, const long rows, long first,
                                                              long last)
{
    const long n = call->n;
    const T *const a = call->rows + i * n;
    T *const out = call->out;
    T weights[TILE]; /* out might overlap those of the caller, for all that a compiler knows */
    memcpy(weights, call->x + i, (size_t)rows * sizeof(T));
    long j = first;
    for (; j + LANES <= last; j += LANES) {
        V sum = *(VU *)(out + j);
        for (long r = 0; r < rows; r++)
            sum += weights[r] * *(const VU *)(a + r * n + j);
        *(VU *)(out + j) = sum;
    }
    for (; j < last; j++)
        for (long r = 0; r < rows; r++)
            out[j] += weights[r] * a[r * n + j];
}

static void F(task_combination)(void *context, long piece, long thread)
{
    const F(Rows) *call = context;
    (void)thread;
    const long first = piece * PIECE, last = first + PIECE < call->n ? first + PIECE : call->n;
    for (long j = first; j < last; j++)
        call->out[j] = call->scale * call->y[j];
    long i = 0;
    for (; i + TILE <= call->count; i += TILE)
        F(add_rows)(call, i, TILE, first, last);
    for (; i < call->count; i++)
        F(add_rows)(call, i, 1, first, last);
}

/* out, (n,): scale y + A' weights. */
void F(rows_combination)(const T *rows, long count, long n, const T *weights, double scale, const T *y, T *out,
                         int threads)
{
    F(Rows) call = {rows, weights, y, (T)scale, out, count, n};
    ml2hpc_parallel(threads, (n + PIECE - 1) / PIECE, F(task_combination), &call);
}
#undef TILE
#undef PIECE
