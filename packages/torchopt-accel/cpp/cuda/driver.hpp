#pragma once

#include "../plan.hpp"

namespace torchopt {

// Queues a plan on a stream of a device, without waiting for it.
void run_cuda(const Plan& plan, int device_index, void* stream);

}  // namespace torchopt
