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


def silu_derivative(a):
    s = 1 / (1 + np.exp(-a))
    return s * (1 + a * (1 - s))


def backward(grad_out, x, weight, bias=None, *, bounds, initial_state=None, grad_final_state=None,
             input_gate=None, output_gate=None, residual=False, dilation=1, activation=None):
    """Gradients of a ragged batch in float64: a dict by the name of the input."""
    dtype = x.dtype  # to which the inputs, products with a gate, are rounded
    x, weight, grad_out = (one.astype(np.float64) for one in (x, weight, grad_out))
    width, channels = weight.shape[1], x.shape[1]
    keep, sequences = (width - 1) * dilation, len(bounds) - 1
    ones, states = np.ones_like(x), np.zeros((sequences, keep, channels))
    gate = ones if input_gate is None else input_gate.astype(np.float64)
    gated = (x * gate).astype(dtype).astype(np.float64)
    scale = ones if output_gate is None else output_gate.astype(np.float64)
    found = {name: np.zeros_like(x) for name in ("x", "input_gate", "output_gate")}
    found.update(weight=np.zeros_like(weight), bias=np.zeros(channels), initial_state=states.copy())
    initial = states if initial_state is None else initial_state.astype(np.float64)
    final = states if grad_final_state is None else grad_final_state.astype(np.float64)
    for s, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:])):
        rows, tokens = slice(begin, end), end - begin
        values = np.concatenate([initial[s], gated[rows]])
        inputs = [values[k * dilation : k * dilation + tokens] for k in range(width)]
        a = sum(weight[:, k] * inputs[k] for k in range(width))
        a = a if bias is None else a + bias.astype(np.float64)
        act, derivative = (silu(a), silu_derivative(a)) if activation == "silu" else (a, 1)
        g = grad_out[rows] * scale[rows] * derivative
        grad_values = np.zeros_like(values)
        grad_values[len(values) - keep :] += final[s]
        for k in range(width):
            grad_values[k * dilation : k * dilation + tokens] += weight[:, k] * g
            found["weight"][:, k] += (g * inputs[k]).sum(0)
        found["bias"] += g.sum(0)
        if residual:
            grad_values[keep:] += grad_out[rows]
        found["initial_state"][s] = grad_values[:keep]
        found["x"][rows] = grad_values[keep:] * gate[rows]
        found["input_gate"][rows] = grad_values[keep:] * x[rows]
        found["output_gate"][rows] = grad_out[rows] * act
    return found
