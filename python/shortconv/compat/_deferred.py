"""Tensors that are computed when they are used.

An engine calls one function after another, and a single launch can do the work of all of them. So
the first functions return such tensors, and the last one launches everything.
"""

from typing import Any, Dict, Optional, Tuple

from shortconv.compat._common import Function, Tensor
from shortconv.torch import torch

# Arguments of transpose() that exchange the axes of a matrix.
TRANSPOSITIONS = frozenset([(0, 1), (1, 0), (-2, -1), (-1, -2)])


class Deferred:
    """A tensor that is computed when it is used.

    Attributes, methods and operators of tensors, and functions of torch that take it, compute it.
    Derived classes define computed(), and what does not need the values.
    """

    def computed(self) -> Tensor:
        """The tensor."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.computed(), name)

    def __getitem__(self, index: Any) -> Any:
        return self.computed()[index]

    @classmethod
    def __torch_function__(cls, function: Function, types: Any, arguments: Tuple[Any, ...] = (),
                           options: Optional[Dict[str, Any]] = None) -> Any:
        arguments, options = torch.utils._pytree.tree_map(as_tensor, (arguments, options or {}))
        return function(*arguments, **options)


def as_tensor(value: Any) -> Any:
    """A tensor for a deferred one; any other value as it is."""
    return value.computed() if isinstance(value, Deferred) else value


def _operator_of_tensors(name: str) -> Function:
    def call(self: Deferred, *others: Any) -> Any:
        return getattr(self.computed(), name)(*map(as_tensor, others))

    return call


# Python looks for these in the class, not with __getattr__.
for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "matmul",
              "rmatmul", "pow", "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge", "len", "iter",
              "bool", "float", "int", "iadd", "isub", "imul", "itruediv", "setitem"):
    setattr(Deferred, f"__{_name}__", _operator_of_tensors(f"__{_name}__"))
Deferred.__hash__ = object.__hash__  # type: ignore[method-assign]  # __eq__ removed it
