"""The front of a gated delta net in one launch, where vLLM has two functions.

vLLM's layer of Qwen3-Next and Qwen3.5 calls causal_conv1d_fn for a batch with prompts, and then
fused_post_conv_prep with the rows of its result that belong to prompts: it splits them into q, k
and v, normalizes q and k, and computes the gates. The rows of decodes, which come first in a batch,
go to another kernel.

Here the first function returns rows that are not computed yet (DeferredRows), and the second one
launches both. Any other use of such rows computes the convolution first. The states are updated
when the rows are computed; the layer does not use them in between.
"""

import functools
from typing import Any, Callable, Optional, Tuple, Union

from shortconv.compat._common import Function, Tensor, has_fast_groups, needs_gradient, silu_or_none
from shortconv.compat._deferred import TRANSPOSITIONS, Deferred
from shortconv.compat.vllm.functions import (
    NULL_BLOCK_ID,
    PAD_SLOT_ID,
    Prepared,
    causal_conv1d_fn,
    prepare_rows,
)
from shortconv.torch import torch

# query_start_loc, cache_indices, has_initial_state
Sequences = Tuple[Tensor, Optional[Tensor], Optional[Tensor]]


class _Convolution:
    """A call of causal_conv1d_fn with the rows that have been computed so far.

    Rows [0, decode_tokens) are one part of the batch and the rest is another, so that the first can
    be convolved and the second fused. decode_tokens is 0 if the batch has no decodes, or if its
    metadata do not tell where they end.
    """

    # Set by what runs; in the class, because a layer makes such a call each time.
    _all_rows: Optional[Tensor] = None
    _decode_rows: Optional[Tensor] = None
    _fused_from: Optional[int] = None  # the rows from here on exist as q, k and v only

    def __init__(self, rows: Tensor, weights: Tuple[Tensor, Optional[Tensor], Tensor],
                 sequences: Sequences, activation: Union[bool, str, None],
                 null_block_id: Optional[int], metadata: Any) -> None:
        self.rows = rows  # [tokens, channels]
        self.tokens = tokens = rows.shape[0]
        self._weights, self._sequences = weights, sequences
        self._activation, self._null_block_id = activation, null_block_id
        decodes, self._decode_tokens = _decodes_of(metadata, sequences[0], tokens)
        self._prompts = sequences
        if decodes:
            bounds, slots, resumed = sequences
            self._prompts = (metadata.prefill_query_start_loc,
                             None if slots is None else slots[decodes:],
                             None if resumed is None else resumed[decodes:])
            self._decodes = (bounds[: decodes + 1], slots, resumed)

    def computed(self, first: int, last: int) -> Tensor:
        """Rows of the result, [last - first, channels]. Launches what has not run.

        Raises:
          RuntimeError: fused_post_conv_prep had these rows before.
        """
        if first == last:
            return self.rows.new_empty(0, self.rows.shape[1])
        if self._fused_from is not None and last > self._fused_from:
            raise RuntimeError(
                "causal_conv1d_fn: rows of its result are read after fused_post_conv_prep, which "
                "replaced them by q, k and v; set SHORTCONV_VLLM=conv,gates,metadata to run the "
                "functions one by one")
        if self._all_rows is not None:
            return self._all_rows[first:last]
        if last <= self._decode_tokens:
            if self._decode_rows is None:
                self._decode_rows = self._run(self.rows[: self._decode_tokens], self._decodes)
            return self._decode_rows[first:last]
        if self._decode_rows is None:
            self._all_rows = self._run(self.rows, self._sequences)
        else:
            prompts = self._run(self.rows[self._decode_tokens:], self._prompts)
            self._all_rows = torch.cat([self._decode_rows, prompts])
        return self._all_rows[first:last]

    def prepared(self, first: int, last: int, a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor,
                 num_k_heads: int, head_k_dim: int, head_v_dim: int, apply_l2norm: bool,
                 output_g_exp: bool) -> Optional[Prepared]:
        """The convolution and fused_post_conv_prep of these rows in one launch.

        Returns:
          None: the rows are not a part of the batch, have been computed, or the shapes and types
          are not those of a gated delta net. Then nothing has been launched.
        """
        if last != self.tokens or self._all_rows is not None or self._fused_from is not None:
            return None
        if first == 0 and self._decode_rows is None:
            rows, sequences = self.rows, self._sequences
        elif first == self._decode_tokens:
            rows, sequences = self.rows[first:], self._prompts
        else:
            return None
        heads = A_log.shape
        if (len(heads) != 1 or A_log.dtype != torch.float32
                or rows.shape[1] != 2 * num_k_heads * head_k_dim + heads[0] * head_v_dim
                or not a.shape == b.shape == (last - first, heads[0])):
            return None
        self._fused_from = first
        results: Prepared = prepare_rows(
            rows, *self._weights, sequences[0], a, b, A_log, dt_bias, num_k_heads, head_k_dim,
            head_v_dim, apply_l2norm, output_g_exp, sequences[1], sequences[2], self._activation,
            self._null_block_id)
        return results

    def _run(self, rows: Tensor, sequences: Sequences) -> Tensor:
        out: Tensor = causal_conv1d_fn(
            rows.T, *self._weights, *sequences, activation=self._activation,
            null_block_id=self._null_block_id)
        return out.T


def _decodes_of(metadata: Any, query_start_loc: Tensor, tokens: int) -> Tuple[int, int]:
    """The numbers of sequences and tokens of the decodes at the beginning of a batch.

    (0, 0): there are none, or the metadata have no bounds of the prompts alone.
    """
    decodes = getattr(metadata, "num_decodes", 0)
    if decodes < 1:
        return 0, 0
    bounds = getattr(metadata, "prefill_query_start_loc", None)
    decode_tokens = getattr(metadata, "num_decode_tokens", 0)
    if bounds is None or not 0 < decode_tokens < tokens:
        return 0, 0
    if bounds.shape[0] != query_start_loc.shape[0] - decodes:
        return 0, 0
    return decodes, decode_tokens


class DeferredRows(Deferred):
    """Rows of a convolution. A transposition and a range of tokens are deferred as well."""

    def __init__(self, call: _Convolution, first: int, last: int, channels_first: bool) -> None:
        self._call, self._first, self._last = call, first, last
        self._channels_first = channels_first

    @property
    def shape(self) -> Any:
        sizes = (self._last - self._first, self._call.rows.shape[1])
        return torch.Size(sizes[::-1] if self._channels_first else sizes)

    def transpose(self, dim0: int, dim1: int) -> Any:
        if (dim0, dim1) in TRANSPOSITIONS:
            return DeferredRows(self._call, self._first, self._last, not self._channels_first)
        return self.computed().transpose(dim0, dim1)

    def __getitem__(self, index: Any) -> Any:
        if self._channels_first or not isinstance(index, slice) or index.step not in (None, 1):
            return self.computed()[index]
        first, last, _ = index.indices(self._last - self._first)
        last = max(first, last)
        return DeferredRows(self._call, self._first + first, self._first + last, False)

    def computed(self) -> Tensor:
        """These rows as a tensor."""
        rows = self._call.computed(self._first, self._last)
        return rows.T if self._channels_first else rows

    def prepared(self, a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, num_k_heads: int,
                 head_k_dim: int, head_v_dim: int, apply_l2norm: bool, output_g_exp: bool
                 ) -> Optional[Prepared]:
        """See _Convolution.prepared."""
        if self._channels_first:
            return None
        return self._call.prepared(
            self._first, self._last, a, b, A_log, dt_bias, num_k_heads, head_k_dim, head_v_dim,
            apply_l2norm, output_g_exp)


@functools.wraps(causal_conv1d_fn)
def deferred_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Optional[Tensor] = None,
    has_initial_state: Optional[Tensor] = None,
    activation: Union[bool, str, None] = "silu",
    pad_slot_id: int = PAD_SLOT_ID,
    null_block_id: Optional[int] = NULL_BLOCK_ID,
    *block_arguments: Any,
    metadata: Any = None,
    validate_data: bool = False,
    **blocks: Any,
) -> Any:
    """causal_conv1d_fn that returns DeferredRows where one launch can do the work of the front.

    Calls with other arguments of prefix caching, with a table of blocks, or with types and layouts
    for which the front is no single launch, run at once.
    """
    is_plain = not block_arguments and (
        not blocks or all(one is None for one in blocks.values())) and x.dim() == 2 and (
            cache_indices is None or cache_indices.dim() == 1)
    if is_plain and not torch.compiler.is_compiling() and not needs_gradient(x, weight, bias):
        rows = x.T
        # f32 takes several launches. There the front is for comparing answers, not for speed.
        if x.dtype == torch.float32 or has_fast_groups(rows, weight, conv_states):
            silu_or_none(activation)  # refuses others now
            call = _Convolution(
                rows, (weight, bias, conv_states),
                (query_start_loc, cache_indices, has_initial_state), activation, null_block_id,
                metadata)
            return DeferredRows(call, 0, call.tokens, True)
    return causal_conv1d_fn(
        x, weight, bias, conv_states, query_start_loc, cache_indices, has_initial_state, activation,
        pad_slot_id, null_block_id, *block_arguments, **blocks)


def fused_post_conv_prep_of(original: Function) -> Callable[..., Prepared]:
    """fused_post_conv_prep that launches the convolution of DeferredRows with its own work, and is
    the original for all else."""

    def fused_post_conv_prep(
        conv_output: Any,
        a: Tensor,
        b: Tensor,
        A_log: Tensor,
        dt_bias: Tensor,
        num_k_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        apply_l2norm: bool = True,
        output_g_exp: bool = False,
    ) -> Prepared:
        if isinstance(conv_output, DeferredRows):
            prepared = conv_output.prepared(a, b, A_log, dt_bias, num_k_heads, head_k_dim,
                                            head_v_dim, apply_l2norm, output_g_exp)
            if prepared is not None:
                return prepared
            conv_output = conv_output.computed()
        results: Prepared = original(conv_output, a, b, A_log, dt_bias, num_k_heads, head_k_dim,
                                     head_v_dim, apply_l2norm, output_g_exp)
        return results

    return fused_post_conv_prep
