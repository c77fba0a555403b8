"""Dense batches with padding, as tokenizers make them: the recipes of docs/switching.md."""

import pathlib
import re

import numpy as np
import oracle
import pytest
import shortconv

LENGTHS = [3, 7, 1, 0, 2]
TOKENS, CHANNELS, WIDTH = 7, 8, 4


def bounds_and_slots(mask, slots):
    """query_start_loc and read_slots of a batch, of its mask [batch, tokens] (1: a token).

    Each row of the batch is two sequences, its tokens and its padding, which have slot -1.
    """
    batch, tokens = mask.shape
    left = mask[:, 0] == 0  # padding on the left
    lengths = mask.sum(1)
    first = np.where(left, tokens - lengths, lengths)  # rows of the first of the two
    starts = np.arange(batch) * tokens
    bounds = np.append(np.stack([starts, starts + first], 1).ravel(), batch * tokens)
    none = np.full(batch, -1)
    pairs = np.where(left[:, None], np.stack([none, slots], 1), np.stack([slots, none], 1))
    return bounds.astype(np.int32), pairs.ravel().astype(np.int32)


def batch_of(random, side):
    mask = np.zeros((len(LENGTHS), TOKENS), np.int64)
    for row, length in zip(mask, LENGTHS):
        row[TOKENS - length :] = side == "left"
        row[:length] |= side == "right"
    x = random.standard_normal((*mask.shape, CHANNELS), np.float32)
    x[mask == 0] = np.nan  # whatever is in the padding must not matter
    return x, mask


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_reaches_neither_outputs_nor_states(arrays, random, side):
    x, mask = batch_of(random, side)
    weight = random.standard_normal((CHANNELS, WIDTH), np.float32)
    state = random.standard_normal((9, WIDTH - 1, CHANNELS), np.float32)
    slots = np.array([4, 0, 8, 2, 6])
    resumed = np.array([True, False, True, True, False])
    bounds, read_slots = bounds_and_slots(mask, slots)
    pool = arrays.of(state.copy())
    out = shortconv.forward(
        arrays.of(x.reshape(-1, CHANNELS)), arrays.of(weight), state=pool,
        query_start_loc=arrays.of(bounds), read_slots=arrays.of(read_slots),
        has_initial_state=arrays.of(np.repeat(resumed, 2)), activation="silu")
    out = arrays.numpy(out).reshape(x.shape)
    expected_state = state.copy()
    for row, slot, length in zip(range(len(LENGTHS)), slots, LENGTHS):
        if length == 0:
            continue
        tokens = x[row][mask[row] == 1]
        history = state[slot] if resumed[row] else np.zeros_like(state[slot])
        np.testing.assert_allclose(
            out[row][mask[row] == 1], oracle.convolve(history, tokens, weight, None, "silu"),
            rtol=1e-4, atol=1e-5)
        expected_state[slot] = np.concatenate([history, tokens])[-(WIDTH - 1) :]
    np.testing.assert_array_equal(arrays.numpy(pool), expected_state)
    assert (out[mask == 0] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_example_of_the_documentation(arrays, random, side):
    if arrays.kind == "numpy":
        pytest.skip("the example is for torch")
    text = (pathlib.Path(__file__).parents[2] / "docs/switching.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.S)[-1]
    x, mask = batch_of(random, side)
    slots = np.array([4, 0, 8, 2, 6])
    names = {"x": x, "attention_mask": mask, "slots": slots, "resumed": np.zeros(5, bool),
             "weight": random.standard_normal((CHANNELS, WIDTH), np.float32),
             "bias": random.standard_normal(CHANNELS, np.float32),
             "state": random.standard_normal((9, WIDTH - 1, CHANNELS), np.float32)}
    variables = {name: arrays.of(array.copy()) for name, array in names.items()}
    exec(code, variables)
    bounds, read_slots = bounds_and_slots(mask, slots)
    np.testing.assert_array_equal(arrays.numpy(variables["bounds"]), bounds)
    np.testing.assert_array_equal(arrays.numpy(variables["read_slots"]), read_slots)
    expected = shortconv.forward(
        x.reshape(-1, CHANNELS), names["weight"], names["bias"], state=names["state"],
        query_start_loc=bounds, read_slots=read_slots,
        has_initial_state=np.zeros(10, bool), activation="silu").reshape(x.shape)
    np.testing.assert_allclose(arrays.numpy(variables["y"]), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(arrays.numpy(variables["state"]), names["state"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_negative_seq_idx_without_states(arrays, random, side):
    x, mask = batch_of(random, side)
    weight = random.standard_normal((CHANNELS, WIDTH), np.float32)
    seq_idx = (mask - 1).astype(np.int32)  # 0: a token, -1: padding
    out = arrays.numpy(shortconv.forward(arrays.of(x), arrays.of(weight),
                                         seq_idx=arrays.of(seq_idx)))
    for row in range(len(LENGTHS)):
        np.testing.assert_allclose(
            out[row][mask[row] == 1],
            oracle.convolve(np.zeros((WIDTH - 1, CHANNELS)), x[row][mask[row] == 1], weight),
            rtol=1e-4, atol=1e-5)
    assert (out[mask == 0] == 0).all()
