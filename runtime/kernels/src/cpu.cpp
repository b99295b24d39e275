#include "cpu.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace edgellm {

#if defined(__x86_64__) || defined(_M_X64)

namespace {

struct Registers {
    uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r = {};
#if defined(_MSC_VER)
    int out[4];
    __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
    r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]), static_cast<uint32_t>(out[3])};
#else
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
#endif
    return r;
}

uint64_t saved_registers() {   // which registers the operating system keeps across a switch of tasks
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool bit(uint32_t word, int i) { return (word >> i) & 1; }

}   // namespace

bool cpu_has(Feature feature) {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), more = cpuid(7, 1);
    const bool os_saves = bit(one.c, 27);
    const uint64_t saved = os_saves ? saved_registers() : 0;
    const bool avx2 = (saved & 0x6) == 0x6 && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5);   // with FMA and F16C
    const bool avx512 = avx2 && (saved & 0xe6) == 0xe6 && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
    switch (feature) {
        case Feature::avx2: return avx2;
        case Feature::avx_vnni: return avx2 && bit(more.a, 4);
        case Feature::avx512_vnni: return avx512 && bit(seven.c, 11);
        default: return false;
    }
}

#elif defined(__aarch64__)

bool cpu_has(Feature feature) {
#if defined(__linux__)
    if (feature == Feature::neon_dotprod) return (getauxval(AT_HWCAP) >> 20) & 1;
    if (feature == Feature::neon_i8mm) return (getauxval(AT_HWCAP2) >> 13) & 1;
#elif defined(__APPLE__)
    const char* name = feature == Feature::neon_dotprod ? "hw.optional.arm.FEAT_DotProd"
                       : feature == Feature::neon_i8mm  ? "hw.optional.arm.FEAT_I8MM"
                                                        : nullptr;
    int value = 0;
    size_t size = sizeof value;
    return name && sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
#endif
    return false;
}

#else

bool cpu_has(Feature) { return false; }

#endif

}   // namespace edgellm
