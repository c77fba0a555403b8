/* The C header as C11, and the C ABI through it. Also the C quick start of the README. */
#include "capi_test.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "shortconv/shortconv.h"

int failures = 0;

static void computes_a_sum_of_products(void) {
  float x[3 * 2] = {1, 10, 2, 20, 3, 30};
  float y[3 * 2] = {0};
  float w[2 * 2] = {0.5f, 1, 0.5f, 1}; /* y[t] = x[t] + x[t-1] / 2 */
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 3, 2);
  shortconv_tensor ty = tensor(y, SHORTCONV_F32, 3, 2);
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 2, 2);
  shortconv_forward_args args = {.struct_size = sizeof args, .x = &tx, .out = &ty, .weight = &tw};
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(y[0] == 1 && y[1] == 10 && y[2] == 2.5f && y[3] == 25 && y[4] == 4 && y[5] == 40);

  shortconv_plan plan, copy;
  memset(&plan, 0, sizeof plan);
  CHECK(shortconv_run(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "plan: was not made") != NULL);
  CHECK(shortconv_plan_forward(&args, &plan) == SHORTCONV_OK);
  memcpy(&copy, &plan, sizeof plan);
  memset(y, 0, sizeof y);
  CHECK(shortconv_run(&copy, &args, NULL) == SHORTCONV_OK);
  CHECK(y[5] == 40);
}

/* A plan knows its tensors: run on others it would read and write outside of them. */
static void runs_a_plan_only_on_tensors_like_its_own(void) {
  float x[3 * 2] = {1, 10, 2, 20, 3, 30};
  float y[3 * 2] = {0};
  float w[2 * 2] = {0, 1, 0, 1};
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 3, 2), own_x = tx;
  shortconv_tensor ty = tensor(y, SHORTCONV_F32, 3, 2), own_y = ty;
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 2, 2), tb = tensor(w, SHORTCONV_F32, 2, 1);
  shortconv_forward_args args = {.struct_size = sizeof args, .x = &tx, .out = &ty, .weight = &tw};
  shortconv_plan plan;
  CHECK(shortconv_plan_forward(&args, &plan) == SHORTCONV_OK);

  tx.shape[0] = ty.shape[0] = 2;
  CHECK(shortconv_run(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "args: are '") != NULL);
  CHECK(strstr(shortconv_last_error(), "tokens=2") != NULL);
  CHECK(strstr(shortconv_last_error(), "the plan was made for '") != NULL);
  tx = own_x, ty = own_y;
  tx.strides[0] = 1, tx.strides[1] = 3; /* another layout of the same shape */
  CHECK(shortconv_run(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  tx = own_x;
  tx.dtype = SHORTCONV_BF16;
  CHECK(shortconv_run(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  tx = own_x;
  tb.ndim = 1;
  args.bias = &tb; /* the plan has none */
  CHECK(shortconv_run(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  args.bias = NULL;
  args.x = NULL;
  CHECK(shortconv_run(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "x: is null") != NULL);
  args.x = &tx;
  CHECK(y[5] == 0); /* nothing was written */
  CHECK(shortconv_run(&plan, &args, NULL) == SHORTCONV_OK);
  CHECK(y[5] == 30);

  tx.shape[0] = ty.shape[0] = 1; /* then the stride between tokens means nothing */
  CHECK(shortconv_plan_forward(&args, &plan) == SHORTCONV_OK);
  tx.strides[0] = 99;
  y[1] = 0;
  CHECK(shortconv_run(&plan, &args, NULL) == SHORTCONV_OK);
  CHECK(y[1] == 10);
}

static void refuses_with_a_text(void) {
  float data[8] = {0};
  shortconv_tensor tx = tensor(data, SHORTCONV_F32, 2, 2);
  shortconv_tensor ty = tensor(data + 4, SHORTCONV_F32, 2, 2);
  shortconv_tensor tw = tensor(data, SHORTCONV_F32, 2, 1);
  shortconv_forward_args args = {.struct_size = sizeof args, .x = &tx, .out = &ty, .weight = &tw};
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "weight: width 1 is not supported (2 to 64)") != NULL);
  CHECK(shortconv_forward(NULL, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "args: is null") != NULL);
  args.struct_size = 8;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "struct_size is 8") != NULL);
  args.struct_size = sizeof args - 4;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "multiple of 8") != NULL);
  args.struct_size = sizeof args;
  args.x = NULL;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "x: is null") != NULL);
  args.x = &tx;
  args.schedule = -1;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "schedule: ") != NULL);
  args.schedule = 0;
  args.no_programmatic_launch = 2;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "no_programmatic_launch: is 2; expected 0 or 1") != NULL);
}

/* A later header's struct is longer: fine while its new fields are zero. */
static void accepts_larger_structs_of_zeros(void) {
  struct {
    shortconv_forward_args args;
    uint64_t later;
  } newer;
  float x[4] = {1, 2, 3, 4}, y[4] = {0}, w[4] = {0, 1, 0, 1};
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 2, 2);
  shortconv_tensor ty = tensor(y, SHORTCONV_F32, 2, 2);
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 2, 2);
  memset(&newer, 0, sizeof newer);
  newer.args.struct_size = sizeof newer;
  newer.args.x = &tx;
  newer.args.out = &ty;
  newer.args.weight = &tw;
  CHECK(shortconv_forward(&newer.args, NULL) == SHORTCONV_OK);
  CHECK(y[3] == 4);
  newer.later = 1;
  CHECK(shortconv_forward(&newer.args, NULL) == SHORTCONV_INVALID_ARGUMENT);
}

/* Each output is (gate * input two tokens back) * gate; then the same with the token itself added.
 */
static void takes_gates_residual_and_dilation(void) {
  float x[3] = {1, 2, 3}, in[3] = {2, 3, 4}, gate[3] = {10, 100, 1000}, y[3] = {0}, w[2] = {1, 0};
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 3, 1), ty = tensor(y, SHORTCONV_F32, 3, 1);
  shortconv_tensor ti = tensor(in, SHORTCONV_F32, 3, 1), to = tensor(gate, SHORTCONV_F32, 3, 1);
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 1, 2);
  shortconv_forward_args args = {.struct_size = sizeof args, .x = &tx, .out = &ty, .weight = &tw};
  args.input_gate = &ti;
  args.output_gate = &to;
  args.dilation = 2;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(y[0] == 0 && y[1] == 0 && y[2] == 2000);
  args.residual = 1;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  args.input_gate = args.output_gate = NULL;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(y[0] == 1 && y[1] == 2 && y[2] == 4);
  args.residual = 2;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "residual: is 2; expected 0 or 1") != NULL);
}

/* Two drafts after the first one, of which the second is accepted. Each output is the input before
 * it. */
static void verifies_a_tree_and_commits_a_window(void) {
  float x[3] = {1, 2, 3}, y[3] = {0}, w[2] = {1, 0}, state[2] = {7, 8}, windows[3] = {0};
  int32_t parents[3] = {-1, 0, 0}, slots[1] = {1}, accepted[1] = {2};
  int64_t report[SHORTCONV_VIOLATIONS * 2];
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 3, 1), ty = tensor(y, SHORTCONV_F32, 3, 1);
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 1, 2);
  shortconv_tensor tr = tensor(report, SHORTCONV_I64, SHORTCONV_VIOLATIONS, 2);
  shortconv_tensor ts = tensor(state, SHORTCONV_F32, 2, 1);
  shortconv_tensor tv = tensor(windows, SHORTCONV_F32, 3, 1);
  shortconv_tensor tp = tensor(parents, SHORTCONV_I32, 3, 1);
  shortconv_tensor tl = tensor(slots, SHORTCONV_I32, 1, 1);
  shortconv_tensor ta = tensor(accepted, SHORTCONV_I32, 1, 1);
  shortconv_forward_args args = {.struct_size = sizeof args, .op = SHORTCONV_OP_VERIFY};
  shortconv_commit_args commit = {.struct_size = sizeof commit, .width = 2, .rows_per_token = 1};
  ts.ndim = tv.ndim = 3; /* [slots, 1, channels], [tokens, 1, channels] */
  ts.shape[2] = ts.strides[2] = tv.shape[2] = tv.strides[2] = 1;
  tp.ndim = tl.ndim = ta.ndim = 1;
  args.x = &tx, args.out = &ty, args.weight = &tw, args.state = &ts, args.read_slots = &tl;
  args.parents = &tp, args.intermediate_states = &tv, args.violations = &tr;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(y[0] == 8 && y[1] == 1 && y[2] == 1);
  CHECK(state[0] == 7 && state[1] == 8);
  CHECK(report[0] == 0 && report[1] == -1 && report[2 * SHORTCONV_VIOLATIONS - 1] == -1);
  parents[1] = 1;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(report[12] == 1 && report[13] == 0); /* a parent that is not before its token */
  CHECK(report[2 * SHORTCONV_VIOLATIONS - 2] == 0 && report[2 * SHORTCONV_VIOLATIONS - 1] == -1);

  shortconv_tensor layers = ts, rows = tv;
  layers.ndim = rows.ndim = 4; /* one layer in front; rows: of one sequence */
  memmove(layers.shape + 1, ts.shape, 3 * sizeof *ts.shape);
  memmove(layers.strides + 1, ts.strides, 3 * sizeof *ts.strides);
  layers.shape[0] = rows.shape[0] = rows.shape[1] = 1;
  rows.shape[2] = 3, rows.shape[3] = rows.strides[2] = rows.strides[3] = 1;
  commit.intermediate_states = &rows, commit.state = &layers, commit.accepted = &ta,
  commit.slots = &tl;
  CHECK(shortconv_commit(&commit, NULL) == SHORTCONV_OK);
  CHECK(state[0] == 7 && state[1] == 3);
  commit.width = 3;
  CHECK(shortconv_commit(&commit, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(shortconv_commit(NULL, NULL) == SHORTCONV_INVALID_ARGUMENT);
}

/* One sequence that had 3 tokens gets 4 more, in blocks of 2: the second and third fill up. */
static void lists_snapshots_of_full_blocks(void) {
  int32_t bounds[2] = {0, 4}, computed[1] = {3}, slots[4] = {8, 7, 6, 5};
  int64_t rows[9];
  shortconv_tensor tb = tensor(bounds, SHORTCONV_I32, 2, 1);
  shortconv_tensor tc = tensor(computed, SHORTCONV_I32, 1, 1);
  shortconv_tensor ts = tensor(slots, SHORTCONV_I32, 1, 4);
  shortconv_tensor tr = tensor(rows, SHORTCONV_I64, 3, 3);
  shortconv_block_snapshots_args args = {.struct_size = sizeof args, .tokens = 4};
  tb.ndim = tc.ndim = 1;
  args.query_start_loc = &tb, args.num_computed_tokens = &tc, args.block_slots = &ts;
  args.snapshots = &tr;
  CHECK(shortconv_block_snapshots(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "block_size: is 0; expected 1 or more") != NULL);
  args.block_size = 2;
  CHECK(shortconv_block_snapshots(&args, NULL) == SHORTCONV_OK);
  CHECK(rows[0] == 0 && rows[1] == 1 && rows[2] == 7);
  CHECK(rows[3] == 0 && rows[4] == 3 && rows[5] == 6);
  CHECK(rows[6] == -1 && rows[7] == 0 && rows[8] == -1);
  args.snapshots = NULL;
  CHECK(shortconv_block_snapshots(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(shortconv_block_snapshots(NULL, NULL) == SHORTCONV_INVALID_ARGUMENT);
}

static void finds_parents_of_a_tree(void) {
  int32_t child[4] = {1, 3, -1, -1}, sibling[4] = {-1, 2, -1, -1};
  int64_t parents[4];
  shortconv_tensor tc = tensor(child, SHORTCONV_I32, 1, 4);
  shortconv_tensor ts = tensor(sibling, SHORTCONV_I32, 1, 4);
  shortconv_tensor tp = tensor(parents, SHORTCONV_I64, 1, 4);
  shortconv_tree_parents_args args = {.struct_size = sizeof args};
  args.first_child = &tc, args.next_sibling = &ts, args.parents = &tp;
  CHECK(shortconv_tree_parents(&args, NULL) == SHORTCONV_OK);
  CHECK(parents[0] == -1 && parents[1] == 0 && parents[2] == 0 && parents[3] == 1);
  args.parents = &tc;
  CHECK(shortconv_tree_parents(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "parents: overlaps first_child") != NULL);
  CHECK(shortconv_tree_parents(NULL, NULL) == SHORTCONV_INVALID_ARGUMENT);
}

/* Three sequences in a row, of which the first goes on and the second is padding. */
static void tells_sequences_apart_by_numbers(void) {
  float x[5] = {1, 2, 3, 4, 5}, y[5] = {9, 9, 9, 9, 9}, w[2] = {1, 0}, state[1] = {7};
  int32_t numbers[5] = {4, 4, -1, 0, 0};
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 5, 1);
  shortconv_tensor ty = tensor(y, SHORTCONV_F32, 5, 1);
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 1, 2);
  shortconv_tensor tn = tensor(numbers, SHORTCONV_I32, 5, 1);
  shortconv_tensor ts = tensor(state, SHORTCONV_F32, 1, 1);
  shortconv_forward_args args = {.struct_size = sizeof args, .x = &tx, .out = &ty, .weight = &tw};
  tn.ndim = 1;
  ts.ndim = 3, ts.shape[2] = ts.strides[2] = 1;
  args.seq_idx = &tn, args.state = &ts, args.initial_state = SHORTCONV_INITIAL_ALL;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(y[0] == 7 && y[1] == 1 && y[2] == 0 && y[3] == 0 && y[4] == 4 && state[0] == 7);
  args.op = SHORTCONV_OP_DECODE;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "seq_idx: is supported by forward calls only") != NULL);
}

/* A ring of two columns after one input, and a snapshot of the state after the first new one. */
static void appends_to_a_ring_and_takes_a_snapshot(void) {
  float x[2] = {2, 3}, y[2] = {0}, w[2] = {1, 0}, state[4] = {1, 9, 9, 9};
  int64_t positions[1] = {1};
  int32_t slots[1] = {0}, snapshots[3] = {0, 1, 1};
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 2, 1), ty = tensor(y, SHORTCONV_F32, 2, 1);
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 1, 2), ts = tensor(state, SHORTCONV_F32, 2, 2);
  shortconv_tensor tp = tensor(positions, SHORTCONV_I64, 1, 1);
  shortconv_tensor tl = tensor(slots, SHORTCONV_I32, 1, 1);
  shortconv_tensor tn = tensor(snapshots, SHORTCONV_I32, 1, 3);
  shortconv_forward_args args = {.struct_size = sizeof args,
                                 .initial_state = SHORTCONV_INITIAL_ALL};
  ts.ndim = 3; /* [2 slots, 2 columns, 1 channel] */
  ts.shape[2] = ts.strides[2] = 1;
  tp.ndim = tl.ndim = 1;
  args.x = &tx, args.out = &ty, args.weight = &tw, args.state = &ts, args.read_slots = &tl;
  args.cache_seqlens = &tp, args.snapshots = &tn;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(y[0] == 1 && y[1] == 2);
  CHECK(state[0] == 3 && state[1] == 2); /* inputs 2 and 1 */
  CHECK(state[2] == 9 && state[3] == 2); /* input 1 */
  args.intermediate_slots = &tl;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
}

/* One column before the history of one, which moves along if asked for. */
static void moves_older_columns_along(void) {
  float x[1] = {5}, y[1] = {0}, w[2] = {1, 0}, state[2] = {3, 4};
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 1, 1), ty = tensor(y, SHORTCONV_F32, 1, 1);
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 1, 2), ts = tensor(state, SHORTCONV_F32, 1, 2);
  shortconv_forward_args args = {.struct_size = sizeof args, .op = SHORTCONV_OP_DECODE};
  ts.ndim = 3; /* [1 slot, 2 columns, 1 channel] */
  ts.shape[2] = ts.strides[2] = ts.strides[1] = 1;
  args.x = &tx, args.out = &ty, args.weight = &tw, args.state = &ts;
  args.base_column = 1;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(y[0] == 4 && state[0] == 3 && state[1] == 5);
  x[0] = 6;
  args.shift_full_state = 1;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_OK);
  CHECK(y[0] == 5 && state[0] == 5 && state[1] == 6);
  args.shift_full_state = 2;
  CHECK(shortconv_forward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "shift_full_state: is 2; expected 0 or 1") != NULL);
}

/* out[t] = x[t - 1] + 2 x[t] of one sequence, with the gradients 1, 10, 100 of out. */
static void computes_gradients(void) {
  float x[3] = {1, 2, 3}, w[2] = {1, 2}, b[1] = {5}, state[1] = {7}, gy[3] = {1, 10, 100};
  float gf[1] = {1000}, gx[3] = {0}, gw[2] = {0}, gb[1] = {0}, gs[1] = {0};
  shortconv_tensor tx = tensor(x, SHORTCONV_F32, 3, 1), tgx = tensor(gx, SHORTCONV_F32, 3, 1);
  shortconv_tensor tw = tensor(w, SHORTCONV_F32, 1, 2), tgw = tensor(gw, SHORTCONV_F32, 1, 2);
  shortconv_tensor tb = tensor(b, SHORTCONV_F32, 1, 1), tgb = tensor(gb, SHORTCONV_F32, 1, 1);
  shortconv_tensor ts = tensor(state, SHORTCONV_F32, 1, 1), tgs = tensor(gs, SHORTCONV_F32, 1, 1);
  shortconv_tensor tgf = tensor(gf, SHORTCONV_F32, 1, 1), tgy = tensor(gy, SHORTCONV_F32, 3, 1);
  shortconv_backward_args args = {.struct_size = sizeof args, .x = &tx, .weight = &tw};
  shortconv_backward_plan plan;
  int64_t bytes = -1;
  tb.ndim = tgb.ndim = 1;
  ts.ndim = tgs.ndim = tgf.ndim = 3; /* [1 sequence, history of 1, 1 channel] */
  ts.shape[2] = ts.strides[2] = 1;
  memcpy(tgs.shape, ts.shape, sizeof ts.shape), memcpy(tgs.strides, ts.strides, sizeof ts.strides);
  memcpy(tgf.shape, ts.shape, sizeof ts.shape), memcpy(tgf.strides, ts.strides, sizeof ts.strides);
  args.bias = &tb, args.initial_state = &ts, args.grad_out = &tgy, args.grad_final_state = &tgf;
  args.grad_x = &tgx, args.grad_weight = &tgw, args.grad_bias = &tgb,
  args.grad_initial_state = &tgs;
  CHECK(shortconv_backward(&args, NULL) == SHORTCONV_OK);
  CHECK(gx[0] == 12 && gx[1] == 120 && gx[2] == 1200 && gs[0] == 1);
  CHECK(gw[0] == 7 + 10 + 200 && gw[1] == 1 + 20 + 300 && gb[0] == 111);

  args.accumulate = 1, args.grad_x = NULL;
  memset(&plan, 0, sizeof plan);
  CHECK(shortconv_run_backward(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "plan: was not made by shortconv_plan_backward") != NULL);
  CHECK(shortconv_backward_workspace_bytes(&plan, &bytes) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(shortconv_plan_backward(&args, &plan) == SHORTCONV_OK);
  CHECK(shortconv_backward_workspace_bytes(&plan, &bytes) == SHORTCONV_OK && bytes == 0);
  CHECK(shortconv_backward_workspace_bytes(&plan, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "bytes: is null") != NULL);
  CHECK(shortconv_run_backward(&plan, &args, NULL) == SHORTCONV_OK);
  CHECK(gw[0] == 2 * 217 && gw[1] == 2 * 321 && gb[0] == 222);
}

static void refuses_gradients_with_a_text(void) {
  float data[24] = {0};
  shortconv_tensor tx = tensor(data, SHORTCONV_F32, 3, 2);
  shortconv_tensor tw = tensor(data + 8, SHORTCONV_F32, 2, 2),
                   tgx = tensor(data + 12, SHORTCONV_F32, 3, 2);
  shortconv_backward_args args = {.struct_size = sizeof args, .x = &tx, .weight = &tw};
  shortconv_backward_plan plan;
  CHECK(shortconv_backward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "grad_out: is null") != NULL);
  args.grad_out = &tx, args.grad_x = &tgx;
  CHECK(shortconv_plan_backward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(shortconv_plan_backward(&args, &plan) == SHORTCONV_OK);
  tgx.strides[0] = 3;
  CHECK(shortconv_run_backward(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "tokens=3") != NULL);
  tgx.strides[0] = 2;
  args.workspace_bytes = -1;
  CHECK(shortconv_run_backward(&plan, &args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "workspace: has -1 bytes; expected 0") != NULL);
  CHECK(shortconv_backward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "workspace_bytes: is -1; expected 0 or more") != NULL);
  args.workspace_bytes = 0;
  args.grad_bias = &tgx;
  CHECK(shortconv_backward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "grad_bias: is given, but bias is absent") != NULL);
  args.grad_bias = NULL;
  args.accumulate = 2;
  CHECK(shortconv_backward(&args, NULL) == SHORTCONV_INVALID_ARGUMENT);
  CHECK(strstr(shortconv_last_error(), "accumulate: is 2; expected 0 or 1") != NULL);
  CHECK(shortconv_backward(NULL, NULL) == SHORTCONV_INVALID_ARGUMENT);
}

static void plans_block_lists(void) {
  const int64_t lengths[5] = {1, 9, 2, 17, 4};
  int32_t sequence[8], offset[8];
  int64_t count = 0;
  CHECK(shortconv_plan_block_list(lengths, 5, sequence, offset, 8, &count) == SHORTCONV_OK);
  CHECK(count == 8 && sequence[7] == 4 && sequence[6] == 3 && offset[6] == 2);
  CHECK(shortconv_plan_block_list(lengths, 5, sequence, offset, 7, &count) ==
        SHORTCONV_INVALID_ARGUMENT);
  CHECK(count == 8);
}

int main(void) {
  CHECK(strcmp(shortconv_version(), "") != 0);
  computes_a_sum_of_products();
  runs_a_plan_only_on_tensors_like_its_own();
  refuses_with_a_text();
  accepts_larger_structs_of_zeros();
  takes_gates_residual_and_dilation();
  verifies_a_tree_and_commits_a_window();
  lists_snapshots_of_full_blocks();
  finds_parents_of_a_tree();
  tells_sequences_apart_by_numbers();
  appends_to_a_ring_and_takes_a_snapshot();
  moves_older_columns_along();
  computes_gradients();
  refuses_gradients_with_a_text();
  test_groups();
  plans_block_lists();
  printf("%d failures\n", failures);
  return failures != 0;
}
