/* Calls with groups through the C ABI, forward and backward. */
#include <string.h>

#include "capi_test.h"
#include "shortconv/shortconv.h"

static void divides_channels_into_groups(void) {
  float rows[2 * 6] = {9, 3, 8, 4, 1, 2, 9, 6, 8, 8, 3, 4}; /* columns 1 and 3 are q, 4 and 5 z */
  float q[2 * 2] = {0}, z[2 * 2] = {0}, w[2 * 2] = {0, 1, 0, 1}, g[2] = {0}, beta[2] = {0};
  float a_log[1] = {0}, dt_bias[1] = {0};
  shortconv_tensor tx = tensor(rows, SHORTCONV_F32, 2, 6), tw = tensor(w, SHORTCONV_F32, 2, 2);
  shortconv_tensor tq = tensor(q, SHORTCONV_F32, 2, 1), tz = tensor(z, SHORTCONV_F32, 2, 1);
  shortconv_tensor tg = tensor(g, SHORTCONV_F32, 2, 1), tbeta = tensor(beta, SHORTCONV_F32, 2, 1);
  shortconv_tensor tone = {.data = a_log, .device_type = SHORTCONV_CPU, .dtype = SHORTCONV_F32};
  shortconv_tensor ttwo;
  tq.ndim = tz.ndim = 3; /* [2, 1 head, 2] */
  tq.shape[2] = tz.shape[2] = tq.strides[0] = tz.strides[0] = 2;
  tq.strides[2] = tz.strides[2] = 1;
  tone.ndim = 1;
  tone.shape[0] = tone.strides[0] = 1;
  ttwo = tone;
  ttwo.data = dt_bias;
  shortconv_forward_args forward = {.struct_size = sizeof forward, .x = &tx, .weight = &tw};
  shortconv_channel_group groups[2] = {
      {.struct_size = sizeof groups[0], .out = &tq, .l2_norm = 1, .eps = 1e-20f, .scale = 10},
      {.struct_size = sizeof groups[1], .out = &tz, .copy = 1, .input = {.offset = 4}}};
  shortconv_gate_args gates = {.struct_size = sizeof gates,
                               .a = &tx,
                               .b = &tx,
                               .a_log = &tone,
                               .dt_bias = &ttwo,
                               .g = &tg,
                               .beta = &tbeta,
                               .beta_factor = 2};
  shortconv_grouped_args args = {.struct_size = sizeof args,
                                 .group_count = 2,
                                 .forward = &forward,
                                 .groups = groups,
                                 .gates = &gates};
  shortconv_grouped_plan plan;
  shortconv_l2_norm_args norm = {.struct_size = sizeof norm, .x = &tq, .out = &tq, .scale = 5};
  groups[0].input.offset = 3;
  CHECK(shortconv_forward_groups(&args, NULL) == SHORTCONV_OK);
  CHECK(q[0] > 9.70f && q[0] < 9.71f && q[3] > 3.50f && q[3] < 3.52f); /* 4, 1; 8, 3 */
  CHECK(z[0] == 1 && z[1] == 2 && z[2] == 3 && z[3] == 4);
  CHECK(g[0] < -8.99f && g[0] > -9.01f && beta[1] > 1.99f);

  CHECK(shortconv_plan_groups(&args, &plan) == SHORTCONV_OK);
  memset(q, 0, sizeof q);
  CHECK(shortconv_run_groups(&plan, &args, NULL) == SHORTCONV_OK && q[0] > 9.70f);
  groups[0].input.offset = 2;
  CHECK(shortconv_run_groups(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "are not those of the plan") != NULL);
  CHECK(shortconv_l2_norm(&norm, NULL) == SHORTCONV_OK && q[0] > 4.85f && q[0] < 4.86f);
  CHECK(shortconv_delta_gates(&gates, NULL) == SHORTCONV_OK);

  forward.out = &tx;
  CHECK(shortconv_forward_groups(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "out: is given") != NULL);
  forward.out = NULL;
  groups[1].struct_size -= 8;
  CHECK(shortconv_forward_groups(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "different struct_sizes") != NULL);
}

/* Gradients of two rows, in which column 0 is a and b, 1 and 2 are q, 3 is z. It refers to itself.
 */
typedef struct gradient_call {
  float x[2 * 4], w[2 * 2], gq[2 * 2], gz[2], a_log[1], dt_bias[1], gg[2], gbeta[2];
  float gx[2 * 4], gw[2 * 2], ga[2 * 4], gb[2 * 4], ga_log[1];
  shortconv_tensor tx, tw, tgq, tgz, ta_log, tdt_bias, tgg, tgbeta, tgx, tgw, tga, tgb, tga_log;
  shortconv_backward_args backward;
  shortconv_channel_group groups[2];
  shortconv_gate_gradient_args gates;
  shortconv_grouped_backward_args args;
} gradient_call;

static shortconv_tensor heads_of(void* data, int64_t head_dim) { /* [2, 1 head, head_dim] */
  shortconv_tensor view = tensor(data, SHORTCONV_F32, 2, 1);
  view.ndim = 3;
  view.shape[2] = view.strides[0] = head_dim;
  view.strides[2] = 1;
  return view;
}

static shortconv_tensor list_of(void* data) {
  shortconv_tensor view = tensor(data, SHORTCONV_F32, 1, 1);
  view.ndim = 1;
  return view;
}

static void connect_groups(gradient_call* c) {
  shortconv_channel_group q = {.struct_size = sizeof q,
                               .out = &c->tgq,
                               .input = {.offset = 1},
                               .l2_norm = 1,
                               .eps = 1e-20f,
                               .scale = 5};
  shortconv_channel_group z = {
      .struct_size = sizeof z, .out = &c->tgz, .copy = 1, .input = {.offset = 3}};
  shortconv_gate_gradient_args gates = {.struct_size = sizeof gates,
                                        .a = &c->tx,
                                        .b = &c->tx,
                                        .a_log = &c->ta_log,
                                        .dt_bias = &c->tdt_bias,
                                        .grad_g = &c->tgg,
                                        .grad_beta = &c->tgbeta,
                                        .grad_a = &c->tga,
                                        .grad_b = &c->tgb,
                                        .grad_a_log = &c->tga_log,
                                        .beta_factor = 2};
  c->groups[0] = q, c->groups[1] = z, c->gates = gates;
  c->tgq = heads_of(c->gq, 2), c->tgz = heads_of(c->gz, 1);
  c->ta_log = list_of(c->a_log), c->tdt_bias = list_of(c->dt_bias), c->tga_log = list_of(c->ga_log);
  c->tgg = tensor(c->gg, SHORTCONV_F32, 2, 1), c->tgbeta = tensor(c->gbeta, SHORTCONV_F32, 2, 1);
  c->tga = tensor(c->ga, SHORTCONV_F32, 2, 4), c->tgb = tensor(c->gb, SHORTCONV_F32, 2, 4);
}

static gradient_call* make_gradient_call(void) {
  static gradient_call call;
  const gradient_call values = {.x = {0, 3, 4, 1, 0, 6, 8, 2},
                                .w = {0, 1, 0, 1},
                                .gq = {1, 0, 0, 1},
                                .gz = {7, 8},
                                .gg = {2, 4},
                                .gbeta = {2, 4}};
  shortconv_backward_args backward = {.struct_size = sizeof backward,
                                      .backend = SHORTCONV_BACKEND_REFERENCE,
                                      .x = &call.tx,
                                      .weight = &call.tw,
                                      .grad_x = &call.tgx,
                                      .grad_weight = &call.tgw};
  shortconv_grouped_backward_args args = {.struct_size = sizeof args,
                                          .group_count = 2,
                                          .backward = &call.backward,
                                          .groups = call.groups,
                                          .gates = &call.gates};
  int i;
  call = values;
  for (i = 0; i < 8; ++i) call.gx[i] = call.ga[i] = call.gb[i] = -9;
  call.backward = backward, call.args = args;
  call.tx = tensor(call.x, SHORTCONV_F32, 2, 4), call.tgx = tensor(call.gx, SHORTCONV_F32, 2, 4);
  call.tw = tensor(call.w, SHORTCONV_F32, 2, 2), call.tgw = tensor(call.gw, SHORTCONV_F32, 2, 2);
  connect_groups(&call);
  return &call;
}

static int is_near(float number, float expected) {
  return number > expected - 0.001f && number < expected + 0.001f;
}

static void computes_gradients_of_groups(void) {
  gradient_call* c = make_gradient_call();
  shortconv_grouped_backward_plan plan;
  int64_t bytes = -1;
  CHECK(shortconv_backward_groups(&c->args, NULL) == SHORTCONV_OK);
  CHECK(c->gx[0] == -9 && c->gx[4] == -9 && c->gx[3] == 7 && c->gx[7] == 8);
  /* With e = y / |y| = (0.6, 0.8): (1, 0) - 0.6 e, and half of (0, 1) - 0.8 e. */
  CHECK(is_near(c->gx[1], 0.64f) && is_near(c->gx[2], -0.48f));
  CHECK(is_near(c->gx[5], -0.24f) && is_near(c->gx[6], 0.18f));
  CHECK(is_near(c->gw[0], 3 * -0.24f) && is_near(c->gw[1], 3 * 0.64f + 6 * -0.24f));
  /* Slopes 1/2 and 1/4; g is -log 2 in both rows. */
  CHECK(c->ga[0] == -1 && c->ga[4] == -2 && c->gb[0] == 1 && c->gb[4] == 2);
  CHECK(c->ga[1] == -9 && c->ga[7] == -9 && c->gb[1] == -9 && c->gb[7] == -9);
  CHECK(is_near(c->ga_log[0], -6 * 0.693147f));

  memset(&plan, 0, sizeof plan);
  CHECK(shortconv_run_backward_groups(&plan, &c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "not made by shortconv_plan_backward_groups") != NULL);
  CHECK(shortconv_plan_backward_groups(&c->args, &plan) == SHORTCONV_OK);
  CHECK(shortconv_backward_groups_workspace_bytes(&plan, &bytes) == SHORTCONV_OK && bytes == 0);
  CHECK(shortconv_backward_groups_workspace_bytes(&plan, NULL) == SHORTCONV_INVALID_ARGUMENT);
  memset(c->gx, 0, sizeof c->gx);
  CHECK(shortconv_run_backward_groups(&plan, &c->args, NULL) == SHORTCONV_OK);
  CHECK(c->gx[0] == 0 && is_near(c->gx[1], 0.64f) && c->gx[7] == 8);
  c->groups[0].input.offset = 0;
  CHECK(shortconv_run_backward_groups(&plan, &c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "are not those of the plan") != NULL);
}

static void refuses_gradients_of_groups_with_a_text(void) {
  gradient_call* c = make_gradient_call();
  shortconv_grouped_backward_plan plan;
  CHECK(shortconv_plan_backward_groups(&c->args, &plan) == SHORTCONV_OK);
  c->backward.grad_out = &c->tx;
  CHECK(shortconv_backward_groups(&c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "grad_out: is given, but with groups each") != NULL);
  c->backward.grad_out = NULL, c->backward.workspace_bytes = -1;
  CHECK(shortconv_run_backward_groups(&plan, &c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "workspace_bytes: is -1; expected 0 or more") != NULL);
  c->backward.workspace_bytes = 0, c->gates.grad_g = NULL;
  CHECK(shortconv_backward_groups(&c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "grad_g: is null") != NULL);
  c->args.gates = NULL, c->args.group_count = 9;
  CHECK(shortconv_backward_groups(&c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "groups: are 9; expected 1 to 8") != NULL);
  c->args.group_count = 2, c->args.groups = NULL;
  CHECK(shortconv_backward_groups(&c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "groups: is null") != NULL);
  c->args.backward = NULL;
  CHECK(shortconv_backward_groups(&c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(shortconv_backward_groups(NULL, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(shortconv_plan_backward_groups(&c->args, NULL) == SHORTCONV_INVALID_ARGUMENT);
}

void test_groups(void) {
  divides_channels_into_groups();
  computes_gradients_of_groups();
  refuses_gradients_of_groups_with_a_text();
}
