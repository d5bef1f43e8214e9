/* What the templates of neurons need where a thread is a point: the CUDA source is this file, after the definitions of T,
   IS_DOUBLE, ACTIVATION, JETS, KIND, TERMS, TERM_TABLE and FACTORS, with plan.h and neuron.h in their places.

   The set of jets is part of the source, so loops over jets have fixed lengths; up to order 2 jets stay in registers. */

#define int64_t long long /* whether or not the compiler knows the name */

#define V T
#define F(name) name
#define INLINE static __device__ __forceinline__
#define FUNCTION static __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define POINTS(p, strip)                                                                                               \
    for (long p = blockIdx.x * (long)blockDim.x + threadIdx.x; p < (strip); p += (long)gridDim.x * blockDim.x)

#include "plan.h"

INLINE T splat(T x) { return x; }

#if IS_DOUBLE
INLINE T exponential(T x) { return exp(x); }
INLINE T tangens_hyperbolicus(T x) { return tanh(x); }
INLINE T sine_and_cosine(T x, T *cosine)
{
    T sine;
    sincos(x, &sine, cosine);
    return sine;
}
INLINE T normal(T x, T *density)
{
    *density = 0.39894228040143267794 * exp(-0.5 * x * x);
    return 0.5 * erfc(-0.70710678118654752440 * x);
}
#else
INLINE T exponential(T x) { return expf(x); }
INLINE T tangens_hyperbolicus(T x) { return tanhf(x); }
INLINE T sine_and_cosine(T x, T *cosine)
{
    T sine;
    sincosf(x, &sine, cosine);
    return sine;
}
INLINE T normal(T x, T *density)
{
    *density = 0.39894228040143267794f * expf(-0.5f * x * x);
    return 0.5f * erfcf(-0.70710678118654752440f * x);
}
#endif

#include "neuron.h"

#define DESCRIBE                                                                                                       \
    const Term table[TERMS > 0 ? TERMS : 1] = {TERM_TABLE};                                                            \
    const Plan described = {0, JETS, KIND, ACTIVATION, 0, 0, 0, 0, 0, 0, 1, TERMS, 0, table, {FACTORS}};               \
    const Plan *plan = &described;                                                                                     \
    const long row = JETS * n, extra = (basis(ACTIVATION) - 1) * n, i = blockIdx.y;

/* Neuron blockIdx.y of z (width, jets, n); the arguments are those of the functions of the same name in network.h. */
extern "C" __global__ void neurons_forward(const T *bias, T *z, T *more, T *y, const T *below, int64_t n)
{
    DESCRIBE
    neuron_begin(plan, bias[i], z + i * row, more + i * extra, n);
    neuron(plan, z + i * row, more + i * extra, y + i * row, below ? below + i * row : 0, n);
}

extern "C" __global__ void neurons_reverse(const T *z, const T *more, const T *g, T *gz, int64_t n)
{
    DESCRIBE
    neuron_reverse(plan, z + i * row, more + i * extra, g + i * row, gz + i * row, n);
}
