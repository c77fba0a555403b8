"""shortconv.compat.sglang on the grids of SGLang's tests."""

import inspect
import itertools

import pytest

torch = pytest.importorskip("torch")

from grids import (  # noqa: E402
    DEVICES,
    TOLERANCES,
    assert_outputs,
    convolve,
    pick,
    random_bounds,
)
from shortconv.compat.sglang import (  # noqa: E402
    causal_conv1d_fn,
    causal_conv1d_fn_split_qkv,
    causal_conv1d_update,
    dispatcher,
)

pytestmark = pytest.mark.parametrize("device", DEVICES)
flags = pytest.mark.parametrize("silu, bias", list(itertools.product([False, True], repeat=2)))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(device, dtype, *shape):
    return torch.randn(*shape, device=device).to(dtype)


def weights(device, dtype, dim, width, bias):
    return make(device, dtype, dim, width), make(device, dtype, dim) if bias else None


def pool_of(device, dtype, slots, columns, dim, layout):
    """[slots, dim, columns], with the channels or the columns adjacent."""
    if layout == "channels":
        return make(device, dtype, slots, columns, dim).transpose(1, 2)
    return make(device, dtype, slots, dim, columns)


@flags
@pytest.mark.parametrize("dim", [2048, 2048 + 16, 4096])
def test_update(device, silu, bias, dim):
    x = make(device, torch.bfloat16, 2, dim)
    weight, b = weights(device, torch.bfloat16, dim, 4, bias)
    state = pool_of(device, torch.bfloat16, 2, 3, dim, "columns")
    before = state.clone()
    out = causal_conv1d_update(x, state, weight, b, activation="silu" if silu else None)
    for row in range(2):
        history = before[row].T
        assert_outputs(out[row : row + 1], convolve(history, x[row : row + 1], weight, b, silu))
        assert torch.equal(state[row].T, torch.cat([history, x[row : row + 1]])[1:])


@flags
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("tokens", [1, 3, 4, 5])
@pytest.mark.parametrize("form", ["triton", "dispatcher"])
def test_update_of_slots_with_padding(device, silu, bias, dtype, tokens, form):
    widths, dims = pick(device, ([2, 4], [80]), ([2, 3, 4], [2048, 2064, 4096]))
    for width, dim, padding, layout in itertools.product(
            widths, dims, [0, 5], ["channels", "columns"]):
        x = make(device, dtype, 3 + padding, tokens, dim).transpose(1, 2)
        weight, b = weights(device, dtype, dim, width, bias)
        state = pool_of(device, dtype, 30, width - 1, dim, layout)
        before, given = state.clone(), x.clone()
        slots = torch.cat([torch.randperm(30)[:3], torch.full((padding,), -1)]).int().to(device)
        update = causal_conv1d_update if form == "triton" else dispatcher.causal_conv1d_update
        out = update(x, state, weight, b, "silu" if silu else None, conv_state_indices=slots)
        assert (out is x) == (form == "dispatcher")
        assert form == "dispatcher" or torch.equal(x, given)
        expected = before.clone()
        for row in range(3):
            history = before[slots[row]].T
            y = convolve(history, given[row].T, weight, b, silu)
            assert_outputs(out[row].T, y)
            expected[slots[row]] = torch.cat([history, given[row].T])[-(width - 1) :].T
        assert torch.equal(state, expected)
        padded = torch.zeros_like(given[3:]) if form == "triton" else given[3:]
        assert torch.equal(out[3:], padded)


@pytest.mark.parametrize("dtype, state_dtype", [
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("sequences, padding", [(4, 0), (4, 3), (10, 0), (10, 3)])
@pytest.mark.parametrize("dim", [64, 4096])
def test_packed_forward(device, dtype, state_dtype, sequences, padding, dim):
    for tokens in pick(device, [15, 30, 249], [15, 30, 249, 2049, 4096]):
        bounds = random_bounds(tokens, sequences).to(device)
        offset = pick(device, 96, 4096)
        wide = make(device, dtype, tokens, offset + dim + 64)
        x = wide[:, offset : offset + dim].T
        weight, bias = weights(device, dtype, dim, 4, True)
        state = pool_of(device, state_dtype, 10 * sequences, 3, dim, "channels")
        before = state.clone()
        slots = torch.randperm(10 * sequences)[:sequences].int().to(device)
        slots[sequences - padding :] = -1
        resumed = torch.randint(0, 2, (sequences,), device=device).bool()
        out = causal_conv1d_fn(x, weight, bias, state, bounds, bounds.diff().tolist(),
                               cache_indices=slots, has_initial_state=resumed)
        assert out.stride() == torch.empty_like(x).stride()
        expected_state, expected = before.clone(), torch.zeros(tokens, dim, device=device).double()
        for s in range(sequences - padding):
            rows = slice(int(bounds[s]), int(bounds[s + 1]))
            history = before[slots[s]].T if resumed[s] else torch.zeros_like(before[0].T)
            expected[rows] = convolve(history, x.T[rows], weight, bias, True)
            inputs = torch.cat([history, x.T[rows].to(state_dtype)])
            expected_state[slots[s]] = inputs[-3:].T
        assert_outputs(out.T, expected)
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("packed", [causal_conv1d_fn, dispatcher.causal_conv1d_fn])
def test_packed_forward_with_more_slots_than_sequences(device, packed):
    dim, bounds = 64, torch.tensor([0, 2, 2, 5], dtype=torch.int32, device=device)
    x = make(device, torch.float32, 5, dim).T
    weight, bias = weights(device, torch.float32, dim, 4, True)
    state = pool_of(device, torch.float32, 9, 3, dim, "channels")
    slots = torch.tensor([8, 1, 3, 5, 0], dtype=torch.int32, device=device)
    resumed = torch.tensor([False, True, True, True], device=device)
    expected_state = state.clone()
    arguments = {"conv_states": expected_state, "query_start_loc": bounds, "bias": bias}
    expected = packed(x, weight, cache_indices=slots[:3], has_initial_state=resumed[:3],
                      **arguments)
    arguments["conv_states"] = state
    out = packed(x, weight, cache_indices=slots, has_initial_state=resumed, **arguments)
    assert torch.equal(out, expected) and torch.equal(state, expected_state)


@pytest.mark.parametrize("form", ["plain", "dispatcher", "rolling", "windows", "tree"])
def test_update_with_more_slots_than_sequences(device, form):
    dim, x = 64, make(device, torch.float32, 2, 3, 64).transpose(1, 2)
    weight, bias = weights(device, torch.float32, dim, 4, True)
    state = pool_of(device, torch.float32, 9, 5, dim, "channels")

    def ints(*values):
        return torch.tensor(values, dtype=torch.int32, device=device)

    def call(state, windows, entries):
        arguments = {"conv_state_indices": ints(4, 2, 7, 8)[:entries]}
        if form == "rolling":
            arguments["num_accept_tokens"] = ints(1, 2, 1, 1)[:entries]
        if form in ("windows", "tree"):
            arguments["intermediate_conv_window"] = windows
            arguments["intermediate_state_indices"] = ints(1, 0, 2, 2)[:entries]
        if form == "tree":
            arguments["retrieve_next_token"] = ints([1, -1, -1], [1, 2, -1], [1, -1, -1])[:entries]
            arguments["retrieve_parent_token"] = torch.zeros_like(arguments["retrieve_next_token"])
        function = dispatcher.causal_conv1d_update if form == "dispatcher" else causal_conv1d_update
        return function(x.clone(), state, weight, bias, "silu", **arguments)

    states, expected_states = state.clone(), state.clone()
    windows = torch.zeros(3, 3, dim, 3, device=device)
    expected_windows = windows.clone()
    expected = call(expected_states, expected_windows, 2)
    assert torch.equal(call(states, windows, 4), expected)
    assert torch.equal(states, expected_states) and torch.equal(windows, expected_windows)


@pytest.mark.parametrize("tokens", [1, 8, 16, 32, 64, 128, 256, 512, 784, 1024, 1025, 2048, 4096])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_dispatcher_forward_of_one_sequence(device, tokens, width):
    if device == "cpu" and tokens > 1025:
        tokens //= 4
    x = make(device, torch.float32, 1, 64, tokens)
    weight, bias = weights(device, torch.float32, 64, width, True)
    for with_state in (False, True):
        state = pool_of(device, torch.float32, 1, width - 1, 64, "columns") if with_state else None
        history = torch.zeros(width - 1, 64, device=device) if state is None else state[0].T.clone()
        flags = torch.ones(1, dtype=torch.bool, device=device) if with_state else None
        out = dispatcher.causal_conv1d_fn(x, weight, bias, has_initial_state=flags,
                                          conv_states=state)
        assert_outputs(out[0].T, convolve(history, x[0].T, weight, bias, True))
        if with_state:
            assert torch.equal(state[0].T, torch.cat([history, x[0].T])[-(width - 1) :])


def test_both_orders_of_arguments_agree(device):
    x, weight = make(device, torch.float32, 64, 20), make(device, torch.float32, 64, 4)
    bounds = torch.tensor([0, 7, 7, 20], dtype=torch.int32, device=device)
    slots = torch.tensor([2, 0, 1], dtype=torch.int32, device=device)
    resumed = torch.tensor([True, False, True], device=device)
    one = pool_of(device, torch.float32, 3, 3, 64, "channels")
    other = one.clone()
    y = causal_conv1d_fn(x, weight, None, one, bounds, [7, 0, 13], slots, resumed, "silu", -1)
    z = dispatcher.causal_conv1d_fn(x, weight, None, bounds, slots, resumed, other, "silu", -1,
                                    seq_lens_cpu=[7, 0, 13])
    assert torch.equal(y, z) and torch.equal(one, other)


@pytest.mark.parametrize("width, silu, bias, resumed", [
    (2, False, False, False), (3, True, True, True), (4, True, True, False)])
def test_split_qkv(device, width, silu, bias, resumed):
    dims, heads = (4 * 32, 3 * 32, 4 * 40), (4, 3, 4)
    lengths = [3, 1, 4, 2, 3]
    bounds = torch.tensor([0, 3, 4, 8, 10, 13], dtype=torch.int32, device=device)
    slots = torch.tensor([4, 1, 8, -1, -1], dtype=torch.int32, device=device)
    x = make(device, torch.bfloat16, 13, sum(dims)).T
    weight, b = weights(device, torch.bfloat16, sum(dims), width, bias)
    one = pool_of(device, torch.bfloat16, 11, width - 1, sum(dims), "columns")
    other = one.clone()
    named = {"cache_indices": slots, "activation": "silu" if silu else None,
             "has_initial_state": torch.full((5,), resumed, device=device)}
    out = causal_conv1d_fn(x, weight, b, one, bounds, lengths, **named)
    parts = causal_conv1d_fn_split_qkv(
        x, weight, b, other, bounds, lengths, *dims, num_q_heads=4, num_k_heads=3, num_v_heads=4,
        head_q_dim=32, head_k_dim=32, head_v_dim=40, **named)
    for part, whole, count in zip(parts, out.T.split(dims, dim=1), heads):
        assert part.is_contiguous() and part.shape == (1, 13, count, whole.shape[1] // count)
        assert torch.equal(part.view(13, -1), whole)
    assert torch.equal(one, other)


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("layout", ["channels", "columns"])
@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_intermediate_states_of_draft_tokens(device, overlapping, layout, tokens):
    dim, width, batch = 96, 4, 4
    x = make(device, torch.bfloat16, batch, tokens, dim).transpose(1, 2)
    weight, bias = weights(device, torch.bfloat16, dim, width, True)
    state = pool_of(device, torch.bfloat16, 9, width - 1, dim, layout)
    before = state.clone()
    slots = torch.tensor([7, 2, -1, 0], dtype=torch.int32, device=device)
    rows = torch.tensor([0, 1, 2, 3], dtype=torch.int32, device=device)
    poison = float("nan")
    if overlapping:
        memory = torch.full((batch, dim, tokens + width - 2), poison, device=device).bfloat16()
        states = memory.as_strided((batch, tokens, dim, width - 1),
                                   (memory.stride(0), 1, memory.stride(1), 1))
    else:
        states = torch.full((batch, tokens + 1, dim, width - 1), poison, device=device).bfloat16()
    out = causal_conv1d_update(x, state, weight, bias, "silu", conv_state_indices=slots,
                               intermediate_conv_window=states, intermediate_state_indices=rows)
    plain_state = before.clone()
    plain = causal_conv1d_update(x, plain_state, weight, bias, "silu", conv_state_indices=slots)
    assert torch.equal(out, plain) and torch.equal(state, plain_state)
    for row in (0, 1, 3):
        inputs = torch.cat([before[slots[row]].T, x[row].T])
        for token in range(tokens):
            assert torch.equal(states[row, token].T, inputs[token + 1 : token + width])
            # The state after this token equals that of as many calls with one token.
            single = before.clone()
            for step in range(token + 1):
                causal_conv1d_update(x[:, :, step], single, weight, bias, "silu",
                                     conv_state_indices=slots)
            assert torch.equal(states[row, token], single[slots[row]])
    assert states[2].isnan().all()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("children", [2, 4])
def test_trees(device, children, depth, batch):
    tokens, dim, width = min(sum(children**level for level in range(depth)), 40), 64, 4
    first = torch.full((batch, tokens), -1, dtype=torch.int64)
    sibling = torch.full((batch, tokens), -1, dtype=torch.int64)
    parents = [(token - 1) // children for token in range(tokens)]
    parents[0] = -1
    for token in range(1, tokens):
        if (token - 1) % children == 0:
            first[:, parents[token]] = token
        else:
            sibling[:, token - 1] = token
    x = make(device, torch.float32, batch, tokens, dim).transpose(1, 2)
    weight, bias = weights(device, torch.float32, dim, width, True)
    state = pool_of(device, torch.float32, 5, width - 1, dim, "columns")
    before = state.clone()
    slots = torch.tensor([3, 1], dtype=torch.int32, device=device)[:batch]
    states = torch.zeros(batch, tokens, dim, width - 1, device=device)
    found = torch.full((batch, tokens), 77, dtype=torch.int64, device=device)
    out = causal_conv1d_update(
        x, state, weight, bias, "silu", conv_state_indices=slots, intermediate_conv_window=states,
        intermediate_state_indices=torch.arange(batch, device=device),
        retrieve_next_token=first.to(device), retrieve_next_sibling=sibling.to(device),
        retrieve_parent_token=found)
    assert found.tolist() == [[max(parent, 0) for parent in parents]] * batch
    assert torch.equal(state, before)
    for row, token in itertools.product(range(batch), range(tokens)):
        path = [token]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        history, inputs = before[slots[row]].T, x[row].T[path]
        assert_outputs(out[row, :, token][None], convolve(history, inputs, weight, bias, True)[-1:])
        assert torch.equal(states[row, token].T, torch.cat([history, inputs])[-(width - 1) :])


@pytest.mark.parametrize("keyword", ["num_accept_tokens", "num_accepted_tokens"])
def test_rolling_states(device, keyword):
    dim, width, tokens, batch = 64, 4, 3, 4
    weight, bias = weights(device, torch.float32, dim, width, True)
    state = pool_of(device, torch.float32, 6, width - 1 + tokens - 1, dim, "channels")
    slots = torch.tensor([5, 0, -1, 2], dtype=torch.int32, device=device)
    accepted = torch.ones(batch, dtype=torch.int32, device=device)
    history = {row: state[slots[row], :, : width - 1].T.clone() for row in (0, 1, 3)}
    untouched = state[[1, 3, 4]].clone()
    for _ in range(6):
        x = make(device, torch.float32, batch, tokens, dim).transpose(1, 2)
        out = causal_conv1d_update(x, state, weight, bias, "silu", conv_state_indices=slots,
                                   **{keyword: accepted})
        kept = torch.randint(1, tokens + 1, (batch,))
        for row, past in history.items():
            assert_outputs(out[row].T, convolve(past[-3:], x[row].T, weight, bias, True))
            history[row] = torch.cat([past, x[row].T[: kept[row]]])
        accepted = kept.int().to(device)
    assert torch.equal(state[[1, 3, 4]], untouched)


def test_wide_pools_and_width_five(device):
    x, weight = make(device, torch.float32, 2, 32), make(device, torch.float32, 32, 5)
    state = pool_of(device, torch.float32, 2, 7, 32, "columns")
    for update, first in ((causal_conv1d_update, 0), (dispatcher.causal_conv1d_update, 3)):
        pool, given = state.clone(), x.clone()
        out = update(given, pool, weight)
        for row in range(2):
            history = state[row].T[first : first + 4]
            assert_outputs(out[row][None], convolve(history, x[row][None], weight))
            inputs = torch.cat([history, x[row][None]])[1:]
            assert torch.equal(pool[row].T[first : first + 4], inputs)
    circular = state.clone()
    seqlens = torch.tensor([3, 9], dtype=torch.int32, device=device)
    dispatcher.causal_conv1d_update(x.clone(), circular, weight, cache_seqlens=seqlens)
    assert torch.equal(circular[0, :, 3], x[0]) and torch.equal(circular[1, :, 2], x[1])


def test_refusals(device):
    x, weight = make(device, torch.float32, 2, 32), make(device, torch.float32, 32, 4)
    state = pool_of(device, torch.float32, 2, 3, 32, "columns")
    with pytest.raises(NotImplementedError, match="^activation: is 'gelu'"):
        causal_conv1d_update(x, state, weight, activation="gelu")
    with pytest.raises(ValueError, match="^x: dtype i32 is not supported"):
        causal_conv1d_update(x.int(), state, weight)
    with pytest.raises(ValueError, match="^conv_state: has 3 columns, but width 4 and 3 draft tok"):
        causal_conv1d_update(x[:, :, None].expand(2, 32, 3), state, weight,
                             num_accept_tokens=torch.ones(2, device=device).int())
    with pytest.raises(ValueError, match="^num_accept_tokens: cannot be combined"):
        causal_conv1d_update(x, state, weight, num_accept_tokens=x, intermediate_conv_window=x)
    for activation in (True, "silu", "swish"):
        one = causal_conv1d_update(x, state.clone(), weight, activation=activation)
        assert torch.equal(one, causal_conv1d_update(x, state.clone(), weight, activation="silu"))


def test_signatures(device):
    def names(function):
        return ", ".join(inspect.signature(function).parameters)

    assert names(causal_conv1d_fn) == (
        "x, weight, bias, conv_states, query_start_loc, seq_lens_cpu, cache_indices, "
        "has_initial_state, activation, pad_slot_id, validate_data, block_table, kwargs")
    assert names(dispatcher.causal_conv1d_fn) == (
        "x, weight, bias, query_start_loc, cache_indices, has_initial_state, conv_states, "
        "activation, pad_slot_id, kwargs")
    assert names(causal_conv1d_update).startswith(
        "x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices, "
        "num_accept_tokens, intermediate_conv_window, intermediate_state_indices, "
        "retrieve_next_token, retrieve_next_sibling, retrieve_parent_token, pad_slot_id")
