/* Calls with threads in a library that is loaded, unloaded and loaded again: unload_test LIBRARY.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "shortconv/shortconv.h"

enum { kTokens = 1000, kChannels = 64, kWidth = 4 };

static float x[kTokens * kChannels], out[kTokens * kChannels], weight[kChannels * kWidth];

static shortconv_tensor rows(float* data, int64_t first, int64_t second) {
  shortconv_tensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.data = data;
  tensor.device_type = SHORTCONV_CPU;
  tensor.dtype = SHORTCONV_F32;
  tensor.ndim = 2;
  tensor.shape[0] = first;
  tensor.shape[1] = second;
  tensor.strides[0] = second;
  tensor.strides[1] = 1;
  return tensor;
}

/* 0 if all is well; on a thread that ends before the library goes. */
static void* use(void* library) {
  shortconv_tensor x_rows = rows(x, kTokens, kChannels), out_rows = rows(out, kTokens, kChannels),
                   taps = rows(weight, kChannels, kWidth);
  shortconv_forward_args args;
  int (*forward)(const shortconv_forward_args*, void*);
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  args.x = &x_rows;
  args.out = &out_rows;
  args.weight = &taps;
  args.dilation = 1;
  args.threads = 4;
  *(void**)&forward = dlsym(library, "shortconv_forward");
  if (forward == NULL || forward(&args, NULL) != SHORTCONV_OK) return (void*)1;
  return out[kTokens * kChannels - 1] == 6.0f ? NULL : (void*)1;
}

int main(int count, char** arguments) {
  if (count != 2) return 2;
  for (int i = 0; i < kTokens * kChannels; ++i) x[i] = 3.0f;
  for (int i = 0; i < kChannels * kWidth; ++i) weight[i] = 0.5f;
  for (int round = 0; round < 20; ++round) {
    void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    pthread_t thread;
    void* failed = library;
    if (library == NULL || pthread_create(&thread, NULL, use, library) != 0) return 2;
    pthread_join(thread, &failed);
    if (failed != NULL || dlclose(library) != 0) {
      printf("round %d failed\n", round);
      return 1;
    }
    memset(out, 0, sizeof out);
  }
  return 0;
}
