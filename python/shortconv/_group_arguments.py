"""What a call with groups takes besides arrays, and the checks of it in Python. The core checks the
rest.

Source: docs/specification.md of the shortconv repository.
"""

import functools
from typing import Any, Dict, List, NamedTuple, Set, Tuple

from shortconv._core import calls_of


class HeadMap(NamedTuple):
    """Columns of a row that belong to heads.

    Element d of head h is in column
    offset + h // block_heads * block_stride + h % block_heads * head_stride + d.
    """

    offset: int = 0
    head_stride: int = 0  # 0: the heads are adjacent
    block_heads: int = 0  # 0: all heads are in one block
    block_stride: int = 0  # with block_heads


class Group(NamedTuple):
    """Adjacent channels of a convolution that get an output of their own, or copied columns of x.

    heads, head_dim: shape of the output.
    input: the columns of x, in the order of the heads.
    copy: the columns are copied and not convolved.
    l2_norm: divide each head of each token by sqrt(sum of squares + eps), then multiply by scale.
      The norm is of the result after its rounding to the dtype of the output.
    input_scale: the inputs, in states too, are x * input_scale, rounded to the dtype of x.
    """

    heads: int
    head_dim: int
    input: HeadMap = HeadMap()
    copy: bool = False
    l2_norm: bool = False
    eps: float = 1e-6
    scale: float = 1.0
    input_scale: float = 1.0


class Gates(NamedTuple):
    """Gates of a delta rule, f32 for each token and head.

    g = -exp(a_log) * softplus(a + dt_bias), and beta = beta_factor * sigmoid(b).

    a, b: [tokens, columns] or [batch, tokens, columns], any floating dtype.
    a_log: [heads] f32. dt_bias: [heads], any floating dtype.
    a_map, b_map: the columns of the heads.
    decay: "log" for g, "exp" for exp(g).
    beta_factor: 1 or 2.
    round_beta: round sigmoid(b) to the dtype of b first.
    """

    a: Any
    b: Any
    a_log: Any
    dt_bias: Any
    a_map: HeadMap = HeadMap()
    b_map: HeadMap = HeadMap()
    decay: str = "log"
    beta_factor: float = 1.0
    round_beta: bool = False


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise TypeError(f"{name}: is {type(value).__module__}.{type(value).__qualname__}; expected "
                        f"{expected}")


def require_array(name: str, value: Any, axes: Tuple[int, ...] = ()) -> None:
    # Of torch first: older compilers cannot trace the question for __dlpack__.
    require(calls_of[type(value)] is not None or hasattr(value, "__dlpack__"), name, value,
            "an array with DLPack")
    if axes and len(value.shape) not in axes:
        expected = " or ".join(map(str, axes))
        raise ValueError(f"{name}: has {len(value.shape)} axes; expected {expected}")


def _require_map(name: str, value: Any) -> None:
    require(isinstance(value, HeadMap), name, value, "HeadMap")
    for member, number in zip(HeadMap._fields, value):
        require(type(number) is int or hasattr(number, "__index__"), f"{name}.{member}", number,
                "an integer")


def _require_group(name: str, group: Any) -> None:
    require(isinstance(group, Group), name, group, "Group")
    for member in ("heads", "head_dim"):
        number = getattr(group, member)
        require(type(number) is int or hasattr(number, "__index__"), f"{name}.{member}", number,
                "an integer")
        if number < 0:
            raise ValueError(f"{name}.{member}: is {number}; expected 0 or more")
    _require_map(f"{name}.input", group.input)
    for member in ("eps", "scale", "input_scale"):
        number = getattr(group, member)
        require(isinstance(number, (int, float)) or hasattr(number, "__float__"),
                f"{name}.{member}", number, "a number")


class CheckedGroups(NamedTuple):
    """Groups as the operators of torch (maps, numbers) and the core (entries) take them."""

    maps: List[int]
    numbers: List[float]
    entries: List[Tuple[Any, ...]]  # of each group, after its output
    sizes: List[Tuple[int, int]]  # heads, head_dim
    known_calls: Dict[Any, Any]  # of backward_groups; see _torch_gradients


_known: Dict[Any, CheckedGroups] = {}  # of the groups that were checked
_known_maps: Set[Tuple[HeadMap, HeadMap]] = set()  # of gates that were checked
_known_pairs: Dict[Tuple[Any, ...], Tuple[Any, ...]] = {}  # of gates that were checked
_MOST_KNOWN = 1000


def check_groups(groups: Any) -> CheckedGroups:
    require(isinstance(groups, (list, tuple)), "groups", groups, "a sequence of Group")
    for number, group in enumerate(groups):
        _require_group(f"groups[{number}]", group)
    return CheckedGroups(
        [number for group in groups for number in group.input],
        [float(number) for group in groups for number in group[3:]],  # copy and so on
        [(*group.input, bool(group.copy), bool(group.l2_norm), float(group.eps),
          float(group.scale), float(group.input_scale)) for group in groups],
        [(group.heads, group.head_dim) for group in groups],
        {})


def checked_groups(groups: Any) -> CheckedGroups:
    """check_groups, once for each list of groups: it takes longer than the rest of a call."""
    try:
        key = tuple(groups)
        known = _known.get(key)
    except TypeError:  # no sequence, or members that are no numbers
        return check_groups(groups)
    if known is None:
        known = check_groups(groups)
        if len(_known) < _MOST_KNOWN:
            _known[key] = known
    return known


def first_columns(of: HeadMap, heads: int, head_dim: int) -> List[int]:
    """The first column of each head."""
    block_heads = of.block_heads or max(heads, 1)
    return [of.offset + head // block_heads * of.block_stride
            + head % block_heads * (of.head_stride or head_dim) for head in range(heads)]


def covers(groups: Tuple[Group, ...], columns: int) -> bool:
    """Whether groups read every column of x, which has this number of them.

    Raises:
      NotImplementedError: they read a column twice.
    """
    count = sum(group.heads * group.head_dim for group in groups)
    if count > columns:  # before the heads are listed: there may be billions
        raise NotImplementedError(f"groups: read {count} columns, but x has {columns}; a column "
                                  "that is read twice has no gradient")
    heads = sorted((first, first + group.head_dim) for group in groups if group.head_dim > 0
                   for first in first_columns(group.input, group.heads, group.head_dim))
    if any(begin < end for (_, end), (begin, _) in zip(heads, heads[1:])):
        raise NotImplementedError("groups: two of them read the same column of x, which has no "
                                  "gradient; expected different columns")
    return count == columns


def gate_map_covers(name: str, of: HeadMap, heads: int, columns: int) -> bool:
    """Whether the heads of a gate read every column of the argument `name`.

    Raises:
      ValueError: heads read the same column, whose gradient has only one place.
    """
    read = first_columns(of, heads, 1)
    if len(set(read)) != heads:
        raise ValueError(f"{name}_map: two heads read the same column of {name}; expected "
                         "different columns for gradients")
    return heads == columns


_known_covers = functools.lru_cache(maxsize=_MOST_KNOWN)(covers)
_gate_map_known_covers = functools.lru_cache(maxsize=_MOST_KNOWN)(gate_map_covers)


def known_covers(groups: Tuple[Group, ...], columns: int) -> bool:
    """covers, once for each list of groups. Sizes of tensors that are traced have no hash."""
    return (_known_covers if type(columns) is int else covers)(groups, columns)


def gate_map_known_covers(name: str, of: HeadMap, heads: int, columns: int) -> bool:
    """gate_map_covers, once for each map."""
    are_numbers = type(heads) is int and type(columns) is int
    return (_gate_map_known_covers if are_numbers else gate_map_covers)(name, of, heads, columns)


def require_gates(gates: Any) -> None:
    require(isinstance(gates, Gates), "gates", gates, "Gates")
    for name in ("a", "b"):
        require_array(name, getattr(gates, name), (2, 3))
    for name in ("a_log", "dt_bias"):
        require_array(name, getattr(gates, name), (1,))
    _require_map("a_map", gates.a_map)
    _require_map("b_map", gates.b_map)


def require_known_gates(gates: Any) -> None:
    """require_gates, with less work for maps that are known."""
    try:
        if (gates.a_map, gates.b_map) in _known_maps and all(
                hasattr(one, "__dlpack__") for one in gates[:4]) and (
                    len(gates.a.shape) in (2, 3) and len(gates.b.shape) in (2, 3)
                    and len(gates.a_log.shape) == len(gates.dt_bias.shape) == 1):
            return
    except (AttributeError, TypeError):  # no Gates, or maps of other things than numbers
        pass
    require_gates(gates)
    if len(_known_maps) < _MOST_KNOWN:
        _known_maps.add((gates.a_map, gates.b_map))


def _pairs_of(constants: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """Names and values of the members of Gates from a_map on, without those that are defaults."""
    maps, rest = constants[:2], zip(Gates._fields[6:], constants[2:])
    pairs = tuple(part for name, one in zip(("a_map", "b_map"), maps) if one != HeadMap()
                  for part in (name, *one))
    return pairs + tuple(part for name, value in rest if value != Gates._field_defaults[name]
                         for part in (name, value))


def gradient_pairs(gates: Gates) -> Tuple[Any, ...]:
    """gate_pairs for gradients, where roundings count as the identity."""
    return _pairs_of((*gates[4:-1], False))


def gate_pairs(gates: Gates) -> Tuple[Any, ...]:
    """Names and values of what gates have besides arrays, as the core takes them, without defaults.

    Raises:
      ValueError, TypeError: a bad member; the message names it.
    """
    constants = gates[4:]
    pairs = _known_pairs.get(constants)
    if pairs is None:
        require_gates(gates)
        pairs = _pairs_of(constants)
        if len(_known_pairs) < _MOST_KNOWN:
            _known_pairs[constants] = pairs
    return pairs
