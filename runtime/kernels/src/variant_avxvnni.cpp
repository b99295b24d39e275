#include "cpu.h"
#if defined(EDGELLM_KNOWS_AVX_VNNI)
#define EDGELLM_AVX_VNNI 1
#include "variant_avx2.cpp"
#endif
