"""Groups and gates in the words of models: what lies between a layer's projection and its delta
rule or scan.

    front = shortconv.models.gated_delta_net(
        num_k_heads=16, num_v_heads=32, head_k_dim=128, head_v_dim=128, layout="interleaved")
    q, k, v, z = shortconv.forward_groups(
        qkvz, conv_weight, groups=front.groups, activation="silu", state=state, ...).groups

Each function returns a Front: groups for forward_groups and decode_groups, and gates(...) where the
layer has them. What differs between models and kernels, and is easily confused, is an argument:
who normalizes q and k, g or its exponential, and whether beta is rounded.

Source: docs/groups.md of the shortconv repository.
"""

from typing import Any, NamedTuple, Optional, Tuple

from shortconv._group_arguments import Gates, Group, HeadMap


class Front(NamedTuple):
    """Groups of a layer, and the arguments of its gates besides their arrays.

    columns: of a row of the projection.
    channels: of the convolution.
    """

    groups: Tuple[Group, ...]
    columns: int
    channels: int
    gate_maps: Optional[Tuple[HeadMap, HeadMap]] = None
    decay: str = "log"
    beta_factor: float = 1.0
    round_beta: bool = False

    def gates(self, ba: Any, a_log: Any, dt_bias: Any) -> Gates:
        """The gates of a layer.

        Args:
          ba: [tokens, 2 * num_v_heads] or [batch, tokens, 2 * num_v_heads]; the projection of b and
            a, in the order of the layout.
          a_log: [num_v_heads] f32.
          dt_bias: [num_v_heads].

        Raises:
          ValueError: the layer has no gates.
        """
        if self.gate_maps is None:
            raise ValueError("gates: this layer has none")
        a_map, b_map = self.gate_maps
        return Gates(ba, ba, a_log, dt_bias, a_map, b_map, self.decay, self.beta_factor,
                     self.round_beta)


def _require_sizes(**sizes: Any) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: is {size!r}; expected an integer of 1 or more")


def gated_delta_net(
    *,
    num_k_heads: int,
    num_v_heads: int,
    head_k_dim: int,
    head_v_dim: int,
    layout: str = "flat",
    normalize: bool = True,
    copy_z: bool = True,
    decay: str = "log",
    beta_factor: float = 1.0,
    round_beta: bool = False,
    eps: float = 1e-6,
) -> Front:
    """Qwen3-Next, Qwen3.5 and later: groups q, k, v and z.

    Args:
      num_k_heads, num_v_heads: of this rank; num_v_heads is a multiple of num_k_heads.
      layout: "interleaved" (Qwen3-Next: for each key head q, k, its values, their z; b and a
        likewise) or "flat" (Qwen3.5 and later: all of q, then k, v, z; b, then a).
      normalize: q and k are divided by their norms. False for kernels that do so themselves: those
        that decode from packed rows, and Triton's with use_qk_l2norm_in_kernel.
      copy_z: z is written to a dense array too. False: three groups, and z stays where it is.
      decay: "log" for Triton's chunk kernels, "exp" for FlashInfer's, which take exp(g).
      beta_factor: 2 for delta nets with negative eigenvalues (OLMo hybrid).
      round_beta: beta as SGLang has it, rounded to the dtype of b.
      eps: of the norms, added to the sum of squares.

    Raises:
      ValueError: numbers that do not fit to each other, or an unknown layout.
    """
    _require_sizes(num_k_heads=num_k_heads, num_v_heads=num_v_heads, head_k_dim=head_k_dim,
                   head_v_dim=head_v_dim)
    if decay not in ("log", "exp"):
        raise ValueError(f"decay: is {decay!r}; expected 'log' or 'exp'")
    if beta_factor not in (1, 2):
        raise ValueError(f"beta_factor: is {beta_factor!r}; expected 1 or 2")
    if num_v_heads % num_k_heads != 0:
        raise ValueError(f"num_v_heads: is {num_v_heads}, which is no multiple of num_k_heads, "
                         f"{num_k_heads}")
    ratio = num_v_heads // num_k_heads
    if layout == "interleaved":
        block = 2 * head_k_dim + 2 * ratio * head_v_dim
        columns = num_k_heads * block
        maps = (HeadMap(0, block), HeadMap(head_k_dim, block),
                HeadMap(2 * head_k_dim, head_v_dim, ratio, block),
                HeadMap(2 * head_k_dim + ratio * head_v_dim, head_v_dim, ratio, block))
        gate_maps = (HeadMap(ratio, 1, ratio, 2 * ratio), HeadMap(0, 1, ratio, 2 * ratio))
    elif layout == "flat":
        keys, values = num_k_heads * head_k_dim, num_v_heads * head_v_dim
        columns = 2 * keys + 2 * values
        maps = (HeadMap(0), HeadMap(keys), HeadMap(2 * keys), HeadMap(2 * keys + values))
        gate_maps = (HeadMap(num_v_heads), HeadMap(0))
    else:
        raise ValueError(f"layout: is {layout!r}; expected 'interleaved' or 'flat'")
    groups = (Group(num_k_heads, head_k_dim, maps[0], l2_norm=normalize, eps=eps),
              Group(num_k_heads, head_k_dim, maps[1], l2_norm=normalize, eps=eps),
              Group(num_v_heads, head_v_dim, maps[2]),
              Group(num_v_heads, head_v_dim, maps[3], copy=True))
    channels = 2 * num_k_heads * head_k_dim + num_v_heads * head_v_dim
    return Front(groups if copy_z else groups[:3], columns, channels, gate_maps, decay, beta_factor,
                 round_beta)


def kimi_delta_attention(
    *,
    num_heads: int,
    head_dim: int,
    head_v_dim: Optional[int] = None,
    normalize: bool = False,
    eps: float = 1e-6,
) -> Front:
    """Kimi Linear and others with KDA: groups q, k and v of one projection.

    The gate of KDA has a value for each channel and belongs to its chunk kernel.

    Args:
      num_heads: of this rank.
      head_v_dim: None: head_dim.
      normalize: q and k are divided by their norms; most kernels of KDA do so themselves.
      eps: of the norms, added to the sum of squares.
    """
    values = head_dim if head_v_dim is None else head_v_dim
    _require_sizes(num_heads=num_heads, head_dim=head_dim, head_v_dim=values)
    keys = num_heads * head_dim
    groups = (Group(num_heads, head_dim, HeadMap(0), l2_norm=normalize, eps=eps),
              Group(num_heads, head_dim, HeadMap(keys), l2_norm=normalize, eps=eps),
              Group(num_heads, values, HeadMap(2 * keys)))
    channels = 2 * keys + num_heads * values
    return Front(groups, channels, channels)


def mamba2(
    *,
    num_heads: int,
    head_dim: int,
    n_groups: int,
    state_size: int,
    has_z: bool = True,
    has_dt: bool = True,
    input_scales: Tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Front:
    """Mamba-2 (Nemotron-H, Falcon-H1, Granite 4): groups x, B and C of the projection
    [z | x | B | C | dt].

    Args:
      num_heads, head_dim: of x, of this rank.
      n_groups, state_size: of B and C.
      has_z, has_dt: whether the rows begin with z and end with dt.
      input_scales: constants that x, B and C are multiplied with before the convolution
        (Falcon-H1).
    """
    _require_sizes(num_heads=num_heads, head_dim=head_dim, n_groups=n_groups,
                   state_size=state_size)
    if len(input_scales) != 3:
        raise ValueError(f"input_scales: are {len(input_scales)}; expected 3, of x, B and C")
    inner, states = num_heads * head_dim, n_groups * state_size
    first = inner if has_z else 0
    groups = (Group(num_heads, head_dim, HeadMap(first), input_scale=input_scales[0]),
              Group(n_groups, state_size, HeadMap(first + inner), input_scale=input_scales[1]),
              Group(n_groups, state_size, HeadMap(first + inner + states),
                    input_scale=input_scales[2]))
    channels = inner + 2 * states
    return Front(groups, first + channels + (num_heads if has_dt else 0), channels)


def lfm2(*, hidden_size: int) -> Front:
    """LFM2: the projection is [B | C | x]; the convolution's inputs are B * x, its result is
    multiplied with C.

    One group of one head. B and C are columns of the projection: pass
    input_gate=projected[..., :hidden_size] and
    output_gate=projected[..., hidden_size:2 * hidden_size].
    """
    _require_sizes(hidden_size=hidden_size)
    return Front((Group(1, hidden_size, HeadMap(2 * hidden_size)),), 3 * hidden_size, hidden_size)
