#pragma once

/// Marks the few functions that run on both sides. Empty where there is only one.
#ifdef __CUDACC__
#define SHORTCONV_HOST_DEVICE __host__ __device__
#else
#define SHORTCONV_HOST_DEVICE
#endif
