#include "cuda/general.cuh"
#include "cuda/kernels.hpp"

namespace shortconv::cuda {

Entry general_kernel() { return reinterpret_cast<Entry>(&convolve_general); }

}  // namespace shortconv::cuda
