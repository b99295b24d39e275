#if defined(__aarch64__) && ((defined(__clang__) && __clang_major__ >= 11) || (!defined(__clang__) && __GNUC__ >= 10))
#define EDGELLM_I8MM 1   // older compilers do not know the instruction
#include "variant_neon.cpp"
#endif
