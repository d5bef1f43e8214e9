/* The compiled kernels, once per instruction set and floating-point type; Python chooses at run time.

   Each template below is included several times. It writes its functions as F(name), which becomes name_f64_avx512 and
   the like, on vectors V of LANES numbers of type T. GCC and Clang vector extensions; no other library than libm. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ABI 6 /* the same number as in __init__.py; a library of another one is refused */
int ml2hpc_abi(void) { return ABI; }

#include "threads.h"

#include "plan.h"

#define JOIN3_(a, b, c) a##_##b##_##c
#define JOIN3(a, b, c) JOIN3_(a, b, c)
#define F(name) JOIN3(name, TYPE, ISA)

#if defined(__clang__)
#define TARGET_BEGIN(features) \
    DO_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END DO_PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(features) DO_PRAGMA(GCC push_options) DO_PRAGMA(GCC target(features))
#define TARGET_END DO_PRAGMA(GCC pop_options)
#endif
#define DO_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define UNROLL /* it unrolls loops of known length unasked */
#else
#define UNROLL DO_PRAGMA(GCC unroll 8)
#endif

/* ROWS x COLUMNS vectors is the register block of products, SQUARE x SQUARE that of outer products. */
#define ISA generic
#define VECTOR_BYTES 16
#define ROWS 4
#define COLUMNS 2
#define SQUARE 2
#include "types.h"
#undef ISA
#undef VECTOR_BYTES
#undef ROWS
#undef COLUMNS
#undef SQUARE

#if defined(__aarch64__)
#define ISA neon
#define VECTOR_BYTES 16
#define ROWS 5
#define COLUMNS 4
#define SQUARE 4
#include "types.h"
#undef ISA
#undef VECTOR_BYTES
#undef ROWS
#undef COLUMNS
#undef SQUARE
#endif

#if defined(__x86_64__)
TARGET_BEGIN("avx2,fma")
#define ISA avx2
#define VECTOR_BYTES 32
#define ROWS 4
#define COLUMNS 3
#define SQUARE 3
#include "types.h"
#undef ISA
#undef VECTOR_BYTES
#undef ROWS
#undef COLUMNS
#undef SQUARE
TARGET_END

#if defined(__clang__) /* ignores all of a list in which it does not know one word */
TARGET_BEGIN("avx512f,avx512dq,avx512vl,avx2,fma")
#else
TARGET_BEGIN("avx512f,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define ISA avx512
#define VECTOR_BYTES 64
#define ROWS 5
#define COLUMNS 4
#define SQUARE 5
#include "types.h"
TARGET_END
#endif

/* The best instruction set of this processor, by its name in the functions above. */
const char *ml2hpc_instruction_set(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "avx2";
    return "generic";
#elif defined(__aarch64__)
    return "neon";
#else
    return "generic";
#endif
}
