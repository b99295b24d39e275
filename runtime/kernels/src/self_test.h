#pragma once
#include <string>

#include "ggml_abi.h"

namespace edgellm {

// Products of every type of weights, of adapters and attention through ggml, with weights in buffers of `where` and with ggml's own.
// Switches `attends` off for its attention and on for ours. Returns what disagrees, "" when nothing does.
std::string self_test(ggml::BufferType* where, bool* attends);

}   // namespace edgellm
