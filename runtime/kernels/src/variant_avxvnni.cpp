#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11) || defined(_MSC_VER)
#define EDGELLM_AVX_VNNI 1   // older compilers do not know the instruction
#include "variant_avx2.cpp"
#endif
