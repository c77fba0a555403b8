/* C ABI of shortconv: plain structs, and functions that return 0 or a negative code. For C11 and
 * C++.
 *
 * Structs start with struct_size and may grow at the end: fields missing in an older caller's
 * header count as zero, and fields unknown to an older library must be zero. Functions throw no
 * exceptions. State between calls: a thread-local error message and, on a CPU, buffers of each
 * calling thread and a pool of threads, none of which changes a result. */
#ifndef SHORTCONV_SHORTCONV_H
#define SHORTCONV_SHORTCONV_H

#include <stdint.h>

#include "shortconv/export.h"
#include "shortconv/version.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Results. */
enum {
  SHORTCONV_OK = 0,
  SHORTCONV_INVALID_ARGUMENT = -1, /* the arguments contradict each other or the specification */
  SHORTCONV_UNSUPPORTED = -2,      /* valid, but this backend has no kernel for it */
  SHORTCONV_UNAVAILABLE = -3,      /* backend not built in, or it has no device */
  SHORTCONV_INTERNAL = -4,         /* a defect of the library */
  SHORTCONV_OUT_OF_MEMORY = -5     /* the host has no memory left */
};

/* Element types: DLPack's type code << 8 | bits. */
enum {
  SHORTCONV_I32 = 0x0020,
  SHORTCONV_I64 = 0x0040,
  SHORTCONV_U8 = 0x0108, /* accepted where SHORTCONV_BOOL is */
  SHORTCONV_F16 = 0x0210,
  SHORTCONV_F32 = 0x0220,
  SHORTCONV_F64 = 0x0240, /* reference backend only */
  SHORTCONV_BF16 = 0x0410,
  SHORTCONV_BOOL = 0x0608
};

/* Devices: DLPack's numbers. */
enum { SHORTCONV_CPU = 1, SHORTCONV_CUDA = 2 };

enum { SHORTCONV_OP_FORWARD = 0, SHORTCONV_OP_DECODE = 1, SHORTCONV_OP_VERIFY = 2 };
enum { SHORTCONV_ACTIVATION_NONE = 0, SHORTCONV_ACTIVATION_SILU = 1 };
enum {
  SHORTCONV_SCHEDULE_FLAT = 0,
  SHORTCONV_SCHEDULE_BLOCK_LIST = 1,
  SHORTCONV_SCHEDULE_SEQUENCE_GRID = 2
};
enum { SHORTCONV_PADDED_ZERO = 0, SHORTCONV_PADDED_UNTOUCHED = 1, SHORTCONV_PADDED_COPY = 2 };
enum { SHORTCONV_INITIAL_NONE = 0, SHORTCONV_INITIAL_ALL = 1 };
enum {
  SHORTCONV_BACKEND_AUTO = 0,
  SHORTCONV_BACKEND_REFERENCE = 1,
  SHORTCONV_BACKEND_CPU_SIMD = 2,
  SHORTCONV_BACKEND_CUDA = 3
};

enum { SHORTCONV_MAX_DIMS = 4 };

/* Non-owning view of strided memory; strides are in elements and may be zero or negative. */
typedef struct shortconv_tensor {
  void* data;
  int32_t device_type;
  int32_t device_index;
  int32_t dtype;
  int32_t ndim;
  int64_t shape[SHORTCONV_MAX_DIMS];
  int64_t strides[SHORTCONV_MAX_DIMS];
} shortconv_tensor;

/* One forward, decode or verify call. Null = absent. The members of the same names in ForwardArgs,
 * arguments.hpp, define shapes and semantics. Zeros are the defaults of ForwardArgs. */
typedef struct shortconv_forward_args {
  uint32_t struct_size; /* sizeof(shortconv_forward_args) */
  int32_t op;

  const shortconv_tensor* x;          /* [tokens, channels] or [sequences, tokens, channels] */
  const shortconv_tensor* out;        /* shape of x; may be x itself */
  const shortconv_tensor* weight;     /* [channels, width] */
  const shortconv_tensor* bias;       /* [channels] */
  const shortconv_tensor* input_gate; /* shape and dtype of x */
  int32_t dilation;                   /* 0 counts as 1 */

  /* Epilogue. */
  int32_t activation;
  int32_t residual;                    /* 0 or 1 */
  int32_t reserved;                    /* 0 */
  const shortconv_tensor* output_gate; /* shape and dtype of x */

  /* Sequences. */
  const shortconv_tensor* query_start_loc;   /* [sequences + 1] i32 or i64 */
  const shortconv_tensor* has_initial_state; /* [sequences] bool */
  const shortconv_tensor* seq_idx;           /* [sequences, tokens] or [tokens], i32 or i64 */
  int32_t initial_state;                     /* without has_initial_state */
  int32_t padded_rows;

  /* State pool. */
  const shortconv_tensor* state;         /* [slots, columns >= width - 1, channels] */
  const shortconv_tensor* read_slots;    /* [sequences] i32 or i64 */
  const shortconv_tensor* write_slots;   /* [sequences] i32 or i64 */
  const shortconv_tensor* read_offsets;  /* [sequences] i32 or i64 */
  const shortconv_tensor* cache_seqlens; /* [sequences] i32 or i64 */
  const shortconv_tensor* snapshots;     /* [snapshots, 3] i32 or i64: sequence, token, slot */
  int64_t base_column;
  int64_t null_slot;        /* ignored unless has_null_slot is 1 */
  int32_t has_null_slot;    /* 0 or 1 */
  int32_t shift_full_state; /* 0 or 1 */

  /* Draft tokens. */
  const shortconv_tensor* parents;             /* [tokens] or [sequences, tokens], i32 or i64 */
  const shortconv_tensor* intermediate_states; /* [tokens, width - 1, channels], or
                                                  [sequences, ...] */
  const shortconv_tensor* intermediate_slots;  /* [sequences] i32 or i64 */
  int32_t update_state;                        /* 0 or 1 */

  /* Options. */
  int32_t backend;
  int32_t schedule;
  int32_t threads; /* CPU: upper limit; 0: OMP_NUM_THREADS or processors */
  int64_t max_seqlen;
  const shortconv_tensor* block_sequence; /* [blocks] i32, block-list only */
  const shortconv_tensor* block_offset;   /* [blocks] i32, block-list only */
  const shortconv_tensor* violations;     /* [SHORTCONV_VIOLATIONS, 2] i64: see violation.hpp */
  int32_t no_programmatic_launch;         /* 0 or 1: programmatic_launch of ForwardArgs is false */
  int32_t reserved2;                      /* 0 */
} shortconv_forward_args;

/* Rows in the report of the checked mode; violation.hpp lists them. */
enum { SHORTCONV_VIOLATIONS = 13 };

/* Commits accepted drafts to the pools of all layers. Null = absent. CommitArgs, arguments.hpp,
 * defines shapes, defaults and semantics. */
typedef struct shortconv_commit_args {
  uint32_t struct_size;                        /* sizeof(shortconv_commit_args) */
  int32_t width;                               /* of the convolution */
  const shortconv_tensor* intermediate_states; /* [layers, sequences, rows, channels], or packed */
  const shortconv_tensor* state;               /* [layers, slots, columns >= width - 1, channels] */
  const shortconv_tensor* accepted;            /* [sequences] i32 or i64 */
  const shortconv_tensor* slots;               /* [sequences] i32 or i64 */
  const shortconv_tensor* second_slots;        /* [sequences] i32 or i64 */
  const shortconv_tensor* query_start_loc;     /* [sequences + 1] i32 or i64 */
  int64_t base_column;
  int64_t null_slot; /* ignored unless has_null_slot is 1 */
  int32_t has_null_slot;
  int32_t rows_per_token;
  int32_t backend;
  int32_t threads; /* as of shortconv_forward_args */
} shortconv_commit_args;

/* The gradients of a forward call whose states are functional. Null = absent. BackwardArgs,
 * arguments.hpp, defines shapes and semantics. */
typedef struct shortconv_backward_args {
  uint32_t struct_size; /* sizeof(shortconv_backward_args) */
  int32_t dilation;     /* 0 counts as 1; this and the next two as in the forward call */
  int32_t activation;
  int32_t residual;   /* 0 or 1 */
  int32_t accumulate; /* 0 or 1: add to grad_weight and grad_bias, which are f32 then */
  int32_t backend;
  int32_t threads;  /* as of shortconv_forward_args */
  int32_t reserved; /* 0 */

  /* Inputs of the forward call. */
  const shortconv_tensor* x;               /* [tokens, channels] or [sequences, tokens, channels] */
  const shortconv_tensor* weight;          /* [channels, width] */
  const shortconv_tensor* bias;            /* [channels] */
  const shortconv_tensor* input_gate;      /* shape and dtype of x */
  const shortconv_tensor* output_gate;     /* shape and dtype of x */
  const shortconv_tensor* query_start_loc; /* [sequences + 1] i32 or i64 */
  const shortconv_tensor* seq_idx;         /* [sequences, tokens] or [tokens], i32 or i64 */
  const shortconv_tensor* initial_state;   /* [sequences, (width - 1) * dilation, channels] */

  /* Gradients of its results. */
  const shortconv_tensor* grad_out;         /* shape of x */
  const shortconv_tensor* grad_final_state; /* [sequences, (width - 1) * dilation, channels] */

  /* Gradients to compute. */
  const shortconv_tensor* grad_x;             /* shape and dtype of x */
  const shortconv_tensor* grad_weight;        /* shape of weight; its dtype or f32 */
  const shortconv_tensor* grad_bias;          /* [channels]; dtype of weight or f32 */
  const shortconv_tensor* grad_initial_state; /* shape of initial_state; its dtype or f32 */
  const shortconv_tensor* grad_input_gate;    /* shape and dtype of x */
  const shortconv_tensor* grad_output_gate;   /* shape and dtype of x */

  void* workspace;         /* on the device of x, aligned to 16 bytes */
  int64_t workspace_bytes; /* at least shortconv_backward_workspace_bytes */
} shortconv_backward_args;

/* Columns of a row that belong to heads: element d of head h is in column
 * offset + h / block_heads * block_stride + h % block_heads * head_stride + d. */
typedef struct shortconv_head_map {
  int64_t offset;
  int64_t head_stride; /* 0: the heads are adjacent */
  int64_t block_heads; /* 0: all heads are in one block */
  int64_t block_stride;
} shortconv_head_map;

/* Adjacent channels of a convolution with an output of their own, or columns of x that are copied.
 * ChannelGroup, groups.hpp, defines semantics. */
typedef struct shortconv_channel_group {
  uint32_t struct_size;        /* sizeof(shortconv_channel_group), the same in all groups */
  int32_t copy;                /* 0 or 1 */
  const shortconv_tensor* out; /* [tokens, heads, head_dim] or [sequences, tokens, ...] */
  shortconv_head_map input;    /* columns of x */
  int32_t l2_norm;             /* 0 or 1 */
  float eps;                   /* 0 counts as 1e-6 */
  float scale;                 /* after the norm; 0 counts as 1 */
  float input_scale;           /* 0 counts as 1 */
} shortconv_channel_group;

enum { SHORTCONV_DECAY_LOG = 0, SHORTCONV_DECAY_EXP = 1 };

/* Gates of a delta rule. GateArgs, groups.hpp, defines shapes and semantics. */
typedef struct shortconv_gate_args {
  uint32_t struct_size; /* sizeof(shortconv_gate_args) */
  int32_t decay;
  const shortconv_tensor* a;       /* [tokens, columns] or [sequences, tokens, columns] */
  const shortconv_tensor* b;       /* the same tokens */
  const shortconv_tensor* a_log;   /* [heads] f32 */
  const shortconv_tensor* dt_bias; /* [heads] */
  const shortconv_tensor* g;       /* [tokens, heads] or [sequences, tokens, heads] f32, written */
  const shortconv_tensor* beta;    /* as g */
  shortconv_head_map a_map;
  shortconv_head_map b_map;
  float beta_factor;  /* 1 or 2; 0 counts as 1 */
  int32_t round_beta; /* 0 or 1 */
  int32_t backend;    /* for shortconv_delta_gates */
  int32_t reserved;   /* 0 */
} shortconv_gate_args;

/* A forward or decode call whose channels are divided into groups. GroupedArgs, groups.hpp, defines
 * semantics. */
typedef struct shortconv_grouped_args {
  uint32_t struct_size; /* sizeof(shortconv_grouped_args) */
  int32_t group_count;
  const shortconv_forward_args* forward; /* x is a row of any columns; out is null */
  const shortconv_channel_group* groups;
  const shortconv_gate_args* gates; /* may be null */
} shortconv_grouped_args;

/* The gradients of gates. Null = absent. GateGradientArgs, groups.hpp, defines semantics. */
typedef struct shortconv_gate_gradient_args {
  uint32_t struct_size; /* sizeof(shortconv_gate_gradient_args) */
  int32_t decay;

  /* Inputs of the gates, as in shortconv_gate_args. */
  const shortconv_tensor* a;
  const shortconv_tensor* b;
  const shortconv_tensor* a_log;
  const shortconv_tensor* dt_bias;

  /* Gradients of the gates. */
  const shortconv_tensor* grad_g;    /* shape of g, f32 */
  const shortconv_tensor* grad_beta; /* shape of beta, f32 */

  /* Gradients to compute. */
  const shortconv_tensor* grad_a;       /* shape of a */
  const shortconv_tensor* grad_b;       /* shape of b */
  const shortconv_tensor* grad_a_log;   /* [heads] f32 */
  const shortconv_tensor* grad_dt_bias; /* [heads] */

  shortconv_head_map a_map; /* of a and of grad_a */
  shortconv_head_map b_map; /* of b and of grad_b */
  float beta_factor;        /* 1 or 2; 0 counts as 1 */
  int32_t reserved;         /* 0 */
} shortconv_gate_gradient_args;

/* The gradients of a call with groups. GroupedBackwardArgs, groups.hpp, defines semantics. */
typedef struct shortconv_grouped_backward_args {
  uint32_t struct_size; /* sizeof(shortconv_grouped_backward_args) */
  int32_t group_count;
  const shortconv_backward_args* backward;   /* x and grad_x are rows of any columns; grad_out is
                                              * null */
  const shortconv_channel_group* groups;     /* `out` is the gradient of the output, and read */
  const shortconv_gate_gradient_args* gates; /* may be null */
} shortconv_grouped_backward_args;

/* The norm of groups by itself. L2NormArgs, groups.hpp, defines semantics. */
typedef struct shortconv_l2_norm_args {
  uint32_t struct_size; /* sizeof(shortconv_l2_norm_args) */
  int32_t backend;
  const shortconv_tensor* x;   /* [tokens, heads, head_dim] or [sequences, tokens, ...] */
  const shortconv_tensor* out; /* shape and dtype of x; may be x itself */
  float eps;                   /* 0 counts as 1e-6 */
  float scale;                 /* 0 counts as 1 */
} shortconv_l2_norm_args;

/* A list of snapshots from block tables. BlockSnapshotsArgs, prepare.hpp, defines shapes and
 * semantics. */
typedef struct shortconv_block_snapshots_args {
  uint32_t struct_size; /* sizeof(shortconv_block_snapshots_args) */
  int32_t backend;
  const shortconv_tensor* query_start_loc;     /* [sequences + 1] i32 or i64 */
  const shortconv_tensor* num_computed_tokens; /* [sequences] */
  const shortconv_tensor* block_slots;         /* [sequences, blocks] */
  const shortconv_tensor* snapshots;           /* [rows >= tokens / block_size + sequences, 3] */
  int64_t tokens;
  int64_t block_size;
} shortconv_block_snapshots_args;

/* Parents of draft trees from links. Null = absent. TreeParentsArgs, prepare.hpp, defines shapes
 * and semantics. */
typedef struct shortconv_tree_parents_args {
  uint32_t struct_size; /* sizeof(shortconv_tree_parents_args) */
  int32_t backend;
  const shortconv_tensor* first_child;     /* [sequences, tokens], or [tokens], i32 or i64 */
  const shortconv_tensor* next_sibling;    /* the same shape */
  const shortconv_tensor* query_start_loc; /* [sequences + 1]: ragged trees */
  const shortconv_tensor* parents;         /* the same shape, written */
} shortconv_tree_parents_args;

/* A plan: fixed size, owns nothing, may be copied and kept; valid in this process only. */
typedef struct shortconv_plan {
  uint64_t opaque[192];
} shortconv_plan;

/* As shortconv_plan, of a backward call. */
typedef struct shortconv_backward_plan {
  uint64_t opaque[192];
} shortconv_backward_plan;

/* As shortconv_plan, of a call with groups. */
typedef struct shortconv_grouped_plan {
  uint64_t opaque[448];
} shortconv_grouped_plan;

/* As shortconv_plan, of a backward call with groups. */
typedef struct shortconv_grouped_backward_plan {
  uint64_t opaque[448];
} shortconv_grouped_backward_plan;

/* "major.minor.patch" */
SHORTCONV_API const char* shortconv_version(void);

/* Message of the last failure in this thread; valid until its next failure. Never null. */
SHORTCONV_API const char* shortconv_last_error(void);

/* Validates the arguments and chooses a kernel. Does not read tensor data. */
SHORTCONV_API int shortconv_plan_forward(const shortconv_forward_args* args, shortconv_plan* plan);

/* Runs a plan on the addresses in `args`, whose tensors must have the dtypes, shapes and strides of
 * the plan's. `stream` is a cudaStream_t on CUDA and ignored on the CPU. */
SHORTCONV_API int shortconv_run(const shortconv_plan* plan, const shortconv_forward_args* args,
                                void* stream);

/* Validates, plans and runs. */
SHORTCONV_API int shortconv_forward(const shortconv_forward_args* args, void* stream);

/* The same for gradients. Planning does not look at the workspace, so that a plan says how many
 * bytes a run needs; runs that may overlap need a workspace each. */
SHORTCONV_API int shortconv_plan_backward(const shortconv_backward_args* args,
                                          shortconv_backward_plan* plan);
SHORTCONV_API int shortconv_backward_workspace_bytes(const shortconv_backward_plan* plan,
                                                     int64_t* bytes);
SHORTCONV_API int shortconv_run_backward(const shortconv_backward_plan* plan,
                                         const shortconv_backward_args* args, void* stream);
SHORTCONV_API int shortconv_backward(const shortconv_backward_args* args, void* stream);

/* The same for a call with groups. */
SHORTCONV_API int shortconv_plan_groups(const shortconv_grouped_args* args,
                                        shortconv_grouped_plan* plan);
SHORTCONV_API int shortconv_run_groups(const shortconv_grouped_plan* plan,
                                       const shortconv_grouped_args* args, void* stream);
SHORTCONV_API int shortconv_forward_groups(const shortconv_grouped_args* args, void* stream);

/* The same for the gradients of a call with groups; the workspace is that of `backward`. */
SHORTCONV_API int shortconv_plan_backward_groups(const shortconv_grouped_backward_args* args,
                                                 shortconv_grouped_backward_plan* plan);
SHORTCONV_API int shortconv_backward_groups_workspace_bytes(
    const shortconv_grouped_backward_plan* plan, int64_t* bytes);
SHORTCONV_API int shortconv_run_backward_groups(const shortconv_grouped_backward_plan* plan,
                                                const shortconv_grouped_backward_args* args,
                                                void* stream);
SHORTCONV_API int shortconv_backward_groups(const shortconv_grouped_backward_args* args,
                                            void* stream);

/* The norm and the gates of a call with groups by themselves: one launch each, without a plan. */
SHORTCONV_API int shortconv_l2_norm(const shortconv_l2_norm_args* args, void* stream);
SHORTCONV_API int shortconv_delta_gates(const shortconv_gate_args* args, void* stream);

/* Validates, plans and runs a commit. */
SHORTCONV_API int shortconv_commit(const shortconv_commit_args* args, void* stream);

/* Prepare index tensors of a step on the device: one small launch each, without a plan. */
SHORTCONV_API int shortconv_block_snapshots(const shortconv_block_snapshots_args* args,
                                            void* stream);
SHORTCONV_API int shortconv_tree_parents(const shortconv_tree_parents_args* args, void* stream);

/* The lists for schedule block-list. Writes the required number of entries to `count`, and if it is
 * at most `capacity` the entries; SHORTCONV_INVALID_ARGUMENT otherwise. */
SHORTCONV_API int shortconv_plan_block_list(const int64_t* lengths, int64_t sequences,
                                            int32_t* block_sequence, int32_t* block_offset,
                                            int64_t capacity, int64_t* count);

#ifdef __cplusplus
}
#endif

#endif
