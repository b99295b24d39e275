// The magnitudes that an index stands for in IQ3_S, IQ3_XXS, IQ2_XXS, IQ2_XS and IQ2_S: four bytes an entry, or twice four.
#pragma once
#include <cstddef>
#include <cstdint>

namespace edgellm {

struct Grids {
    uint32_t iq3_s[512], iq3_xxs[256], iq2_xxs[2 * 256], iq2_xs[2 * 512], iq2_s[2 * 1024];
};
extern const Grids kGrids;

}   // namespace edgellm
