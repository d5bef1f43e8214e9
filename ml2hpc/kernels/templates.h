/* The vector types of one instruction set and floating-point type, and all kernels on them. */
#define LANES ((long)(VECTOR_BYTES / sizeof(T)))
#define V F(vector)
#define VI F(integers)
#define VU F(unaligned)
typedef T V __attribute__((vector_size(VECTOR_BYTES)));
typedef T VU __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T))));
typedef INTEGER VI __attribute__((vector_size(VECTOR_BYTES)));

#include "elementary.h"
#include "products.h"
#define POINTS(p, strip) for (long p = 0; p < (strip); p += LANES)
#define FUNCTION static
#include "neuron.h"
#include "network.h"
#include "symmetric.h"
#include "sweep.h"
#include "rows.h"
#include "limited.h"
#undef BY_ACTIVATION
#undef MOST_JETS
#undef MOST_CURVED
#undef HIGHEST
#undef POINTS
#undef FUNCTION
#undef INLINE
#undef LANES
#undef V
#undef VI
#undef VU
