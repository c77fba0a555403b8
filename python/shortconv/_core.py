"""The compiled core: one module of functions that take their arguments by position.

The first argument of `forward` is an op, to which layouts may be added; arguments at the end may be
left out, and are None then.
"""

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

FORWARD, DECODE, VERIFY = range(3)  # Op of problem.hpp
# Layouts, of bindings/module.cpp.
CHANNELS_FIRST = 4  # x, out: [..., channels, tokens]
STATE_CHANNELS_FIRST = 8  # state: [slots, channels, columns]
FLATTENED = 16  # x, out: [batch, tokens, channels] are [tokens, channels]
ROLLING = 32  # state: its last width - 1 columns are the history, and all of them move along
