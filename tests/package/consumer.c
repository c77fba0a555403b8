/* The C quick start of the README, compiled against the installed package. */
#include <stdio.h>

#include "shortconv/shortconv.h"

int main(void) {
  float x[6] = {1, 10, 2, 20, 3, 30}, y[6]; /* [3 tokens, 2 channels] */
  float w[4] = {0.5f, 1, 0.5f, 1};          /* [2 channels, width 2]: y[t] = x[t-1] / 2 + x[t] */
  shortconv_tensor tx = {.data = x,
                         .device_type = SHORTCONV_CPU,
                         .dtype = SHORTCONV_F32,
                         .ndim = 2,
                         .shape = {3, 2},
                         .strides = {2, 1}};
  shortconv_tensor ty = tx, tw = tx;
  ty.data = y;
  tw.data = w;
  tw.shape[0] = 2;

  shortconv_forward_args args = {.struct_size = sizeof args, .x = &tx, .out = &ty, .weight = &tw};
  if (shortconv_forward(&args, NULL) != SHORTCONV_OK) {
    fprintf(stderr, "%s\n", shortconv_last_error());
    return 1;
  }
  printf("shortconv %s: %g %g\n", shortconv_version(), y[4], y[5]); /* 4 40 */
  return y[4] == 4 && y[5] == 40 ? 0 : 1;
}
