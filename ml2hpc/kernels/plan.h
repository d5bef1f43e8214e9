/* The network as Python describes it; the same structures are in problem/plan.py. Read by C and by CUDA. */
enum { TANH, SINE, SILU, GELU };

typedef struct {
    int64_t inputs, outputs, residual, weight, bias; /* the latter two are places in the plain parameters */
} Layer;

typedef struct {
    int64_t jet, degree, of[4]; /* jet += factor * sigma^(degree) * product of the jets `of` */
    double factor;
} Term;

typedef struct {
    int64_t hidden, jets, order, activation, residual; /* hidden layers; the output layer comes after them */
    int64_t first, last, start, stop;                  /* the window: layers, and plain parameters */
    int64_t strip, threads, terms;
    const Layer *layer;
    const Term *term;
} Plan;
