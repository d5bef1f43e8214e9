/* The network as Python describes it; the same structures are in problem/plan.py. Read by C and by CUDA. */
enum { TANH, SINE, SILU, GELU };

/* Sets of jets: any; up to order 2; one operator without mixed derivatives, plus the number of jets. */
enum { GENERAL, CURVED, DIAGONAL };
#define MOST_DIAGONAL 5

typedef struct {
    int64_t inputs, outputs, residual, weight, bias; /* the latter two are places in the plain parameters */
    double step;                                     /* y_next = y + step sigma(z) where `residual`, else 1 */
} Layer;

typedef struct {
    int64_t jet, degree, of[4]; /* jet += factor * sigma^(degree) * product of the jets `of` */
    double factor;
} Term;

typedef struct {
    int64_t hidden, jets, kind, activation, residual;  /* hidden layers; the output layer comes after them */
    int64_t first, last, start, stop;                  /* the window: layers, and plain parameters */
    int64_t strip, threads, terms;
    const Layer *layer;
    const Term *term;
    double diagonal[MOST_DIAGONAL]; /* factors of the squares of the first derivatives */
} Plan;
