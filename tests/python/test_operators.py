"""The operators against the oracle, and bit for bit against each other."""

import threading

import numpy as np
import oracle
import pytest
import shortconv

WIDTHS = shortconv.capabilities()["widths"]
ACTIVATIONS = [None, *shortconv.capabilities()["activations"]]


def assert_close(actual, expected):
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=2e-5, atol=2e-5)


def problem(random, lengths, channels, width, slots):
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return {
        "x": random.standard_normal((bounds[-1], channels), np.float32),
        "weight": random.standard_normal((channels, width), np.float32),
        "bias": random.standard_normal(channels, np.float32),
        "state": random.standard_normal((slots, width - 1, channels), np.float32),
        "bounds": bounds,
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_equals_the_oracle(arrays, random, width, activation):
    lengths = [1, 0, 7, width, 2, 33, 4]
    p = problem(random, lengths, 24, width, 9)
    slots = np.array([4, 2, -1, 0, 8, 3, 7], np.int32)
    resumed = np.array([1, 1, 1, 0, 1, 0, 1], bool)
    y, state = oracle.forward(p["x"], p["weight"], p["bias"], bounds=p["bounds"], state=p["state"],
                              slots=slots, resumed=resumed,
                              activation=None if activation == "none" else activation)
    for backend in arrays.backends:
        pool = arrays.of(p["state"].copy())
        out = shortconv.forward(
            arrays.of(p["x"]), arrays.of(p["weight"]), arrays.of(p["bias"]), state=pool,
            read_slots=arrays.of(slots), query_start_loc=arrays.of(p["bounds"]),
            has_initial_state=arrays.of(resumed), activation=activation, backend=backend)
        assert_close(arrays.numpy(out), y)
        np.testing.assert_array_equal(arrays.numpy(pool), state)


def test_whole_chunked_and_decoded_are_the_same_bits(arrays, random):
    p = problem(random, [23, 9], 40, 4, 2)
    x, weight, bias = (arrays.of(p[name]) for name in ("x", "weight", "bias"))

    def run(cuts):
        pool = arrays.of(np.zeros_like(p["state"]))
        rows = np.zeros_like(p["x"])
        for begin, end in zip(cuts[:-1], cuts[1:]):
            parts = [slice(begin, end), slice(23 + min(begin, 9), 23 + min(end, 9))]
            packed = np.concatenate([p["x"][part] for part in parts])
            lengths = [part.stop - part.start for part in parts]
            bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            out = arrays.numpy(shortconv.forward(
                arrays.of(packed), weight, bias, state=pool, query_start_loc=arrays.of(bounds),
                initial_state=True, activation="silu"))
            for part, low, high in zip(parts, bounds[:-1], bounds[1:]):
                rows[part] = out[low:high]
        return rows, arrays.numpy(pool)

    whole, state = run([0, 23])
    for cuts in ([0, 1, 2, 5, 23], [0, 22, 23], list(range(24))):
        rows, pool = run(cuts)
        np.testing.assert_array_equal(rows, whole)
        np.testing.assert_array_equal(pool, state)

    pool = arrays.of(np.zeros_like(p["state"])[:1])
    for token in range(23):
        out = shortconv.decode(arrays.of(p["x"][token : token + 1]), weight, bias, state=pool,
                               activation="silu")
        np.testing.assert_array_equal(arrays.numpy(out)[0], whole[token])
    np.testing.assert_array_equal(arrays.numpy(pool)[0], state[0])


def test_dense_batches(arrays, random):
    x = random.standard_normal((3, 11, 16), np.float32)
    weight = random.standard_normal((16, 3), np.float32)
    out = arrays.numpy(shortconv.forward(arrays.of(x), arrays.of(weight)))
    for row in range(3):
        assert_close(out[row], oracle.convolve(np.zeros((2, 16)), x[row], weight))


def test_shift_full_state(arrays, random):
    width, base_column, slots = 4, 2, np.array([3, 0, 1], np.int32)
    p = problem(random, [2, 7, 1], 24, width, 5)
    pool = random.standard_normal((5, base_column + width - 1, 24), np.float32)
    expected = pool.copy()
    for begin, end, slot in zip(p["bounds"][:-1], p["bounds"][1:], slots):
        expected[slot] = np.concatenate([pool[slot], p["x"][begin:end]])[-pool.shape[1] :]
    y, _ = oracle.forward(p["x"], p["weight"], bounds=p["bounds"], state=pool[:, base_column:],
                          slots=slots, resumed=[1, 1, 1])
    for backend in arrays.backends:
        state = arrays.of(pool.copy())
        out = shortconv.forward(
            arrays.of(p["x"]), arrays.of(p["weight"]), state=state, base_column=base_column,
            shift_full_state=True, read_slots=arrays.of(slots),
            query_start_loc=arrays.of(p["bounds"]), initial_state=True, backend=backend)
        assert_close(arrays.numpy(out), y)
        np.testing.assert_array_equal(arrays.numpy(state), expected)

        state, x = arrays.of(pool.copy()), random.standard_normal((3, 24), np.float32)
        shortconv.decode(arrays.of(x), arrays.of(p["weight"]), state=state,
                         base_column=base_column, shift_full_state=True, backend=backend)
        shifted = pool.copy()
        shifted[:3] = np.concatenate([pool[:3, 1:], x[:, None]], axis=1)
        np.testing.assert_array_equal(arrays.numpy(state), shifted)


def test_verify_of_trees_with_intermediate_states(arrays, random):
    width, channels, tokens = 4, 16, 6
    p = problem(random, [tokens, tokens], channels, width, 5)
    x = p["x"].reshape(2, tokens, channels)
    parents = np.array([[-1, 0, 0, 1, 2, 4], [-1, 0, 1, 2, 3, 4]], np.int32)
    slots = np.array([3, 1], np.int64)
    pool = arrays.of(p["state"].copy())
    states = arrays.of(np.full((2, tokens, width - 1, channels), np.nan, np.float32))
    out = arrays.numpy(shortconv.verify(
        arrays.of(x), arrays.of(p["weight"]), arrays.of(p["bias"]), state=pool,
        read_slots=arrays.of(slots), parents=arrays.of(parents), intermediate_states=states,
        activation="silu"))
    for s in range(2):
        for token in range(tokens):
            path = x[s][oracle.ancestors(parents[s], token)]
            history = p["state"][slots[s]]
            expected = oracle.convolve(history, path, p["weight"], p["bias"], "silu")[-1]
            assert_close(out[s, token], expected)
            np.testing.assert_array_equal(arrays.numpy(states)[s, token],
                                          np.concatenate([history, path])[1 - width :])
    np.testing.assert_array_equal(arrays.numpy(pool), p["state"])


def test_commit_copies_accepted_states_in_all_layers(arrays, random):
    layers, sequences, drafts, channels, width = 2, 3, 4, 8, 4
    rows = drafts * (width - 1)
    captured = random.standard_normal((layers, sequences, rows, channels), np.float32)
    state = random.standard_normal((layers, 7, width - 1, channels), np.float32)
    accepted = np.array([2, -1, 0], np.int32)
    slots, second = np.array([5, 1, 0], np.int32), np.array([-1, 2, 6], np.int32)
    pool = arrays.of(state.copy())
    result = shortconv.commit(arrays.of(captured), pool, arrays.of(accepted), width=width,
                              slots=arrays.of(slots), second_slots=arrays.of(second))
    assert result is pool
    expected = state.copy()
    for layer in range(layers):
        expected[layer, 5] = captured[layer, 0, 6:9]
        expected[layer, 0] = expected[layer, 6] = captured[layer, 2, 0:3]
    np.testing.assert_array_equal(arrays.numpy(pool), expected)


def test_verify_and_commit_equal_decode(arrays, random):
    p = problem(random, [4], 32, 4, 3)
    x, weight = arrays.of(p["x"].reshape(1, 4, 32)), arrays.of(p["weight"])
    slot = arrays.of(np.array([1], np.int32))
    pool, states = arrays.of(p["state"].copy()), arrays.of(np.zeros((1, 4, 3, 32), np.float32))
    drafted = shortconv.verify(x, weight, state=pool, read_slots=slot, intermediate_states=states)
    shortconv.commit(states.reshape(1, 1, 12, 32), pool.reshape(1, 3, 3, 32),
                     arrays.of(np.array([1], np.int32)), width=4, slots=slot)
    other = arrays.of(p["state"].copy())
    for token in range(2):
        out = shortconv.decode(arrays.of(p["x"][token : token + 1]), weight, state=other,
                               read_slots=slot)
        np.testing.assert_array_equal(arrays.numpy(out)[0], arrays.numpy(drafted)[0, token])
    np.testing.assert_array_equal(arrays.numpy(pool), arrays.numpy(other))


@pytest.mark.parametrize("layout", ["pitch", "channels-first", "reversed", "columns-innermost"])
def test_any_strides_without_a_copy(arrays, random, layout):
    if layout == "reversed" and arrays.kind != "numpy":
        pytest.skip("torch has no negative strides")
    p = problem(random, [9, 5], 16, 4, 3)
    x, out = p["x"], np.full((14, 16), np.nan, np.float32)
    pool = p["state"].copy()
    if layout == "pitch":
        x = np.concatenate([np.full((14, 5), np.nan, np.float32), x, x], axis=1)
        x, out = arrays.of(x)[:, 5:21], arrays.of(np.full((14, 30), np.nan, np.float32))[:, 7:23]
    elif layout == "channels-first":
        x, out = arrays.of(np.ascontiguousarray(x.T)).T, arrays.of(out)
    elif layout == "reversed":
        x, out = np.ascontiguousarray(x[:, ::-1])[:, ::-1], arrays.of(out)
    else:
        x, out = arrays.of(x), arrays.of(out)
    state = arrays.of(pool)
    if layout == "columns-innermost":
        state = arrays.of(np.ascontiguousarray(pool.transpose(0, 2, 1)))
        state = state.transpose(0, 2, 1) if arrays.kind == "numpy" else state.transpose(1, 2)
    result = shortconv.forward(x, arrays.of(p["weight"]), state=state, out=out, initial_state=True,
                               query_start_loc=arrays.of(p["bounds"]))
    assert result is out
    y, expected = oracle.forward(p["x"], p["weight"], bounds=p["bounds"], state=p["state"],
                                 resumed=[1, 1])
    assert_close(arrays.numpy(out), y)
    np.testing.assert_array_equal(arrays.numpy(state), expected)


def test_axes_of_one_element_may_have_any_stride(arrays, random):
    p = problem(random, [1], 16, 4, 1)
    strides = (7919 * 4, 4)
    x = p["x"]
    if arrays.kind == "numpy":
        x = np.lib.stride_tricks.as_strided(x, x.shape, strides)
        state = np.lib.stride_tricks.as_strided(p["state"], p["state"].shape, (12, 64, 4))
    else:
        x = arrays.of(x).as_strided((1, 16), (7919, 1))
        state = arrays.of(p["state"].copy()).as_strided((1, 3, 16), (3, 16, 1))
    expected = oracle.convolve(p["state"][0].copy(), p["x"], p["weight"])
    out = shortconv.decode(x, arrays.of(p["weight"]), state=state)
    assert_close(arrays.numpy(out), expected)


def test_decode_in_place(arrays, random):
    p = problem(random, [1] * 5, 16, 4, 5)
    x = arrays.of(p["x"].copy())
    y, state = oracle.forward(p["x"], p["weight"], bounds=p["bounds"], state=p["state"],
                              resumed=[1] * 5)
    pool = arrays.of(p["state"].copy())
    assert shortconv.decode(x, arrays.of(p["weight"]), state=pool, out=x) is x
    assert_close(arrays.numpy(x), y)
    np.testing.assert_array_equal(arrays.numpy(pool), state)


def test_circular_buffers_give_the_bits_of_ordered_pools(arrays, random):
    p = problem(random, [6], 16, 4, 1)
    weight, ordered = arrays.of(p["weight"]), arrays.of(np.zeros((1, 3, 16), np.float32))
    circular = arrays.of(np.zeros((1, 5, 16), np.float32))
    for seqlen, tokens in ((0, 3), (3, 1), (4, 2)):
        x = arrays.of(p["x"][seqlen : seqlen + tokens].copy())
        expected = shortconv.forward(x, weight, state=ordered, initial_state=seqlen > 0)
        out = shortconv.forward(x, weight, state=circular, initial_state=seqlen > 0,
                                cache_seqlens=arrays.of(np.array([seqlen], np.int32)))
        np.testing.assert_array_equal(arrays.numpy(out), arrays.numpy(expected))
    for number in (3, 4, 5):
        np.testing.assert_array_equal(arrays.numpy(circular)[0, number % 5], p["x"][number])


def test_snapshots_are_the_states_of_shorter_calls(arrays, random):
    p = problem(random, [9, 4], 16, 4, 8)
    slots = arrays.of(np.array([0, 1], np.int32))
    rows = np.array([[0, 2, 4], [0, 9, 5], [1, 0, 6], [7, 1, 3], [-1, 0, -1]], np.int32)
    pool = arrays.of(p["state"].copy())
    shortconv.forward(arrays.of(p["x"]), arrays.of(p["weight"]), state=pool, read_slots=slots,
                      query_start_loc=arrays.of(p["bounds"]), initial_state=True,
                      snapshots=arrays.of(rows))
    pool, state, x = arrays.numpy(pool), p["state"], p["x"]
    np.testing.assert_array_equal(pool[4], np.concatenate([state[0][2:], x[0:2]]))
    np.testing.assert_array_equal(pool[5], x[6:9])
    np.testing.assert_array_equal(pool[6], state[1])
    for untouched in (2, 3, 7):
        np.testing.assert_array_equal(pool[untouched], state[untouched])


def test_block_snapshots_feed_a_call(arrays, random):
    p = problem(random, [11, 2], 16, 4, 9)
    computed = np.array([3, 0], np.int32)
    table = np.array([[5, 6, 7, 8], [1, 2, 3, 4]], np.int64)
    rows = arrays.of(np.full((13 // 4 + 2, 3), 77, np.int32))
    bounds = arrays.of(p["bounds"])
    assert shortconv.block_snapshots(bounds, arrays.of(computed), arrays.of(table), tokens=13,
                                     block_size=4, snapshots=rows) is rows
    found = sorted(row for row in arrays.numpy(rows).tolist() if row[0] >= 0)
    assert found == [[0, 1, 5], [0, 5, 6], [0, 9, 7]]
    pool = arrays.of(p["state"].copy())
    shortconv.forward(arrays.of(p["x"]), arrays.of(p["weight"]), state=pool, query_start_loc=bounds,
                      has_initial_state=arrays.of(computed > 0), snapshots=rows,
                      write_slots=arrays.of(np.array([8, 0], np.int32)))
    history = np.concatenate([p["state"][0], p["x"][:11]])
    for _, token, slot in found:
        np.testing.assert_array_equal(arrays.numpy(pool)[slot], history[token : token + 3])


def test_seq_idx(arrays, random):
    seq_idx = np.array([[7, 7, -1, 3, 3], [3, 7, 7, 7, 0]], np.int64)
    x = random.standard_normal((2, 5, 8)).astype(np.float32)
    state = random.standard_normal((2, 3, 8)).astype(np.float32)
    weight, pool = arrays.of(random.standard_normal((8, 4)).astype(np.float32)), arrays.of(state)
    out = arrays.numpy(shortconv.forward(
        arrays.of(x), weight, state=pool, initial_state=True, seq_idx=arrays.of(seq_idx)))
    # Each sequence alone; the first of a row continues from its slot.
    for row, begin, end in ((0, 0, 2), (0, 3, 5), (1, 0, 1), (1, 1, 4), (1, 4, 5)):
        alone = arrays.numpy(shortconv.forward(
            arrays.of(x[row, begin:end]), weight, state=arrays.of(state[row : row + 1]),
            initial_state=begin == 0))
        assert np.array_equal(out[row, begin:end], alone)
    assert (out[0, 2] == 0).all()
    assert np.array_equal(arrays.numpy(pool), state)


def test_tree_parents(arrays):
    first = arrays.of(np.array([[1, 3, -1, -1, -1]], np.int32))
    sibling = arrays.of(np.array([[-1, 2, -1, 4, -1]], np.int64))
    parents = arrays.of(np.full((1, 5), 77, np.int32))
    assert shortconv.tree_parents(first, sibling, parents) is parents
    np.testing.assert_array_equal(arrays.numpy(parents), [[-1, 0, 0, 1, 1]])


def test_intermediate_states_by_slot(arrays, random):
    p = problem(random, [3, 2, 1], 8, 4, 3)
    states = arrays.of(np.full((5, 2, 3, 8), 77, np.float32))
    shortconv.verify(arrays.of(p["x"]), arrays.of(p["weight"]), state=arrays.of(p["state"]),
                     query_start_loc=arrays.of(p["bounds"]), intermediate_states=states,
                     intermediate_slots=arrays.of(np.array([4, -1, 0], np.int32)))
    found, state, x = arrays.numpy(states), p["state"], p["x"]
    np.testing.assert_array_equal(found[4, 0], np.concatenate([state[0, 1:], x[:1]]))
    np.testing.assert_array_equal(found[4, 1], np.concatenate([state[0, 2:], x[:2]]))
    np.testing.assert_array_equal(found[0, 0], np.concatenate([state[2, 1:], x[5:]]))
    assert (found[1:4] == 77).all() and (found[0, 1] == 77).all()


def test_epilogues(arrays, random):
    p = problem(random, [7, 4], 16, 4, 2)
    gates = random.standard_normal((2, *p["x"].shape), np.float32)
    x, weight = p["x"], p["weight"]

    def run(**arguments):
        pool = arrays.of(p["state"].copy())
        out = shortconv.forward(arrays.of(x), arrays.of(weight), state=pool, activation="silu",
                                query_start_loc=arrays.of(p["bounds"]), initial_state=True,
                                **{name: arrays.of(one) if isinstance(one, np.ndarray) else one
                                   for name, one in arguments.items()})
        return arrays.numpy(out), arrays.numpy(pool)

    def expected(inputs):
        return oracle.forward(inputs, weight, bounds=p["bounds"], state=p["state"], resumed=[1, 1],
                              activation="silu")

    out, pool = run(residual=True)
    y, state = expected(x)
    assert_close(out, y + x)
    np.testing.assert_array_equal(pool, state)
    out, pool = run(input_gate=gates[0], output_gate=gates[1])
    y, state = expected(x * gates[0])
    assert_close(out, y * gates[1])
    np.testing.assert_array_equal(pool, state)


def test_dilation(arrays, random):
    x = random.standard_normal((12, 8), np.float32)
    weight = random.standard_normal((8, 3), np.float32)
    out = shortconv.forward(arrays.of(x), arrays.of(weight), dilation=4)
    spread = np.zeros((8, 9), np.float32)
    spread[:, ::4] = weight
    assert_close(arrays.numpy(out), oracle.convolve(np.zeros((8, 8)), x, spread))


def test_padded_rows(arrays, random):
    p = problem(random, [3, 2], 8, 3, 2)
    slots, bounds = np.array([0, -1], np.int32), np.array([1, 3, 4], np.int32)
    for padded_rows, expected in ((None, 0), ("zero", 0), ("untouched", 9), ("copy", p["x"][3:])):
        out = arrays.of(np.full(p["x"].shape, 9, np.float32))
        shortconv.forward(arrays.of(p["x"]), arrays.of(p["weight"]), state=arrays.of(p["state"]),
                          out=out, read_slots=arrays.of(slots), query_start_loc=arrays.of(bounds),
                          padded_rows=padded_rows)
        np.testing.assert_array_equal(
            arrays.numpy(out)[3:], np.broadcast_to(np.float32(expected), (2, 8)))


def test_bad_values_are_reported(arrays, random):
    p = problem(random, [2, 3], 8, 4, 3)
    report = arrays.of(np.full((13, 2), 77, np.int64))
    shortconv.forward(arrays.of(p["x"]), arrays.of(p["weight"]), state=arrays.of(p["state"]),
                      read_slots=arrays.of(np.array([1, 5], np.int32)),
                      query_start_loc=arrays.of(p["bounds"]), violations=report)
    expected = np.array([[0, -1]] * 13)
    expected[2] = [1, 1]
    np.testing.assert_array_equal(arrays.numpy(report), expected)


def test_threads_do_not_disturb_each_other(arrays, random):
    p = problem(random, [40], 64, 4, 1)
    weight = arrays.of(p["weight"])
    expected = arrays.numpy(shortconv.forward(arrays.of(p["x"]), weight))
    wrong = []

    def work():
        x = arrays.of(p["x"].copy())
        for _ in range(50):
            out = arrays.numpy(shortconv.forward(x, weight, threads=1))
            if not np.array_equal(out, expected):
                wrong.append(out)
            try:
                shortconv.forward(x, weight, activation="relu")
                wrong.append("accepted")
            except ValueError:
                pass

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_reference_takes_doubles(random):
    x, weight = random.standard_normal((9, 5)), random.standard_normal((5, 4))
    out = shortconv.reference.forward(x, weight, activation="silu")
    np.testing.assert_allclose(
        out, oracle.convolve(np.zeros((3, 5)), x, weight, None, "silu"), rtol=1e-14)
    with pytest.raises(NotImplementedError, match="'cpu' does not support f64; expected the reference"):
        shortconv.forward(x, weight, backend="cpu")
