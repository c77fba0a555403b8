#include "cuda/kernels.hpp"
#include "cuda/violation.cuh"

namespace shortconv::cuda {

Entry clear_report_kernel() { return reinterpret_cast<Entry>(&clear_report); }
Entry count_violations_kernel() { return reinterpret_cast<Entry>(&count_violations); }

}  // namespace shortconv::cuda
