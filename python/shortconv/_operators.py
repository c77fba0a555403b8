"""The operators. Each is one call into the core, which checks, plans and launches.

Arrays are torch tensors, CuPy or numpy arrays, or anything that speaks DLPack; none is copied, and
any strides will do. Element types are f32, f16 and bf16 (f64 in shortconv.reference); index arrays
are i32 or i64 on the device of x. Nothing waits for the device, and the host needs no lengths.
There are no gradients: torch does not know that outputs depend on inputs.

Every function raises ValueError for arguments that contradict each other or the specification,
NotImplementedError for what a backend has no kernel for, RuntimeError where a backend or its device
is not there, always before anything is written. Messages name the argument, what was expected and
what came.

Source: docs/specification.md of the shortconv repository.
"""

from typing import Any, Optional

from shortconv import _core
from shortconv._arrays import kinds

Array = Any  # what DLPack can share


def forward(
    x: Array,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    out: Optional[Array] = None,
    state: Optional[Array] = None,
    read_slots: Optional[Array] = None,
    write_slots: Optional[Array] = None,
    read_offsets: Optional[Array] = None,
    state_base: int = 0,
    keeps_older: bool = False,
    null_slot: Optional[int] = None,
    ring_positions: Optional[Array] = None,
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
) -> Array:
    """Convolves a ragged or dense batch and keeps the state of each sequence.

    Args:
      x: [tokens, channels] with query_start_loc (one sequence without), or [batch, tokens,
        channels].
      weight: [channels, width], width 2 to 64; the last tap multiplies the current token.
      bias: [channels], dtype of weight.
      out: shape of x, written and returned; may be x itself. None: an array like x.
      state: [slots, columns >= width - 1, channels], raw inputs, newest last; written in place.
      read_slots: [sequences]; None: slot = sequence number. A negative one, null_slot or one
        outside of the pool is padding: its sequence is skipped.
      write_slots: [sequences]; where final states go. None: as read_slots; negative: not kept.
      read_offsets: [sequences]; columns to skip when reading, clamped to the pool.
      state_base: first column of the state that belongs to the history.
      keeps_older: the columns before state_base hold older inputs, which move along: a slot's first
        state_base + history columns are its newest inputs afterwards. False: they stay as they are.
      null_slot: a slot that means padding.
      ring_positions: [sequences]; slots are rings: how many inputs each sequence has had before
        this call. Its input number n lies in column n modulo columns.
      snapshots: [snapshots, 3], rows (sequence, token, slot): the slot receives the state that a
        call ending before this token would leave. Rows of no sequence, token or slot are ignored.
      query_start_loc: [sequences + 1]; rows of sequence s are query_start_loc[s] up to
        query_start_loc[s + 1].
      has_initial_state: [sequences] bool; which sequences continue from their slot.
      initial_state: without flags: whether all do.
      seq_idx: [batch, tokens], or [tokens], as x has it: a row of the batch holds several sequences,
        as training packs them. A new number begins one from zeros, negative numbers are padding. The
        state is read, by what begins the row, and not written. Without query_start_loc.
      input_gate: shape and dtype of x: the inputs, states too, are x * input_gate, rounded to that
        dtype.
      output_gate: shape and dtype of x: multiplied with the activation's result in fp32.
      residual: add the token's own input to the activation's result; not with a gate.
      dilation: tokens from one tap to the next; the history is (width - 1) * dilation inputs, 63 at
        most, of which the state needs that many columns.
      activation: None or "silu".
      padded_rows: what rows of skipped sequences, and rows of no sequence, hold afterwards: "zero"
        (also None), "untouched" or "copy" (of x).
      violations: [11, 2] i64, written: the checked mode's report of bad index values.
      backend: None, "cpu", "cuda" or "reference".
      threads: CPU: how many to use; 0: as many as OpenMP offers.
      programmatic_launch: CUDA: the kernel may start while the one before it is ending, where that
        is faster; it waits for that one before it reads or writes.
      stream: CUDA: a stream's handle or an object with __cuda_stream__. None: the current stream of
        the library that x comes from.

    Returns:
      out.
    """
    empty_like, current_stream = kinds[type(x)]
    if out is None:
        out = empty_like(x)
    if stream is None and current_stream is not None:
        stream = current_stream(x)
    if (
        ring_positions is None and write_slots is None and state_base == 0 and residual is False
        and read_offsets is None and snapshots is None and input_gate is None
        and output_gate is None and dilation == 1 and backend is None and violations is None
        and threads == 0 and programmatic_launch is True and stream is None
        and keeps_older is False and seq_idx is None
    ):  # nearly always, and each argument less saves time
        if null_slot is None and padded_rows is None:
            _core.forward(
                _core.FORWARD, x, out, weight, bias, state, read_slots, query_start_loc,
                has_initial_state, initial_state, activation,
            )
            return out
        _core.forward(
            _core.FORWARD, x, out, weight, bias, state, read_slots, query_start_loc,
            has_initial_state, initial_state, activation, null_slot, padded_rows,
        )
        return out
    _core.forward(
        _core.FORWARD, x, out, weight, bias, state, read_slots, query_start_loc, has_initial_state,
        initial_state, activation, null_slot, padded_rows, ring_positions, write_slots, state_base,
        residual, keeps_older, read_offsets, snapshots, None, None, None, None, seq_idx, input_gate,
        output_gate, dilation, backend, violations, threads, programmatic_launch, stream,
    )
    return out


def decode(
    x: Array,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    state: Array,
    out: Optional[Array] = None,
    read_slots: Optional[Array] = None,
    write_slots: Optional[Array] = None,
    read_offsets: Optional[Array] = None,
    state_base: int = 0,
    keeps_older: bool = False,
    null_slot: Optional[int] = None,
    ring_positions: Optional[Array] = None,
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
) -> Array:
    """Convolves one or a few new tokens of each sequence; every sequence continues from its slot.

    Args:
      x: [sequences, channels] (one token each) or [sequences, tokens, channels].
      out: shape of x; may be x itself. None: an array like x.
      has_initial_state: [sequences] bool; sequences without it start from zeros.

    The other arguments, the errors and the result are those of forward.
    """
    empty_like, current_stream = kinds[type(x)]
    if out is None:
        out = empty_like(x)
    if stream is None and current_stream is not None:
        stream = current_stream(x)
    if (
        ring_positions is None and write_slots is None and state_base == 0 and residual is False
        and read_offsets is None and snapshots is None and input_gate is None
        and output_gate is None and dilation == 1 and backend is None and violations is None
        and threads == 0 and programmatic_launch is True and stream is None
        and keeps_older is False
    ):
        if null_slot is None and padded_rows is None:
            _core.forward(
                _core.DECODE, x, out, weight, bias, state, read_slots, None, has_initial_state,
                None, activation,
            )
            return out
        _core.forward(
            _core.DECODE, x, out, weight, bias, state, read_slots, None, has_initial_state, None,
            activation, null_slot, padded_rows,
        )
        return out
    _core.forward(
        _core.DECODE, x, out, weight, bias, state, read_slots, None, has_initial_state, None,
        activation, null_slot, padded_rows, ring_positions, write_slots, state_base, residual,
        keeps_older, read_offsets, snapshots, None, None, None, None, None, input_gate, output_gate,
        dilation, backend, violations, threads, programmatic_launch, stream,
    )
    return out


def verify(
    x: Array,
    weight: Array,
    bias: Optional[Array] = None,
    *,
    state: Array,
    out: Optional[Array] = None,
    read_slots: Optional[Array] = None,
    write_slots: Optional[Array] = None,
    read_offsets: Optional[Array] = None,
    state_base: int = 0,
    null_slot: Optional[int] = None,
    ring_positions: Optional[Array] = None,
    query_start_loc: Optional[Array] = None,
    has_initial_state: Optional[Array] = None,
    parents: Optional[Array] = None,
    windows: Optional[Array] = None,
    window_slots: Optional[Array] = None,
    advance_state: bool = False,
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
) -> Array:
    """Convolves draft tokens, as chains or as trees, and leaves states alone unless asked.

    Args:
      x: [tokens, channels] with query_start_loc, or [sequences, tokens, channels].
      out: shape of x; never x itself.
      write_slots: [sequences]; slots for those sequences that are advanced by all their tokens.
      parents: [tokens], or [sequences, tokens] as x has it: a token's parent, counted from the
        first token of its sequence, -1 for none; parents come first. None: chains.
      windows: [tokens, width - 1, channels], or [sequences, tokens, width - 1, channels], dtype of
        state, written: the inputs that a token would leave behind. Equal strides of tokens and
        columns make the windows of a chain overlap.
      window_slots: [sequences]; windows are then [window slots, tokens, width - 1, channels]
        whatever x is, and those of a sequence without a slot there are not kept. They may be
        columns of the state itself: the rolling form, which read_offsets find again.
      advance_state: write final states to read_slots, as forward does.

    The other arguments, the errors and the result are those of forward.
    """
    empty_like, current_stream = kinds[type(x)]
    if out is None:
        out = empty_like(x)
    if stream is None and current_stream is not None:
        stream = current_stream(x)
    _core.forward(
        _core.VERIFY, x, out, weight, bias, state, read_slots, query_start_loc, has_initial_state,
        None, activation, null_slot, padded_rows, ring_positions, write_slots, state_base, residual,
        None, read_offsets, None, parents, windows, window_slots, advance_state, None, input_gate,
        output_gate, 1, backend, violations, threads, programmatic_launch, stream,
    )
    return out


def commit(
    windows: Array,
    state: Array,
    accepted: Array,
    *,
    width: int,
    token_rows: Optional[int] = None,
    slots: Optional[Array] = None,
    second_slots: Optional[Array] = None,
    query_start_loc: Optional[Array] = None,
    state_base: int = 0,
    null_slot: Optional[int] = None,
    backend: Optional[str] = None,
    threads: int = 0,
    stream: Any = None,
) -> Array:
    """Writes the window after each sequence's last accepted draft into its slot, in all layers.

    Args:
      windows: what verify captured, dtype of state: [layers, sequences, rows, channels]. With
        query_start_loc [layers, rows, channels] or [layers, tokens, width - 1, channels].
      state: [layers, slots, columns >= width - 1, channels], written in place.
      accepted: [sequences]; number of the last accepted token, from 0. Negative: nothing to commit.
      width: of the convolution.
      token_rows: rows from one token's window to the next one's: width - 1 (None) where windows lie
        one after the other, 1 where they overlap.
      slots: [sequences]; None: slot = sequence number.
      second_slots: [sequences]; where the window goes as well.
      query_start_loc: [sequences + 1]; bounds of ragged drafts, whose windows are packed.

    The other arguments and the errors are those of forward.

    Returns:
      state.
    """
    _, current_stream = kinds[type(windows)]
    if stream is None and current_stream is not None:
        stream = current_stream(windows)
    _core.commit(
        windows, state, accepted, slots, second_slots, query_start_loc, width,
        width - 1 if token_rows is None else token_rows, state_base, null_slot, backend, threads,
        stream,
    )
    return state


def block_snapshots(
    query_start_loc: Array,
    computed_tokens: Array,
    block_slots: Array,
    *,
    tokens: int,
    block_tokens: int,
    snapshots: Array,
    backend: Optional[str] = None,
    stream: Any = None,
) -> Array:
    """Lists the states that a prefix cache wants of a step, as forward and decode take snapshots.

    Once a step for all layers, from values on the device. Rows that are not needed are (-1, 0, -1).

    Args:
      query_start_loc: [sequences + 1].
      computed_tokens: [sequences]; tokens each sequence had before this step.
      block_slots: [sequences, blocks]; the slot of the state after each full block; negative: none.
      tokens: rows of the packed batch.
      block_tokens: tokens of a block.
      snapshots: [at least tokens // block_tokens + sequences, 3], written.

    Returns:
      snapshots.
    """
    _, current_stream = kinds[type(query_start_loc)]
    if stream is None and current_stream is not None:
        stream = current_stream(query_start_loc)
    _core.block_snapshots(query_start_loc, computed_tokens, block_slots, tokens, block_tokens,
                          snapshots, backend, stream)
    return snapshots


def tree_parents(
    first_child: Array,
    next_sibling: Array,
    parents: Array,
    *,
    query_start_loc: Optional[Array] = None,
    backend: Optional[str] = None,
    stream: Any = None,
) -> Array:
    """Turns the links of draft trees into the parents that verify takes.

    Args:
      first_child, next_sibling: [sequences, tokens], or [tokens] with query_start_loc; numbers
        within the sequence, -1 for none. Token 0 is the root, and links lead to later tokens.
      parents: the same shape, written: -1 for the root and for what is not reached by one way.

    Returns:
      parents.
    """
    _, current_stream = kinds[type(first_child)]
    if stream is None and current_stream is not None:
        stream = current_stream(first_child)
    _core.tree_parents(first_child, next_sibling, query_start_loc, parents, backend, stream)
    return parents
