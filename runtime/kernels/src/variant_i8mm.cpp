#include "cpu.h"
#if defined(EDGELLM_KNOWS_I8MM)
#define EDGELLM_I8MM 1
#include "variant_neon.cpp"
#endif
