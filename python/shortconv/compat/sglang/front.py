"""The front of a gated delta net in one launch, where SGLang has four or five.

SGLang's backend of Qwen3-Next and Qwen3.5 calls causal_conv1d_fn for a batch of prompts, splits its
rows into q, k and v (with torch.split, newer versions with fused_qkv_split_gdn_prefill), computes
the gates with fused_gdn_gating, and hands all five to GDNKernelDispatcher.extend, which calls the
chosen kernel of the delta rule. That of Triton, chunk_gated_delta_rule, normalizes q and k first.

Here these functions return tensors that are not computed yet, and chunk_gated_delta_rule launches
all at once. Other kernels of the delta rule normalize q and k themselves: for them
GDNKernelDispatcher.extend launches all but the norms. Any other use of the rows or gates computes
them with the function that is called. The states are updated when the rows are computed; the
backend does not use them in between.
"""

import functools
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from shortconv._group_arguments import Gates, Group, HeadMap
from shortconv._groups import Grouped
from shortconv._names import argument_names
from shortconv.compat._common import (
    Function,
    Tensor,
    convolve_groups,
    has_fast_groups,
    needs_gradient,
    silu_or_none,
)
from shortconv.compat._deferred import TRANSPOSITIONS, Deferred, as_tensor
from shortconv.compat.sglang.triton import PAD_SLOT_ID
from shortconv.torch import torch

Heads = Tuple[int, int]  # heads of a part and channels of a head

# Keywords of causal_conv1d_fn; a call with others is not deferred.
DEFERRED_ARGUMENTS = frozenset({
    "activation", "block_table", "cache_indices", "conv_states", "has_initial_state", "pad_slot_id",
    "query_start_loc", "seq_lens_cpu"})
_READ_AFTER = ("causal_conv1d_fn: its result is read after the delta rule has normalized q and k "
               "of it; set SHORTCONV_SGLANG=conv to run the functions one by one")


class _Convolution:
    """A call of causal_conv1d_fn. It is launched once, alone or with the work of its users.

    Args:
      plain: the call alone; returns [channels, tokens].
      rows: [tokens, channels].
      arguments: those of convolve_groups between its first one and groups.
    """

    def __init__(self, plain: Callable[[], Tensor], rows: Tensor,
                 arguments: Dict[str, Any]) -> None:
        self.rows = rows
        self._plain, self._arguments = plain, arguments
        self._result: Optional[Tensor] = None
        self._parts: Optional[Tuple[Tensor, ...]] = None
        self._is_normalized = False

    @property
    def is_pending(self) -> bool:
        """Whether nothing has been launched."""
        return self._result is None and self._parts is None and not self._is_normalized

    def computed(self) -> Tensor:
        """The result, [tokens, channels].

        Raises:
          RuntimeError: it exists as normalized q and k only.
        """
        if self._is_normalized:
            raise RuntimeError(_READ_AFTER)
        if self._result is None:
            if self._parts is None:
                self._result = self._plain().T
            else:
                self._result = torch.cat([one.flatten(1) for one in self._parts], 1)
        return self._result

    def part(self, index: int, heads: Tuple[Heads, ...]) -> Tensor:
        """q, k or v, [1, tokens, heads, channels], where they have these heads."""
        if self.is_pending:
            self._parts = self._launch(heads, False, None).groups
        if self._parts is not None and self._parts[index].shape[1:] == heads[index]:
            return self._parts[index][None]
        first = sum(count * size for count, size in heads[:index])
        count, size = heads[index]
        channels = self.computed()[:, first : first + count * size]
        return channels.view(1, -1, count, size)

    def prepared(self, heads: Tuple[Heads, ...], norm: bool, gates: Optional[Gates]) -> Grouped:
        """q, k and v, normalized or not, and the gates, in one launch; if nothing was launched."""
        results: Grouped = self._launch(heads, norm, gates)
        if norm:
            self._is_normalized = True
        else:
            self._parts = results.groups
        return results

    @argument_names({"state": "conv_states", "read_slots": "cache_indices", "a_log": "A_log",
                     "null_slot": "pad_slot_id"}, reversed_from={"x": 2, "state": 3})
    def _launch(self, heads: Tuple[Heads, ...], norm: bool, gates: Optional[Gates]) -> Grouped:
        return convolve_groups(
            self.rows, groups=_groups_of(heads, norm), gates=gates, **self._arguments)


@functools.lru_cache(maxsize=64)
def _groups_of(heads: Tuple[Heads, ...], norm: bool) -> Tuple[Group, ...]:
    """The groups q, k and v of rows with q, k and v one after the other."""
    groups: List[Group] = []
    first = 0
    for index, (count, size) in enumerate(heads):
        groups.append(Group(count, size, HeadMap(first), l2_norm=norm and index < 2))
        first += count * size
    return tuple(groups)


class DeferredRows(Deferred):
    """The result of causal_conv1d_fn. Its transposition and its parts q, k and v are deferred."""

    def __init__(self, call: _Convolution, channels_first: bool) -> None:
        self.call = call
        self._channels_first = channels_first

    @property
    def shape(self) -> Any:
        sizes = self.call.rows.shape
        return torch.Size(sizes[::-1]) if self._channels_first else sizes

    def transpose(self, dim0: int, dim1: int) -> Any:
        if (dim0, dim1) in TRANSPOSITIONS:
            return DeferredRows(self.call, not self._channels_first)
        return self.computed().transpose(dim0, dim1)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            length = self.call.rows.shape[self._channels_first]
            if index.indices(length) == (0, length, 1):
                return self
        return self.computed()[index]

    def __len__(self) -> int:
        return int(self.shape[0])

    def computed(self) -> Tensor:
        rows = self.call.computed()
        return rows.T if self._channels_first else rows

    def split_into(self, channels: Sequence[int], *heads: Heads
                   ) -> Optional[Tuple["DeferredPart", ...]]:
        """q, k and v of these numbers of channels. None: these are not all of the rows.

        Args:
          heads: those of q, k and v, if they are known.
        """
        call = self.call
        if self._channels_first or len(channels) != 3 or sum(channels) != call.rows.shape[1]:
            return None
        known: List[Optional[Heads]] = [*heads] or [None, None, None]
        return (DeferredPart(call, known, channels, 0, bool(heads)),
                DeferredPart(call, known, channels, 1, bool(heads)),
                DeferredPart(call, known, channels, 2, bool(heads)))

    @classmethod
    def __torch_function__(cls, function: Function, types: Any, arguments: Tuple[Any, ...] = (),
                           options: Optional[Dict[str, Any]] = None) -> Any:
        if function is torch.split and len(arguments) == 2 and options in ({"dim": -1}, {"dim": 1}):
            rows, channels = arguments
            if isinstance(rows, cls) and isinstance(channels, (list, tuple)):
                parts = rows.split_into(channels)
                if parts is not None:
                    return parts
        return super().__torch_function__(function, types, arguments, options)


class DeferredPart(Deferred):
    """q, k or v: [tokens, channels], and after view() [1, tokens, heads, channels].

    Args:
      heads: those of q, k and v, as far as view() has named them; shared by the three parts.
    """

    def __init__(self, call: _Convolution, heads: List[Optional[Heads]], channels: Sequence[int],
                 index: int, has_heads: bool = False) -> None:
        self._call, self._heads, self._channels, self._index = call, heads, channels, index
        self._has_heads = has_heads

    @property
    def shape(self) -> Any:
        tokens = self._call.rows.shape[0]
        heads = self._heads[self._index] if self._has_heads else None
        return torch.Size((tokens, self._channels[self._index]) if heads is None
                          else (1, tokens, *heads))

    @property
    def dtype(self) -> Any:
        return self._call.rows.dtype

    @property
    def device(self) -> Any:
        return self._call.rows.device

    def view(self, *sizes: Any) -> Any:
        tokens, channels = self._call.rows.shape[0], self._channels[self._index]
        if not self._has_heads and len(sizes) == 4 and sizes[:2] == (1, tokens):
            if sizes[2] * sizes[3] == channels and self._heads[self._index] in (None, sizes[2:]):
                self._heads[self._index] = sizes[2:]
                return DeferredPart(self._call, self._heads, self._channels, self._index, True)
        return self.computed().view(*sizes)

    def computed(self) -> Tensor:
        if self._has_heads and None not in self._heads:
            return self._call.part(self._index, tuple(self._heads))  # type: ignore[arg-type]
        first = sum(self._channels[: self._index])
        part = self._call.computed()[:, first : first + self._channels[self._index]]
        return part.view(self.shape) if self._has_heads else part

    def prepared(self, k: Any, v: Any, g: Any, beta: Any, norm: bool
                 ) -> Optional[Tuple[Any, ...]]:
        """q (this part), k, v, g and beta in one launch; gates of other tensors stay as they are.

        Returns:
          None: they are not the parts of one convolution, or it has been launched.
        """
        parts = (self, k, v)
        for index, part in enumerate(parts):
            if not (isinstance(part, DeferredPart) and part._heads is self._heads
                    and part._index == index and part._has_heads):
                return None
        if not self._call.is_pending:
            return None
        gates = _gates_of(g, beta, self._call.rows.shape[0], v.shape[2])
        heads: Any = tuple(self._heads)
        results = self._call.prepared(heads, norm, gates)
        q, k, v = results.groups
        if gates is not None:
            g, beta = results.g.unsqueeze(0), results.beta.unsqueeze(0)
        return q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), g, beta


class _GatesCall:
    """A call of fused_gdn_gating, which is made once, if its results are read."""

    def __init__(self, original: Function, arguments: Tuple[Any, ...], gates: Gates) -> None:
        self._original, self._arguments, self.gates = original, arguments, gates
        self._results: Optional[Tuple[Tensor, Tensor]] = None

    def results(self) -> Tuple[Tensor, Tensor]:
        """g and beta, [1, tokens, heads] f32."""
        if self._results is None:
            self._results = self._original(*self._arguments)
        return self._results


class DeferredGate(Deferred):
    """g or beta of a delta rule, the results 0 and 1 of `call`."""

    def __init__(self, call: _GatesCall, index: int) -> None:
        self.call, self.index = call, index

    @property
    def shape(self) -> Any:
        return torch.Size((1, *self.call.gates.a.shape))

    def computed(self) -> Tensor:
        return self.call.results()[self.index]


def _gates_of(g: Any, beta: Any, tokens: int, heads: int) -> Optional[Gates]:
    """The arguments of these gates. None: they are tensors, or of other rows."""
    if not (isinstance(g, DeferredGate) and isinstance(beta, DeferredGate)
            and g.call is beta.call and (g.index, beta.index) == (0, 1)):
        return None
    gates = g.call.gates
    return gates if gates.a.shape == (tokens, heads) else None


def deferred_conv1d_fn_of(original: Function) -> Function:
    """causal_conv1d_fn (`original`, ours) that returns DeferredRows.

    Calls with other arguments than SGLang's backend passes, without rows, or with types and layouts
    for which the front is no single launch, run at once.
    """

    @functools.wraps(original)
    def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None,
                         *positional: Any, **named: Any) -> Any:
        plain = functools.partial(original, x, weight, bias, *positional, **named)
        bounds, state = named.get("query_start_loc"), named.get("conv_states")
        if (positional or named.keys() - DEFERRED_ARGUMENTS or bounds is None or x.dim() != 2
                or x.shape[1] == 0 or torch.compiler.is_compiling()
                or needs_gradient(x, weight, bias)):
            return plain()
        rows = x.T
        # f32 takes several launches. There the front is for comparing answers, not for speed.
        if x.dtype != torch.float32 and not has_fast_groups(rows, weight, state):
            return plain()
        arguments = {
            "weight": weight, "bias": bias, "conv_states": state,
            "slots": named.get("cache_indices"), "query_start_loc": bounds,
            "has_initial_state": named.get("has_initial_state"),
            "activation": silu_or_none(named.get("activation", "silu")),
            "null_slot": named.get("pad_slot_id", PAD_SLOT_ID)}
        return DeferredRows(_Convolution(plain, rows, arguments), True)

    causal_conv1d_fn.is_deferred = True  # type: ignore[attr-defined]
    return causal_conv1d_fn


def fused_qkv_split_gdn_prefill_of(original: Function) -> Function:
    """fused_qkv_split_gdn_prefill that defers the parts of DeferredRows."""

    def fused_qkv_split_gdn_prefill(
        mixed_qkv: Any,
        num_q_heads: int,
        num_k_heads: int,
        num_v_heads: int,
        head_q: int,
        head_k: int,
        head_v: int,
    ) -> Any:
        heads = ((num_q_heads, head_q), (num_k_heads, head_k), (num_v_heads, head_v))
        if isinstance(mixed_qkv, DeferredRows):
            parts = mixed_qkv.split_into(
                (num_q_heads * head_q, num_k_heads * head_k, num_v_heads * head_v), *heads)
            if parts is not None:
                return parts
        return original(as_tensor(mixed_qkv), num_q_heads, num_k_heads, num_v_heads, head_q, head_k,
                        head_v)

    return fused_qkv_split_gdn_prefill


def fused_gdn_gating_of(original: Function) -> Function:
    """fused_gdn_gating that defers both gates."""

    def fused_gdn_gating(
        A_log: Tensor,
        a: Tensor,
        b: Tensor,
        dt_bias: Tensor,
        beta: float = 1.0,
        threshold: float = 20.0,
    ) -> Any:
        if ((beta, threshold) != (1.0, 20.0) or a.dim() != 2 or a.shape != b.shape
                or A_log.dtype != torch.float32 or A_log.shape != a.shape[1:]
                or torch.compiler.is_compiling() or needs_gradient(A_log, a, b, dt_bias)):
            return original(A_log, a, b, dt_bias, beta, threshold)
        gates = Gates(a, b, A_log, dt_bias, round_beta=True)  # SGLang rounds beta to the type of b
        call = _GatesCall(original, (A_log, a, b, dt_bias, beta, threshold), gates)
        return DeferredGate(call, 0), DeferredGate(call, 1)

    return fused_gdn_gating


def extend_of(original: Function) -> Function:
    """GDNKernelDispatcher.extend that computes what is deferred, unless the kernel does."""

    def extend(
        self: Any,
        q: Any,
        k: Any,
        v: Any,
        g: Any,
        beta: Any,
        *,
        ssm_states: Tensor,
        cache_indices: Tensor,
        query_start_loc: Tensor,
        **kwargs: Any,
    ) -> Any:
        method = getattr(type(self.extend_kernel), "extend", None)
        rule = getattr(method, "__globals__", {}).get("chunk_gated_delta_rule")
        if not hasattr(rule, "is_deferred"):
            found = _prepared(q, k, v, g, beta, False) or (q, k, v, g, beta)
            q, k, v, g, beta = map(as_tensor, found)
        return original(
            self, q, k, v, g, beta, ssm_states=ssm_states, cache_indices=cache_indices,
            query_start_loc=query_start_loc, **kwargs)

    extend.is_deferred = True  # type: ignore[attr-defined]
    return extend


def _prepared(q: Any, k: Any, v: Any, g: Any, beta: Any, norm: bool) -> Optional[Tuple[Any, ...]]:
    """These in one launch. None: they are not deferred, or not of one convolution."""
    return q.prepared(k, v, g, beta, norm) if isinstance(q, DeferredPart) else None


def chunk_gated_delta_rule_of(original: Function) -> Function:
    """chunk_gated_delta_rule that launches everything before it at once, if all is deferred."""

    def chunk_gated_delta_rule(
        q: Any,
        k: Any,
        v: Any,
        g: Any,
        beta: Any,
        scale: Optional[float] = None,
        initial_state: Optional[Tensor] = None,
        initial_state_indices: Optional[Tensor] = None,
        cu_seqlens: Optional[Tensor] = None,
        head_first: bool = False,
        use_qk_l2norm_in_kernel: bool = False,
        inplace_update: bool = True,
    ) -> Any:
        rest = {} if inplace_update else {"inplace_update": False}  # older versions lack it
        prepared = _prepared(q, k, v, g, beta, use_qk_l2norm_in_kernel)
        if prepared is None:
            q, k, v = as_tensor(q), as_tensor(k), as_tensor(v)
        else:
            q, k, v, g, beta = prepared
            use_qk_l2norm_in_kernel = False
        g, beta = as_tensor(g), as_tensor(beta)
        return original(
            q, k, v, g, beta, scale=scale, initial_state=initial_state,
            initial_state_indices=initial_state_indices, cu_seqlens=cu_seqlens,
            head_first=head_first, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **rest)

    chunk_gated_delta_rule.is_deferred = True  # type: ignore[attr-defined]
    return chunk_gated_delta_rule
