"""The compiled core: one module of functions that take their arguments by position."""

import os

import tvm_ffi

# What no backend can do is not the arguments' fault; tvm_ffi does not know the word yet.
tvm_ffi.error.register_error("NotImplementedError", NotImplementedError)

_module = tvm_ffi.load_module(os.path.join(os.path.dirname(__file__), "_shortconv.so"))

forward = _module.forward
commit = _module.commit
block_snapshots = _module.block_snapshots
tree_parents = _module.tree_parents
capabilities = _module.capabilities
version = _module.version
