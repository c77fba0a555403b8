"""The operator in float64 with numpy, sequence by sequence, as defined in docs/specification.md."""

import numpy as np


def silu(a):
    return a / (1 + np.exp(-a))


def convolve(history, x, weight, bias=None, activation=None):
    """One sequence: history [width - 1, channels], x [tokens, channels]; float64."""
    width = weight.shape[1]
    values = np.concatenate([history, x]).astype(np.float64)
    taps = weight.astype(np.float64)
    y = np.zeros(x.shape, np.float64)
    if bias is not None:
        y += bias.astype(np.float64)
    for tap in range(width):
        y += taps[:, tap] * values[tap : tap + len(x)]
    return silu(y) if activation == "silu" else y


def forward(x, weight, bias=None, *, bounds, state=None, slots=None, write_slots=None, resumed=None,
            activation=None):
    """A ragged batch: outputs (float64) and the updated pool. Rows of padding are zero."""
    y = np.zeros(x.shape, np.float64)
    keep = weight.shape[1] - 1
    state = None if state is None else state.copy()
    before = None if state is None else state.copy()
    for s, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        slot = s if slots is None else slots[s]
        if begin == end or slot < 0:
            continue
        history = np.zeros((keep, x.shape[1]), x.dtype)
        if state is not None and resumed is not None and resumed[s]:
            history = before[slot][:keep]
        y[begin:end] = convolve(history, x[begin:end], weight, bias, activation)
        target = slot if write_slots is None else write_slots[s]
        if state is not None and target >= 0:
            state[target][:keep] = np.concatenate([history, x[begin:end]])[-keep:]
    return y, state


def ancestors(parents, token):
    """The path from the root to a token, both included."""
    path = [token]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path
