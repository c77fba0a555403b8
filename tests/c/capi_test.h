/* What the files of the test of the C ABI share. */
#ifndef SHORTCONV_TESTS_C_CAPI_TEST_H
#define SHORTCONV_TESTS_C_CAPI_TEST_H

#include <stdio.h>

#include "shortconv/shortconv.h"

extern int failures;

static inline void check(int condition, const char* text, const char* file, int line) {
  if (condition) return;
  ++failures;
  fprintf(stderr, "%s:%d: %s (last error: %s)\n", file, line, text, shortconv_last_error());
}
#define CHECK(condition) check((condition) != 0, #condition, __FILE__, __LINE__)

static inline shortconv_tensor tensor(void* data, int32_t dtype, int64_t rows, int64_t columns) {
  shortconv_tensor view = {.data = data, .device_type = SHORTCONV_CPU, .dtype = dtype, .ndim = 2};
  view.shape[0] = rows;
  view.shape[1] = columns;
  view.strides[0] = columns;
  view.strides[1] = 1;
  return view;
}

/* capi_groups_test.c */
void test_groups(void);

#endif
