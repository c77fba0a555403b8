"""The operators. Each is one call into the core, which checks the arguments, plans and launches.

Arrays are torch tensors, CuPy or numpy arrays, or any other arrays with DLPack. Nothing is copied,
and any strides are accepted. Floating dtypes are f32, f16 and bf16 (f64: only shortconv.reference),
index dtypes i32 and i64. Arrays are on the device of x. No function waits for the device, and the
host needs no lengths. The operators write in place and have no gradients: where torch tensors
require them, the backward pass of the output raises NotImplementedError. shortconv.backward and
shortconv.torch.short_conv have them. To torch, states do not depend on inputs.

numpy arrays may be read-only where they are only read, and of ml_dtypes.bfloat16. numpy passes
neither through DLPack, so that such a call is tried twice, which takes tens of microseconds.

Errors are raised before anything is written. Messages name the argument, what was expected and what
was passed.

Source: docs/specification.md of the shortconv repository.
"""

from typing import Any, Optional, Protocol, Tuple, TypeVar

from shortconv import _core
from shortconv._arrays import call_again, kinds
from shortconv._core import calls_of


class Array(Protocol):
    """An array with DLPack."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> Tuple[int, int]: ...


A = TypeVar("A", bound=Array)


def forward(
    x: A,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    out: Optional[Array] = None,
    state: Optional[Array] = None,
    read_slots: Optional[Array] = None,
    write_slots: Optional[Array] = None,
    read_offsets: Optional[Array] = None,
    base_column: int = 0,
    shift_full_state: bool = False,
    null_slot: Optional[int] = None,
    cache_seqlens: Optional[Array] = None,
    snapshots: Optional[Array] = None,
    query_start_loc: Optional[Array] = None,
    has_initial_state: Optional[Array] = None,
    initial_state: bool = False,
    seq_idx: Optional[Array] = None,
    input_gate: Optional[Array] = None,
    output_gate: Optional[Array] = None,
    residual: bool = False,
    dilation: int = 1,
    activation: Optional[str] = None,
    padded_rows: Optional[str] = None,
    violations: Optional[Array] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    programmatic_launch: bool = True,
    stream: Any = None,
) -> A:
    """Convolves a ragged or dense batch and updates the state of each sequence.

    Args:
      x: [tokens, channels] with query_start_loc (one sequence without), or [batch, tokens,
        channels]; f32, f16 or bf16.
      weight: [channels, width], width 2 to 64; the last tap multiplies the current token.
      bias: [channels], dtype of weight.
      out: shape of x, any floating dtype; written and returned; may be x itself. None: an array
        like x.
      state: [slots, columns, channels], any floating dtype, updated in place: the last inputs of
        each slot's sequence, newest last. The history is the (width - 1) * dilation inputs before a
        token; it needs that many columns from base_column on.
      read_slots: [sequences] i32 or i64; the slot from which each sequence continues. None: slot =
        sequence number. Sequences with a slot that is negative, null_slot or outside the pool are
        padding and are skipped.
      write_slots: [sequences] i32 or i64; the slot of each final state. None: as read_slots;
        negative: the state is not kept.
      read_offsets: [sequences] i32 or i64; columns to skip when reading, clamped to the pool.
      base_column: first column of the history.
      shift_full_state: the columns before base_column hold older inputs and shift with the history:
        afterwards, the first base_column + history columns of a slot are its newest inputs. False:
        these columns are unchanged.
      null_slot: slot that means padding, as every negative one does.
      cache_seqlens: [sequences] i32 or i64; number of inputs of each sequence before this call.
        Slots are then circular buffers: input n of a sequence is in column n modulo columns.
      snapshots: [snapshots, 3] i32 or i64, rows (sequence, token, slot): the slot receives the
        state of the sequence before this token. Rows with a sequence, token or slot that does not
        exist are ignored.
      query_start_loc: [sequences + 1] i32 or i64; sequence s has rows query_start_loc[s] to
        query_start_loc[s + 1].
      has_initial_state: [sequences] bool; which sequences continue from their slot. The others
        start from zeros.
      initial_state: without has_initial_state: whether all sequences continue from their slot.
      seq_idx: [tokens] or [batch, tokens] i32 or i64, as x: packed training batches, with several
        sequences in a row of the batch. A new number starts a sequence from zeros, negative numbers
        are padding. The state is read by the first sequence of a row and not written. Cannot be
        combined with query_start_loc.
      input_gate: shape and dtype of x; the inputs, in states too, are x * input_gate, rounded to
        that dtype.
      output_gate: shape and dtype of x; multiplied with the result of the activation in fp32.
      residual: add the token's own input to the result of the activation. Cannot be combined with a
        gate.
      dilation: tokens from one tap to the next. The history has at most 63 inputs.
      activation: None or "silu".
      padded_rows: contents of the output rows of skipped sequences and of rows without a sequence:
        "zero" (default), "untouched" or "copy" (of x).
      violations: [13, 2] i64, written: counts of bad index values (docs/checked-mode.md).
      backend: None, "cpu", "cuda" or "reference".
      threads: CPU: number of threads; 0: OpenMP's.
      programmatic_launch: CUDA: where that is faster, the kernel may start while the kernel before
        it ends. It waits before it reads or writes arrays.
      stream: CUDA: a stream's handle or an object with __cuda_stream__. None: the current stream of
        the library that x comes from.

    Returns:
      out.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: the arguments contradict each other or the specification.
      NotImplementedError: the backend has no kernel for the call.
      RuntimeError: the backend or its device is not available.
    """
    calls = calls_of[type(x)]
    if calls is None:
        empty_like, current_stream = kinds[type(x)]
        if out is None:
            out = empty_like(x)
        if stream is None and current_stream is not None:
            stream = current_stream(x)
    # One by one: with _core.named a call that has one of them takes 2 us longer.
    rare: Tuple[Any, ...] = ()
    if write_slots is not None:
        rare += "write_slots", write_slots
    if read_offsets is not None:
        rare += "read_offsets", read_offsets
    if base_column != 0:
        rare += "base_column", base_column
    if shift_full_state is not False:
        rare += "shift_full_state", shift_full_state
    if cache_seqlens is not None:
        rare += "cache_seqlens", cache_seqlens
    if snapshots is not None:
        rare += "snapshots", snapshots
    if seq_idx is not None:
        rare += "seq_idx", seq_idx
    if input_gate is not None:
        rare += "input_gate", input_gate
    if output_gate is not None:
        rare += "output_gate", output_gate
    if residual is not False:
        rare += "residual", residual
    if dilation != 1:
        rare += "dilation", dilation
    if violations is not None:
        rare += "violations", violations
    if backend is not None:
        rare += "backend", backend
    if threads != 0:
        rare += "threads", threads
    if programmatic_launch is not True:
        rare += "programmatic_launch", programmatic_launch
    if stream is not None:
        rare += "stream", stream
    if calls is not None and not rare:  # 0.1 us faster
        return calls.run(
            _core.FORWARD, x, out, weight, bias, state, read_slots, query_start_loc,
            has_initial_state, initial_state, activation, null_slot, padded_rows)
    if calls is not None:
        return calls.run(
            _core.FORWARD, x, out, weight, bias, state, read_slots, query_start_loc,
            has_initial_state, initial_state, activation, null_slot, padded_rows, *rare)
    try:
        _core.forward(
            _core.FORWARD, x, out, weight, bias, state, read_slots, query_start_loc,
            has_initial_state, initial_state, activation, null_slot, padded_rows, *rare)
    except BufferError:
        call_again(forward, locals(), "out")
    return out


def decode(
    x: A,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    state: Array,
    out: Optional[Array] = None,
    read_slots: Optional[Array] = None,
    write_slots: Optional[Array] = None,
    read_offsets: Optional[Array] = None,
    base_column: int = 0,
    shift_full_state: bool = False,
    null_slot: Optional[int] = None,
    cache_seqlens: Optional[Array] = None,
    snapshots: Optional[Array] = None,
    has_initial_state: Optional[Array] = None,
    input_gate: Optional[Array] = None,
    output_gate: Optional[Array] = None,
    residual: bool = False,
    dilation: int = 1,
    activation: Optional[str] = None,
    padded_rows: Optional[str] = None,
    violations: Optional[Array] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    programmatic_launch: bool = True,
    stream: Any = None,
) -> A:
    """Convolves one or a few new tokens of each sequence; every sequence continues from its slot.

    Args:
      x: [sequences, channels] (one token each) or [sequences, tokens, channels]; f32, f16 or bf16.
      out: shape of x, any floating dtype; may be x itself. None: an array like x.
      has_initial_state: [sequences] bool; sequences with False start from zeros.

    The other arguments, the result and the errors are those of forward.
    """
    calls = calls_of[type(x)]
    if calls is None:
        empty_like, current_stream = kinds[type(x)]
        if out is None:
            out = empty_like(x)
        if stream is None and current_stream is not None:
            stream = current_stream(x)
    # As in forward.
    rare: Tuple[Any, ...] = ()
    if write_slots is not None:
        rare += "write_slots", write_slots
    if read_offsets is not None:
        rare += "read_offsets", read_offsets
    if base_column != 0:
        rare += "base_column", base_column
    if shift_full_state is not False:
        rare += "shift_full_state", shift_full_state
    if cache_seqlens is not None:
        rare += "cache_seqlens", cache_seqlens
    if snapshots is not None:
        rare += "snapshots", snapshots
    if input_gate is not None:
        rare += "input_gate", input_gate
    if output_gate is not None:
        rare += "output_gate", output_gate
    if residual is not False:
        rare += "residual", residual
    if dilation != 1:
        rare += "dilation", dilation
    if violations is not None:
        rare += "violations", violations
    if backend is not None:
        rare += "backend", backend
    if threads != 0:
        rare += "threads", threads
    if programmatic_launch is not True:
        rare += "programmatic_launch", programmatic_launch
    if stream is not None:
        rare += "stream", stream
    if calls is not None and not rare:
        return calls.run(
            _core.DECODE, x, out, weight, bias, state, read_slots, None, has_initial_state, False,
            activation, null_slot, padded_rows)
    if calls is not None:
        return calls.run(
            _core.DECODE, x, out, weight, bias, state, read_slots, None, has_initial_state, False,
            activation, null_slot, padded_rows, *rare)
    try:
        _core.forward(
            _core.DECODE, x, out, weight, bias, state, read_slots, None, has_initial_state, False,
            activation, null_slot, padded_rows, *rare)
    except BufferError:
        call_again(decode, locals(), "out")
    return out


def verify(
    x: A,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    state: Array,
    out: Optional[Array] = None,
    read_slots: Optional[Array] = None,
    write_slots: Optional[Array] = None,
    read_offsets: Optional[Array] = None,
    base_column: int = 0,
    null_slot: Optional[int] = None,
    cache_seqlens: Optional[Array] = None,
    query_start_loc: Optional[Array] = None,
    has_initial_state: Optional[Array] = None,
    parents: Optional[Array] = None,
    intermediate_states: Optional[Array] = None,
    intermediate_slots: Optional[Array] = None,
    update_state: bool = False,
    input_gate: Optional[Array] = None,
    output_gate: Optional[Array] = None,
    residual: bool = False,
    activation: Optional[str] = None,
    padded_rows: Optional[str] = None,
    violations: Optional[Array] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    programmatic_launch: bool = True,
    stream: Any = None,
) -> A:
    """Convolves draft tokens, as chains or trees. Every sequence continues from its slot.

    States are written only with write_slots or update_state.

    Args:
      x: [tokens, channels] with query_start_loc, or [sequences, tokens, channels]; f32, f16 or
        bf16.
      out: shape of x, any floating dtype; never x itself. None: an array like x.
      write_slots: [sequences] i32 or i64; slots of final states, after all draft tokens. Negative:
        the state is not kept.
      has_initial_state: [sequences] bool; sequences with False start from zeros.
      parents: [tokens] or [sequences, tokens] i32 or i64, as x: a token's parent, counted from the
        first token of its sequence, -1 for none; parents come first. None: chains.
      intermediate_states: [tokens, width - 1, channels] or [sequences, tokens, width - 1,
        channels], as x, dtype of state, written: the state after each token. Equal strides of
        tokens and columns make those of a chain overlap.
      intermediate_slots: [sequences] i32 or i64; intermediate_states is then [intermediate slots,
        tokens, width - 1, channels] whatever x is. Nothing is captured for sequences whose slot is
        negative, null_slot or outside. The intermediate states may be columns of the state itself
        (rolling states); the next call then finds its history with read_offsets.
      update_state: write final states to read_slots, as forward does.

    The other arguments, the result and the errors are those of forward.
    """
    calls = calls_of[type(x)]
    if calls is None:
        empty_like, current_stream = kinds[type(x)]
        if out is None:
            out = empty_like(x)
        if stream is None and current_stream is not None:
            stream = current_stream(x)
    values = (
        _core.VERIFY, x, out, weight, bias, state, read_slots, query_start_loc, has_initial_state,
        False, activation, null_slot, padded_rows, "programmatic_launch", programmatic_launch,
        *_core.named(
            write_slots=write_slots, read_offsets=read_offsets, base_column=base_column,
            cache_seqlens=cache_seqlens, parents=parents, intermediate_states=intermediate_states,
            intermediate_slots=intermediate_slots, update_state=update_state,
            input_gate=input_gate, output_gate=output_gate, residual=residual,
            violations=violations, backend=backend, threads=threads, stream=stream))
    if calls is not None:
        return calls.run(*values)
    try:
        _core.forward(*values)
    except BufferError:
        call_again(verify, locals(), "out")
    return out


def commit(
    intermediate_states: Array,
    state: A,
    accepted: Array,
    *,
    width: int,
    rows_per_token: Optional[int] = None,
    slots: Optional[Array] = None,
    second_slots: Optional[Array] = None,
    query_start_loc: Optional[Array] = None,
    base_column: int = 0,
    null_slot: Optional[int] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    stream: Any = None,
) -> A:
    """Copies the state after each sequence's last accepted token to its slot, in all layers.

    Args:
      intermediate_states: captured by verify, dtype of state: [layers, sequences, rows, channels].
        With query_start_loc [layers, rows, channels] or [layers, tokens, width - 1, channels].
      state: [layers, slots, columns >= width - 1, channels], any floating dtype; written in place.
      accepted: [sequences] i32 or i64; number of the last accepted token in its sequence, from 0.
        Negative: nothing to commit.
      width: width of the convolution.
      rows_per_token: rows from one token's state to the next one's: width - 1 (default), or 1 where
        they overlap.
      slots: [sequences] i32 or i64; None: slot = sequence number.
      second_slots: [sequences] i32 or i64; a second slot that receives the state.
      query_start_loc: [sequences + 1] i32 or i64; bounds of ragged drafts, whose intermediate
        states are packed.
      base_column: first column of the history.

    The other arguments and the errors are those of forward.

    Returns:
      state.
    """
    calls = calls_of[type(intermediate_states)]
    if calls is None:
        calls = _core
        _, current_stream = kinds[type(intermediate_states)]
        if stream is None and current_stream is not None:
            stream = current_stream(intermediate_states)
    try:
        calls.commit(intermediate_states, state, accepted, width, *_core.named(
            rows_per_token=rows_per_token, slots=slots, second_slots=second_slots,
            query_start_loc=query_start_loc, base_column=base_column, null_slot=null_slot,
            backend=backend, threads=threads, stream=stream))
    except BufferError:
        call_again(commit, locals(), "state")
    return state


def block_snapshots(
    query_start_loc: Array,
    num_computed_tokens: Array,
    block_slots: Array,
    *,
    tokens: int,
    block_size: int,
    snapshots: A,
    backend: Optional[str] = None,
    stream: Any = None,
) -> A:
    """Lists the states that a prefix cache needs from a step, as snapshots of forward and decode.

    These are the states after each full block. One call per step serves all layers; it reads the
    values on the device. Unused rows are (-1, 0, -1).

    Args:
      query_start_loc: [sequences + 1] i32 or i64.
      num_computed_tokens: [sequences] i32 or i64; tokens of each sequence before this step.
      block_slots: [sequences, blocks] i32 or i64; the slot of the state after each full block;
        negative: none.
      tokens: number of rows of the packed batch.
      block_size: number of tokens of a block.
      snapshots: [at least tokens // block_size + sequences, 3] i32 or i64, written.

    The other arguments and the errors are those of forward.

    Returns:
      snapshots.
    """
    calls = calls_of[type(query_start_loc)]
    if calls is None:
        calls = _core
        _, current_stream = kinds[type(query_start_loc)]
        if stream is None and current_stream is not None:
            stream = current_stream(query_start_loc)
    try:
        calls.block_snapshots(query_start_loc, num_computed_tokens, block_slots, tokens, block_size,
                              snapshots, backend, stream)
    except BufferError:
        call_again(block_snapshots, locals(), "snapshots")
    return snapshots


def tree_parents(
    first_child: Array,
    next_sibling: Array,
    parents: A,
    *,
    query_start_loc: Optional[Array] = None,
    backend: Optional[str] = None,
    stream: Any = None,
) -> A:
    """Converts the links of draft trees to the parents that verify takes.

    Args:
      first_child, next_sibling: [sequences, tokens], or [tokens] with query_start_loc, i32 or i64;
        token numbers within the sequence, -1 for none. Token 0 is the root, and links lead to later
        tokens.
      parents: the same shape, i32 or i64, written: -1 for the root and for tokens that are not
        reached from it by exactly one path.
      query_start_loc: [sequences + 1] i32 or i64; bounds of ragged trees.

    The other arguments and the errors are those of forward.

    Returns:
      parents.
    """
    calls = calls_of[type(first_child)]
    if calls is None:
        calls = _core
        _, current_stream = kinds[type(first_child)]
        if stream is None and current_stream is not None:
            stream = current_stream(first_child)
    try:
        calls.tree_parents(first_child, next_sibling, query_start_loc, parents, backend, stream)
    except BufferError:
        call_again(tree_parents, locals(), "parents")
    return parents
