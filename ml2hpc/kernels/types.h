/* Both floating-point types of one instruction set. */
#define TYPE f64
#define T double
#define INTEGER int64_t
#define IS_DOUBLE 1
#include "templates.h"
#undef TYPE
#undef T
#undef INTEGER
#undef IS_DOUBLE

#define TYPE f32
#define T float
#define INTEGER int32_t
#define IS_DOUBLE 0
#include "templates.h"
#undef TYPE
#undef T
#undef INTEGER
#undef IS_DOUBLE
