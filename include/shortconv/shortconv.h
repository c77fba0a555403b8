/* C ABI of shortconv: plain structs, functions that return 0 or a negative code. Compiles as C11
 * and C++.
 *
 * Structs start with struct_size and may grow at the end; what an older caller does not have counts
 * as zero, and a newer caller's unknown fields must be zero. No exception crosses. The only state
 * is a thread-local error text. */
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
  SHORTCONV_UNAVAILABLE = -3,      /* backend not built in, or its device is not there */
  SHORTCONV_INTERNAL = -4          /* a defect of the library */
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

/* Non-owning view of strided memory; strides count elements and may be zero or negative. */
typedef struct shortconv_tensor {
  void* data;
  int32_t device_type;
  int32_t device_index;
  int32_t dtype;
  int32_t ndim;
  int64_t shape[SHORTCONV_MAX_DIMS];
  int64_t strides[SHORTCONV_MAX_DIMS];
} shortconv_tensor;

/* One ragged or dense call. Null = absent. Shapes, defaults and meaning are those of ForwardArgs in
 * problem.hpp. */
typedef struct shortconv_forward_args {
  uint32_t struct_size; /* sizeof(shortconv_forward_args) */
  int32_t op;
  const shortconv_tensor* x;                 /* [tokens, channels] or [batch, tokens, channels] */
  const shortconv_tensor* out;               /* shape of x; may be x itself */
  const shortconv_tensor* weight;            /* [channels, width] */
  const shortconv_tensor* bias;              /* [channels] */
  const shortconv_tensor* state;             /* [slots, columns >= width-1, channels] */
  const shortconv_tensor* read_slots;        /* [sequences] i32 or i64 */
  const shortconv_tensor* write_slots;       /* [sequences] */
  const shortconv_tensor* read_offsets;      /* [sequences] */
  const shortconv_tensor* query_start_loc;   /* [sequences + 1] i32 or i64 */
  const shortconv_tensor* has_initial_state; /* [sequences] bool */
  const shortconv_tensor* block_sequence;    /* [blocks] i32, block-list only */
  const shortconv_tensor* block_offset;      /* [blocks] i32, block-list only */
  int64_t state_base;
  int64_t null_slot; /* counts if has_null_slot is not 0 */
  int64_t longest_sequence;
  int32_t has_null_slot;
  int32_t initial_state; /* without has_initial_state */
  int32_t activation;
  int32_t padded_rows;
  int32_t backend;
  int32_t schedule;
  int32_t threads;
  int32_t programmatic_launch; /* 0 or 1: see ForwardArgs, where it is 1 by default */
  /* Since the second version of this struct. */
  const shortconv_tensor* parents;    /* verify: [tokens], or [batch, tokens], i32 or i64 */
  const shortconv_tensor* windows;    /* verify: [tokens, width-1, channels], or [batch, ...] */
  const shortconv_tensor* violations; /* [SHORTCONV_VIOLATIONS, 2] i64: see violation.hpp */
  int32_t advance_state;              /* 0 or 1; verify */
  int32_t keeps_older;                /* 0 or 1; until the third version `reserved`, 0 */
  /* Since the third version of this struct. */
  const shortconv_tensor* ring_positions; /* [sequences] i32 or i64 */
  const shortconv_tensor* snapshots;      /* [snapshots, 3] i32 or i64: sequence, token, slot */
  const shortconv_tensor* window_slots;   /* verify: [sequences] i32 or i64, slots of windows */
  const shortconv_tensor* input_gate;     /* shape and dtype of x */
  const shortconv_tensor* output_gate;    /* shape and dtype of x */
  int32_t residual;                       /* 0 or 1; not with a gate */
  int32_t dilation;                       /* 0 counts as 1 */
  /* Since the fourth version of this struct. */
  const shortconv_tensor* seq_idx; /* [batch, tokens] or [tokens], i32 or i64 */
} shortconv_forward_args;

/* Rows of a report of the checked mode; which is which, violation.hpp says. */
enum { SHORTCONV_VIOLATIONS = 11 };

/* Accepted windows into the pools of all layers. Null = absent. Shapes, defaults and meaning are
 * those of CommitArgs in commit.hpp. */
typedef struct shortconv_commit_args {
  uint32_t struct_size;                    /* sizeof(shortconv_commit_args) */
  int32_t width;                           /* of the convolution */
  const shortconv_tensor* windows;         /* [layers, sequences, rows, channels], or packed */
  const shortconv_tensor* state;           /* [layers, slots, columns >= width-1, channels] */
  const shortconv_tensor* accepted;        /* [sequences] i32 or i64 */
  const shortconv_tensor* slots;           /* [sequences] i32 or i64 */
  const shortconv_tensor* second_slots;    /* [sequences] */
  const shortconv_tensor* query_start_loc; /* [sequences + 1] */
  int64_t state_base;
  int64_t null_slot; /* counts if has_null_slot is not 0 */
  int32_t has_null_slot;
  int32_t token_rows;
  int32_t backend;
  int32_t threads;
} shortconv_commit_args;

/* A list of snapshots from block tables. Shapes and meaning are those of BlockSnapshotsArgs in
 * prepare.hpp. */
typedef struct shortconv_block_snapshots_args {
  uint32_t struct_size; /* sizeof(shortconv_block_snapshots_args) */
  int32_t backend;
  const shortconv_tensor* query_start_loc; /* [sequences + 1] i32 or i64 */
  const shortconv_tensor* computed_tokens; /* [sequences] */
  const shortconv_tensor* block_slots;     /* [sequences, blocks] */
  const shortconv_tensor* snapshots;       /* [rows >= tokens / block_tokens + sequences, 3] */
  int64_t tokens;
  int64_t block_tokens;
} shortconv_block_snapshots_args;

/* Parents of draft trees from links. Null = absent. Shapes and meaning are those of TreeParentsArgs
 * in prepare.hpp. */
typedef struct shortconv_tree_parents_args {
  uint32_t struct_size; /* sizeof(shortconv_tree_parents_args) */
  int32_t backend;
  const shortconv_tensor* first_child;     /* [sequences, tokens], or [tokens], i32 or i64 */
  const shortconv_tensor* next_sibling;    /* the same shape */
  const shortconv_tensor* query_start_loc; /* [sequences + 1]: ragged trees */
  const shortconv_tensor* parents;         /* the same shape, written */
} shortconv_tree_parents_args;

/* A plan: fixed size, owns nothing, may be copied and kept within the process that made it. */
typedef struct shortconv_plan {
  uint64_t opaque[128];
} shortconv_plan;

/* "major.minor.patch" */
SHORTCONV_API const char* shortconv_version(void);

/* Text of this thread's last failure; valid until its next failing call. Never null. */
SHORTCONV_API const char* shortconv_last_error(void);

/* Validates and chooses a kernel. Tensor data is not read. */
SHORTCONV_API int shortconv_plan_forward(const shortconv_forward_args* args, shortconv_plan* plan);

/* Runs a plan on the addresses of `args`, whose shapes must be those the plan was made for.
 * `stream` is a cudaStream_t on CUDA, ignored on the CPU. */
SHORTCONV_API int shortconv_run(const shortconv_plan* plan, const shortconv_forward_args* args,
                                void* stream);

/* Both in one. */
SHORTCONV_API int shortconv_forward(const shortconv_forward_args* args, void* stream);

/* Validates, plans and runs a commit. */
SHORTCONV_API int shortconv_commit(const shortconv_commit_args* args, void* stream);

/* Prepare index tensors of a step on the device: nothing to plan, one small launch each. */
SHORTCONV_API int shortconv_block_snapshots(const shortconv_block_snapshots_args* args,
                                            void* stream);
SHORTCONV_API int shortconv_tree_parents(const shortconv_tree_parents_args* args, void* stream);

/* The lists of schedule block-list. Writes at most `capacity` entries to each and the number needed
 * to `count`; SHORTCONV_INVALID_ARGUMENT if they did not fit. */
SHORTCONV_API int shortconv_plan_block_list(const int64_t* lengths, int64_t sequences,
                                            int32_t* block_sequence, int32_t* block_offset,
                                            int64_t capacity, int64_t* count);

#ifdef __cplusplus
}
#endif

#endif
