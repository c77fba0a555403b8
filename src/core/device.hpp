#pragma once

/// Marks functions that run on host and device. Empty without a CUDA compiler.
#ifdef __CUDACC__
#define SHORTCONV_HOST_DEVICE __host__ __device__
#else
#define SHORTCONV_HOST_DEVICE
#endif
