#pragma once
#include <string>

#include "layout.h"
#include "sequences.h"

namespace edgellm {

// Puts the kernels under the llama.cpp whose libraries lie at these paths. Returns what stands in the way, "" when nothing does;
// then nothing has been changed. Call before the first model is loaded, once. `alone`: the engine's own extra buffer types are
// taken off the list, for machines where they do not work.
std::string install_plugin(const Variant& chosen, const char* ggml_base_path, const char* ggml_cpu_path, bool alone);

// Whose texts the passes from now on are over; nullptr: of a context that holds one, and one cell behind the other.
void use_sequences(Sequences* sequences);

// Weights that another machine writes into the CPU's memory are packed too (lent.h). False where the kernels are not in place.
bool lend_memory();

}   // namespace edgellm
