// What the CPU can do, and how one source file is compiled for more than the rest.
#pragma once

namespace edgellm {

enum class Feature { avx2, avx_vnni, avx512_vnni, neon_dotprod, neon_i8mm };
bool cpu_has(Feature feature);   // by the CPU and, for wide registers, by the operating system

}   // namespace edgellm

// Instructions that older compilers do not know.
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11) || defined(_MSC_VER)
#define EDGELLM_KNOWS_AVX_VNNI
#endif
#if (defined(__clang__) && __clang_major__ >= 11) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 10)
#define EDGELLM_KNOWS_I8MM
#endif

// Standard headers come before EDGELLM_TARGET_BEGIN: an inline function of theirs compiled for the wider instruction set could
// be the copy that the linker keeps for everybody.
#define EDGELLM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define EDGELLM_TARGET_BEGIN(features) EDGELLM_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define EDGELLM_TARGET_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#define EDGELLM_TARGET_BEGIN(features) _Pragma("GCC push_options") EDGELLM_PRAGMA(GCC target(features))
#define EDGELLM_TARGET_END _Pragma("GCC pop_options")
#else
#define EDGELLM_TARGET_BEGIN(features)
#define EDGELLM_TARGET_END
#endif

// Keeps the compiler from removing a loop whose result is not used.
#if defined(__GNUC__) || defined(__clang__)
#if defined(__x86_64__)
#define EDGELLM_KEEP(v) asm volatile("" : "+v"(v))
#else
#define EDGELLM_KEEP(v) asm volatile("" : "+w"(v))
#endif
#else
#define EDGELLM_KEEP(v) (void)(v)
#endif

// Written as an instruction because gcc drops the builtin inside our lambdas, and with it half of the speed.
#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define EDGELLM_PREFETCH(p) asm volatile("prefetcht0 %0" : : "m"(*reinterpret_cast<const char*>(p)))
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__aarch64__)
#define EDGELLM_PREFETCH(p) asm volatile("prfm pldl1keep, %a0" : : "p"(p))
#else
#define EDGELLM_PREFETCH(p) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0)
#endif
