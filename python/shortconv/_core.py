"""The compiled core.

`forward` takes the arguments of most calls by position: op, x, out, weight, bias, state,
read_slots, query_start_loc, has_initial_state, initial_state, activation, null_slot, padded_rows.
Arguments at the end may be omitted. All others follow as pairs of name and value, in any order.
Layouts and some frequent values are added to op.

`backward` takes grad_out, x, weight, bias, grad_x, grad_weight, grad_bias, activation by position.
It returns 0, or without a workspace the bytes that it needs: then it did not run. So does
`backward_groups`, which takes x to activation, the number of groups, and for each of them the
gradient of its output, its map and its options.
"""

import importlib
import os
from typing import Any, Dict, List

import tvm_ffi

# Raised where a backend has no kernel for valid arguments; tvm_ffi does not map this name itself.
tvm_ffi.error.register_error("NotImplementedError", NotImplementedError)



class MayBeNegated(Exception):
    """A tensor may be a lazily negated view; see CHECK_NEGATION."""


tvm_ffi.error.register_error("MayBeNegated", MayBeNegated)

_module = tvm_ffi.load_module(os.path.join(os.path.dirname(__file__), "_shortconv.so"))

forward = _module.forward
backward = _module.backward
backward_groups = _module.backward_groups
commit = _module.commit
forward_groups = _module.forward_groups
l2_norm = _module.l2_norm
delta_gates = _module.delta_gates
block_snapshots = _module.block_snapshots
tree_parents = _module.tree_parents
arguments = _module.arguments
capabilities = _module.capabilities
version = _module.version
violations = _module.violations

FORWARD, DECODE, VERIFY = range(3)  # Op of arguments.hpp
# Layouts, as in bindings/module.cpp.
CHANNELS_FIRST = 4  # x, out: [..., channels, tokens]
STATE_CHANNELS_FIRST = 8  # state: [slots, channels, columns]
FLATTENED = 16  # x, out: [batch, tokens, channels] are read as [tokens, channels]
SHIFT_FULL_STATE = 32  # state: its last width - 1 columns are the history; shift_full_state
# Arguments with one number for each sequence may be longer than the batch; the first ones count.
LONGER_INDICES = 64
# Refuses floating tensors with even strides only, as those of all imaginary parts are: torch's
# lazily negated views among them, whose negation DLPack does not pass. Asking each tensor takes
# 0.1 us.
CHECK_NEGATION = 128
# Frequent values of arguments that are None or left out; a value that is given counts. To pass an
# argument takes 15 ns, a string 80 (one CPU tensor call in a loop, Xeon).
INITIAL_STATE = 256  # initial_state: True
SILU = 512  # activation: "silu"
UNTOUCHED = 1024  # padded_rows: "untouched"


def named(**arguments: Any) -> List[Any]:
    """Pairs of name and value, flattened, for the arguments that are neither None nor False.

    Each pair adds 0.1 us to a call. programmatic_launch is True by default and passed separately.
    """
    return [part for name, value in arguments.items() if value is not None and value is not False
            for part in (name, value)]


class _Calls(Dict[type, Any]):
    """For each type of array shortconv._torch if torch has to see calls with it, otherwise None."""

    def __missing__(self, array_type: type) -> Any:
        is_torch = any(base.__module__.partition(".")[0] == "torch" for base in array_type.__mro__)
        # Only then is torch loaded, and nothing else may load it.
        calls = importlib.import_module("shortconv._torch") if is_torch else None
        self[array_type] = calls
        return calls


calls_of = _Calls()


_check_mode = os.environ.get("SHORTCONV_CHECK", "")
if _check_mode not in ("", "0"):  # chosen here, so that calls without it cost nothing
    from shortconv import _check

    forward = _check.checked(forward, _check_mode, violations())
    forward_groups = _check.checked(forward_groups, _check_mode, violations(), bounds_at=6)
