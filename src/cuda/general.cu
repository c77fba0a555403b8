#include "cuda/general.cuh"
#include "cuda/kernels.hpp"

namespace shortconv::cuda {

Entry general_kernel() { return reinterpret_cast<Entry>(&convolve_general); }

Entry replace_histories_kernel() { return reinterpret_cast<Entry>(&replace_histories); }

}  // namespace shortconv::cuda
