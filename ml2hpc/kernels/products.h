/* Small products of row-major matrices whose rows are whole vectors: register blocks of ROWS x COLUMNS vectors.

   A(i, l) is a[i * row + l * column], so the same code multiplies by a matrix and by its transpose. */

#define INLINE static inline __attribute__((always_inline))

/* rows x COLUMNS vectors of C = A B, or of C += A B. */
INLINE void F(block)(long rows, int add, const T *restrict a, long row, long column, long inner, const T *restrict b,
                     long b_row, T *restrict c, long c_row)
{
    V sum[ROWS][COLUMNS];
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < COLUMNS; j++)
            sum[i][j] = add ? *(const V *)(c + i * c_row + j * LANES) : (V){0};
    for (long l = 0; l < inner; l++) {
        V right[COLUMNS];
        for (long j = 0; j < COLUMNS; j++)
            right[j] = *(const V *)(b + l * b_row + j * LANES);
        for (long i = 0; i < rows; i++) {
            V left = F(splat)(a[i * row + l * column]);
            for (long j = 0; j < COLUMNS; j++)
                sum[i][j] += left * right[j];
        }
    }
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < COLUMNS; j++)
            *(V *)(c + i * c_row + j * LANES) = sum[i][j];
}

/* `rows` rows of C (rows, width) = A (rows, inner) B (inner, width), rows <= ROWS, width whole register blocks. */
INLINE void F(multiply)(int add, long rows, long inner, long width, const T *a, long row, long column, const T *b,
                        long b_row, T *c, long c_row)
{
    for (long p = 0; p < width; p += COLUMNS * LANES) {
        switch (rows) {
        case 1: F(block)(1, add, a, row, column, inner, b + p, b_row, c + p, c_row); break;
        case 2: F(block)(2, add, a, row, column, inner, b + p, b_row, c + p, c_row); break;
        case 3: F(block)(3, add, a, row, column, inner, b + p, b_row, c + p, c_row); break;
#if ROWS > 4
        case 4: F(block)(4, add, a, row, column, inner, b + p, b_row, c + p, c_row); break;
#endif
#if ROWS > 5
        case 5: F(block)(5, add, a, row, column, inner, b + p, b_row, c + p, c_row); break;
#endif
        default: F(block)(ROWS, add, a, row, column, inner, b + p, b_row, c + p, c_row);
        }
    }
}

#if VECTOR_BYTES > 16
typedef T F(half) __attribute__((vector_size(VECTOR_BYTES / 2)));
#if VECTOR_BYTES > 32
typedef T F(quarter) __attribute__((vector_size(VECTOR_BYTES / 4)));
#endif
#endif

/* The sum of a vector's numbers, halving it as long as it is longer than 16 bytes. */
INLINE T F(total)(V v)
{
    T sum = 0;
#if VECTOR_BYTES > 16
    union { V whole; F(half) part[2]; } a = {v};
    F(half) half = a.part[0] + a.part[1];
#if VECTOR_BYTES > 32
    union { F(half) whole; F(quarter) part[2]; } b = {half};
    F(quarter) last = b.part[0] + b.part[1];
#else
    F(half) last = half;
#endif
#else
    V last = v;
#endif
    for (unsigned long i = 0; i < 16 / sizeof(T); i++)
        sum += last[i];
    return sum;
}

/* rows x columns inner products of rows of g and h, added to c. */
INLINE void F(square)(long rows, long columns, const T *restrict g, const T *restrict h, long width, T *restrict c,
                      long c_row)
{
    V sum[SQUARE][SQUARE];
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++)
            sum[i][j] = (V){0};
    for (long p = 0; p < width; p += LANES) {
        V right[SQUARE];
        for (long j = 0; j < columns; j++)
            right[j] = *(const V *)(h + j * width + p);
        for (long i = 0; i < rows; i++) {
            V left = *(const V *)(g + i * width + p);
            for (long j = 0; j < columns; j++)
                sum[i][j] += left * right[j];
        }
    }
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++)
            c[i * c_row + j] += F(total)(sum[i][j]);
}

INLINE void F(squares)(long rows, long columns, const T *g, const T *h, long width, T *c, long c_row)
{
    switch (columns) {
    case 1: F(square)(rows, 1, g, h, width, c, c_row); break;
#if SQUARE > 2
    case 2: F(square)(rows, 2, g, h, width, c, c_row); break;
#endif
#if SQUARE > 3
    case 3: F(square)(rows, 3, g, h, width, c, c_row); break;
#endif
#if SQUARE > 4
    case 4: F(square)(rows, 4, g, h, width, c, c_row); break;
#endif
    default: F(square)(rows, SQUARE, g, h, width, c, c_row);
    }
}

/* C (n, m) += G (n, width) H (m, width)', cut into register blocks of about equal size. */
static void F(outer_products)(long n, long m, long width, const T *g, const T *h, T *c)
{
    long tall = (n + SQUARE - 1) / SQUARE, wide = (m + SQUARE - 1) / SQUARE;
    for (long s = 0; s < tall; s++)
        for (long t = 0; t < wide; t++) {
            long i = s * n / tall, j = t * m / wide, columns = (t + 1) * m / wide - j;
            const T *left = g + i * width, *right = h + j * width;
            T *out = c + i * m + j;
            switch ((s + 1) * n / tall - i) {
            case 1: F(squares)(1, columns, left, right, width, out, m); break;
#if SQUARE > 2
            case 2: F(squares)(2, columns, left, right, width, out, m); break;
#endif
#if SQUARE > 3
            case 3: F(squares)(3, columns, left, right, width, out, m); break;
#endif
#if SQUARE > 4
            case 4: F(squares)(4, columns, left, right, width, out, m); break;
#endif
            default: F(squares)(SQUARE, columns, left, right, width, out, m);
            }
        }
}
