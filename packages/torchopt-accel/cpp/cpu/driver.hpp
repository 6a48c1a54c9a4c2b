#pragma once

#include "../plan.hpp"

namespace torchopt {

// Runs a plan on the processor with at most `threads` threads.
void run_cpu(const Plan& plan, int threads);

// Whether threads other than the caller's can be used.
bool has_threads();

}  // namespace torchopt
