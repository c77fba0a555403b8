"""shortconv.compat.vllm on the grids of vLLM's tests, and on cases that those omit."""

import inspect
import itertools

import pytest

torch = pytest.importorskip("torch")

import shortconv  # noqa: E402
from grids import DEVICES, assert_outputs, convolve, pick, random_bounds  # noqa: E402
from shortconv.compat import vllm  # noqa: E402
from shortconv.compat.vllm import causal_conv1d_fn, causal_conv1d_update  # noqa: E402

pytestmark = pytest.mark.parametrize("device", DEVICES)
flags = pytest.mark.parametrize("silu, bias", list(itertools.product([False, True], repeat=2)))
layouts = pytest.mark.parametrize("layout", ["SD", "DS"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(device, dtype, *shape):
    return torch.randn(*shape, device=device).to(dtype)


def weights(device, dtype, dim, width, bias):
    return make(device, dtype, dim, width), make(device, dtype, dim) if bias else None


def pool_of(device, dtype, lines, columns, dim, layout):
    """[cache lines, dim, columns]; each line is a part of a larger page."""
    if layout == "SD":
        return make(device, dtype, lines, columns + 2, dim)[:, :columns].transpose(1, 2)
    return make(device, dtype, lines, dim + 8, columns)[:, :dim]


def ints(device, *values):
    return torch.tensor(values, dtype=torch.int32, device=device)


@flags
@layouts
@pytest.mark.parametrize("dim", [2048, 2048 + 16, 4096])
def test_update_in_place(device, silu, bias, layout, dim):
    x = make(device, torch.bfloat16, 2, dim)
    weight, b = weights(device, torch.bfloat16, dim, 4, bias)
    state = pool_of(device, torch.bfloat16, 3, 3, dim, layout)
    before, given = state.clone(), x.clone()
    out = causal_conv1d_update(x, state, weight, b, activation="silu" if silu else None,
                               conv_state_indices=ints(device, 2, 1))
    assert out is x
    for row, line in enumerate((2, 1)):
        history = before[line].T
        assert_outputs(out[row][None], convolve(history, given[row][None], weight, b, silu))
        assert torch.equal(state[line].T, torch.cat([history, given[row][None]])[1:])
    assert torch.equal(state[0], before[0])


@flags
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("separate", [False, True])
def test_update_of_lines_with_padding(device, silu, bias, layout, dtype, tokens, separate):
    for width, dim, padding in itertools.product([3, 4], pick(device, [80], [2064, 4096]), [0, 5]):
        x = make(device, dtype, 3 + padding, tokens, dim).transpose(1, 2)
        weight, b = weights(device, dtype, dim, width, bias)
        state = pool_of(device, dtype, 30, width - 1, dim, layout)
        before, given = state.clone(), x.clone()
        lines = torch.cat([torch.randperm(29)[:3] + 1, torch.zeros(padding)]).int().to(device)
        given_out = torch.full_like(x, float("nan")) if separate else None
        out = causal_conv1d_update(x, state, weight, b, "silu" if silu else None,
                                   conv_state_indices=lines, out=given_out)
        assert out is (given_out if separate else x)
        assert not separate or torch.equal(x, given)
        expected = before.clone()
        for row in range(3):
            history = before[lines[row]].T
            assert_outputs(out[row].T, convolve(history, given[row].T, weight, b, silu))
            expected[lines[row]] = torch.cat([history, given[row].T])[-(width - 1) :].T
        assert torch.equal(state, expected)
        assert torch.equal(out[3:], torch.zeros_like(given[3:]) if separate else given[3:])


@layouts
@pytest.mark.parametrize("sequences, padding", [(4, 0), (4, 3), (10, 0), (10, 3)])
@pytest.mark.parametrize("dim", [64, 4096])
@pytest.mark.parametrize("dtype, weight_dtype", [
    (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_packed_forward(device, layout, sequences, padding, dim, dtype, weight_dtype):
    for tokens in pick(device, [15, 249], [15, 249, 4096]):
        bounds = random_bounds(tokens, sequences).to(device)
        offset = pick(device, 96, 4096)
        x = make(device, dtype, tokens, offset + dim + 64)[:, offset : offset + dim].T
        weight, bias = weights(device, weight_dtype, dim, 4, True)
        state = pool_of(device, dtype, 10 * sequences, 3, dim, layout)
        before = state.clone()
        lines = (torch.randperm(10 * sequences - 1)[:sequences] + 1).int().to(device)
        lines[sequences - padding :] = 0
        resumed = torch.randint(0, 2, (sequences,), device=device).bool()
        out = causal_conv1d_fn(x, weight, bias, state, bounds, cache_indices=lines,
                               has_initial_state=resumed, metadata=object())
        expected_state, expected = before.clone(), torch.zeros(tokens, dim, device=device).double()
        for s in range(sequences - padding):
            rows = slice(int(bounds[s]), int(bounds[s + 1]))
            history = before[lines[s]].T if resumed[s] else torch.zeros_like(before[0].T)
            expected[rows] = convolve(history, x.T[rows], weight, bias, True)
            expected_state[lines[s]] = torch.cat([history, x.T[rows]])[-3:].T
        assert_outputs(out.T, expected)
        assert torch.equal(state, expected_state)


@pytest.mark.parametrize("padding", [2, 5])
def test_packed_forward_with_more_lines_than_sequences(device, padding):
    dim, sequences, tokens = 64, 8, 8  # as a grid with padded batches has it for few tokens
    bounds = torch.arange(sequences + 1, dtype=torch.int32, device=device)
    x = make(device, torch.float32, tokens, dim).T
    weight, bias = weights(device, torch.float32, dim, 4, True)
    state = pool_of(device, torch.float32, 20, 3, dim, "SD")
    before, expected_state = state.clone(), state.clone()
    lines = ints(device, *range(1, 1 + sequences), *range(11, 11 + padding))
    resumed = torch.arange(sequences + padding, device=device) % 2 == 0
    out = causal_conv1d_fn(x, weight, bias, state, bounds, lines, resumed)
    for s in range(sequences):
        history = before[lines[s]].T if resumed[s] else torch.zeros(3, dim, device=device)
        assert_outputs(out[:, s][None], convolve(history, x[:, s][None], weight, bias, True))
        expected_state[lines[s]] = torch.cat([history, x[:, s][None]])[1:].T
    assert torch.equal(state, expected_state)  # lines beyond the batch are untouched


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_update_with_more_lines_than_sequences(device, drafts, packed):
    dim, x = 16, make(device, torch.float32, 6, 16)
    weight, bias = weights(device, torch.float32, dim, 4, True)
    state = pool_of(device, torch.float32, 9, 5, dim, "SD")
    rows = x if packed else x.view(2, 3, dim).transpose(1, 2)
    arguments = {"query_start_loc": ints(device, 0, 3, 6), "max_query_len": 3} if packed else {}
    accepted = {"num_accepted_tokens": ints(device, 1, 2, 1, 1)} if drafts else {}
    expected_state, table = state.clone(), ints(device, 4, 2, 7, 8)
    expected = causal_conv1d_update(
        rows.clone(), expected_state, weight, bias, "silu", table[:2],
        **{name: value[:2] for name, value in accepted.items()}, **arguments)
    blocks = torch.stack([table, table], dim=1)
    for lines, more in ((table, {}), (blocks, {"initial_state_idx": ints(device, 0, 1, 0, 1, 0)})):
        given_state = state.clone()
        out = causal_conv1d_update(
            rows.clone(), given_state, weight, bias, "silu", lines, **accepted, **arguments, **more)
        assert torch.equal(out, expected) and torch.equal(given_state, expected_state)


def test_without_lines_no_row_is_padding(device):
    x = make(device, torch.float32, 3, 16)
    weight, bias = weights(device, torch.float32, 16, 4, True)
    state = pool_of(device, torch.float32, 3, 6, 16, "DS")
    history = state[0, :, :3].T.clone()
    expected = convolve(history, x[:1], weight, bias, True)
    assert_outputs(
        causal_conv1d_update(x.clone(), state.clone(), weight, bias, "silu")[:1], expected)
    drafts = causal_conv1d_update(x.clone(), state.clone(), weight, bias, "silu",
                                  num_accepted_tokens=ints(device, 1, 1, 1))
    assert_outputs(drafts[:1], expected)
    bounds = ints(device, 0, 1, 2, 3)
    resumed = torch.ones(3, dtype=torch.bool, device=device)
    packed = causal_conv1d_fn(
        x.T, weight, bias, state.clone(), bounds, has_initial_state=resumed)
    assert_outputs(packed.T[:1], expected)


def test_update_with_the_older_name_of_the_null_block(device):
    x = make(device, torch.float32, 2, 16)
    weight, _ = weights(device, torch.float32, 16, 4, False)
    state = pool_of(device, torch.float32, 3, 3, 16, "DS")
    before = state.clone()
    causal_conv1d_update(x, state, weight, conv_state_indices=ints(device, 0, -1), pad_slot_id=-1)
    assert not torch.equal(state[0], before[0]) and torch.equal(state[1:], before[1:])


@pytest.mark.parametrize("dim", [64, 4096])
def test_a_short_chunk_does_not_write_the_shared_prefix(device, dim):
    weight, bias = weights(device, torch.float32, dim, 4, True)
    history, x = make(device, torch.float32, 3, dim), make(device, torch.float32, 5, dim)
    expected = convolve(history, x, weight, bias, True)
    state = torch.full((4, 3, dim), float("nan"), device=device).transpose(1, 2)
    state[1] = history.T
    shared, table = state[1].clone(), ints(device, 1, 3)[None]
    first = {"num_computed_tokens": ints(device, 16), "initial_state_idx": ints(device, 0),
             "block_idx_first_scheduled_token": ints(device, 1)}
    second = {"num_computed_tokens": ints(device, 18), "initial_state_idx": ints(device, 1),
              "block_idx_first_scheduled_token": ints(device, 1)}
    for rows, where in ((slice(0, 2), first), (slice(2, 5), second)):
        out = causal_conv1d_fn(
            x[rows].T, weight, bias, state, ints(device, 0, rows.stop - rows.start), table,
            torch.ones(1, dtype=torch.bool, device=device), block_size_to_align=16,
            block_idx_last_scheduled_token=ints(device, 1), **where)
        torch.testing.assert_close(out.T, expected[rows].float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(state[1], shared)
    assert torch.equal(state[3].T, x[2:5])


@layouts
def test_states_of_full_blocks_are_written(device, layout):
    block, dim, width = 8, 48, 4
    weight, bias = weights(device, torch.bfloat16, dim, width, True)
    # (computed before, tokens now). Boundaries close to the start, several, at the end, none. The
    # last sequence is padding.
    work = [(6, 5), (0, 27), (9, 7), (16, 1), (7, 1), (3, 2), (9, 8)]
    lengths = [tokens for _, tokens in work]
    bounds = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device)
    x = make(device, torch.bfloat16, sum(lengths), dim)
    table = (torch.randperm(59)[: 7 * 5] + 1).view(7, 5).int().to(device)
    state = pool_of(device, torch.bfloat16, 60, width - 1, dim, layout)
    before = state.clone()
    computed = ints(device, *(c for c, _ in work))
    last = ints(device, *(-(-(c + tokens) // block) - 1 for c, tokens in work))
    read = ints(device, *(max(-(-c // block) - 1, 0) for c, _ in work))
    read[6], table[6, 0] = 0, 0
    out = causal_conv1d_fn(
        x.T, weight, bias, state, bounds, table, computed > 0, num_computed_tokens=computed,
        block_idx_first_scheduled_token=computed // block, block_idx_last_scheduled_token=last,
        initial_state_idx=read, block_size_to_align=block)
    expected = before.clone()
    for s, (c, tokens) in enumerate(work):
        rows = x[bounds[s] : bounds[s + 1]]
        if s == 6:
            assert (out.T[bounds[s] :] == 0).all()
            continue
        history = before[table[s, read[s]]].T if c > 0 else torch.zeros_like(before[0].T)
        y = convolve(history, rows, weight, bias, True)
        assert_outputs(out.T[bounds[s] : bounds[s + 1]], y)
        inputs = torch.cat([history, rows])
        for boundary in range(c // block * block + block, c + tokens + 1, block):
            token = boundary - c
            expected[table[s, boundary // block - 1]] = inputs[token : token + width - 1].T
        expected[table[s, last[s]]] = inputs[-(width - 1) :].T
    assert torch.equal(state, expected)


@layouts
@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("separate", [False, True])
def test_draft_tokens_roll_through_the_state(device, layout, form, separate):
    dim, width, most, batch = 64, 4, 4, 4
    weight, bias = weights(device, torch.float32, dim, width, True)
    state = pool_of(device, torch.float32, 9, width - 1 + most - 1, dim, layout)
    lines = ints(device, 5, 0, 8, 2)
    live = (0, 2, 3)
    accepted = torch.ones(batch, dtype=torch.int32, device=device)
    history = {row: state[lines[row], :, : width - 1].T.clone() for row in live}
    untouched = state[[0, 1, 3, 4, 6, 7]].clone()
    kept = [1] * batch
    for step in range(8):
        if form == "dense":
            lengths = [most] * batch
        else:
            lengths = [most - (step + row) % most for row in range(batch)]
        bounds = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device)
        packed = make(device, torch.float32, sum(lengths), dim)
        given = packed.clone()
        x = packed.view(batch, most, dim).transpose(1, 2) if form == "dense" else packed
        named = {"query_start_loc": bounds, "max_query_len": most} if form == "packed" else {}
        target = torch.full_like(x, float("nan")) if separate else None
        if step == 5:  # a stale accepted number, of a row without drafts
            accepted[0], history[0] = 0, history[0][: len(history[0]) - (kept[0] - 1)]
        out = causal_conv1d_update(x, state, weight, bias, "silu", conv_state_indices=lines,
                                   num_accepted_tokens=accepted, out=target, **named)
        assert out is (target if separate else x)
        rows = out.transpose(1, 2).reshape(-1, dim) if form == "dense" else out
        kept = [1 + (step * 3 + row) % length for row, length in enumerate(lengths)]
        for row, past in history.items():
            part = slice(int(bounds[row]), int(bounds[row + 1]))
            assert_outputs(rows[part], convolve(past[-3:], given[part], weight, bias, True))
            history[row] = torch.cat([past, given[part][: kept[row]]])
        padded = rows[bounds[1] : bounds[2]]
        expected = torch.zeros_like(padded) if separate else given[bounds[1] : bounds[2]]
        assert torch.equal(padded, expected)
        accepted = ints(device, *kept)
    assert torch.equal(state[[0, 1, 3, 4, 6, 7]], untouched)


def test_packed_drafts_without_conv_state_indices(device):
    weight, x = make(device, torch.float32, 32, 4), make(device, torch.float32, 7, 32)
    states = [make(device, torch.float32, 3, 32, 6)] * 2
    states[1] = states[0].clone()
    outs = [causal_conv1d_update(
        x.clone(), state, weight, conv_state_indices=lines, max_query_len=4, null_block_id=None,
        query_start_loc=ints(device, 0, 2, 3, 7), num_accepted_tokens=ints(device, 1, 3, 2))
        for state, lines in zip(states, (None, ints(device, 0, 1, 2)))]
    assert torch.equal(outs[0], outs[1]) and torch.equal(states[0], states[1])


def test_packed_update_without_drafts(device):
    weight = make(device, torch.float32, 32, 4)
    x, state = make(device, torch.float32, 6, 32), make(device, torch.float32, 4, 32, 3)
    given, before = x.clone(), state.clone()
    bounds = [0, 2, 2, 6]
    causal_conv1d_update(x, state, weight, conv_state_indices=ints(device, 3, 1, 2),
                         query_start_loc=ints(device, *bounds), max_query_len=4)
    for s, line in ((0, 3), (2, 2)):
        rows = slice(bounds[s], bounds[s + 1])
        assert_outputs(x[rows], convolve(before[line].T, given[rows], weight))
        assert torch.equal(state[line].T, torch.cat([before[line].T, given[rows]])[-3:])
    assert torch.equal(state[:2], before[:2])


def test_update_between_blocks(device):
    weight = make(device, torch.float32, 32, 4)
    x, state = make(device, torch.float32, 2, 32), make(device, torch.float32, 6, 32, 3)
    given, before = x.clone(), state.clone()
    table = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32, device=device)
    causal_conv1d_update(x, state, weight, conv_state_indices=table,
                         initial_state_idx=ints(device, 0, 1),
                         block_idx_last_scheduled_token=ints(device, 1, 1))
    expected = before.clone()
    for row, (read, write) in enumerate(((1, 2), (4, 4))):
        assert_outputs(x[row][None], convolve(before[read].T, given[row][None], weight))
        expected[write] = torch.cat([before[read], given[row][:, None]], dim=1)[:, 1:]
    assert torch.equal(state, expected)


def test_refusals(device):
    x, weight = make(device, torch.float32, 2, 32), make(device, torch.float32, 32, 4)
    state = make(device, torch.float32, 2, 32, 3)
    with pytest.raises(ValueError, match="^out: is .torch.bfloat16"):
        causal_conv1d_update(x, state, weight, out=x.bfloat16())
    with pytest.raises(NotImplementedError, match="^activation: is 'relu'"):
        causal_conv1d_update(x, state, weight, activation="relu")
    with pytest.raises(ValueError, match="^conv_state: has 3 columns, but width 4 and 2 draft tok"):
        causal_conv1d_update(x[:, :, None].expand(2, 32, 2), state, weight,
                             num_accepted_tokens=ints(device, 1, 1))


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm, exponential", [(True, False), (False, True)])
def test_conv_and_post_conv_prep(device, layout, dtype, norm, exponential):
    """As the separate operations: the convolution, the split, the norms, the gates."""
    k_heads, v_heads, k_dim, v_dim = 2, 4, 32, 16
    keys, dim = k_heads * k_dim, 2 * k_heads * k_dim + v_heads * v_dim
    bounds, lines = ints(device, 0, 3, 4, 4, 13), ints(device, 4, 1, 2, 5)
    x = make(device, dtype, 13, dim).T
    weight, bias = weights(device, dtype, dim, 4, True)
    state = pool_of(device, dtype, 6, 3, dim, layout)
    other = state.clone()
    a, b = make(device, dtype, 13, v_heads), make(device, dtype, 13, v_heads)
    a_log, dt_bias = torch.rand(v_heads, device=device), make(device, dtype, v_heads)
    named = {"cache_indices": lines,
             "has_initial_state": torch.tensor([True, False, True, True], device=device)}
    q, k, v, g, beta = vllm.conv_and_post_conv_prep(
        x, weight, bias, state, bounds, a, b, a_log, dt_bias, k_heads, k_dim, v_dim, norm,
        exponential, **named)
    out = causal_conv1d_fn(x, weight, bias, other, bounds, **named).T
    assert torch.equal(state, other)
    for part, columns in ((q, out[:, :keys]), (k, out[:, keys : 2 * keys])):
        heads = columns.unflatten(1, (k_heads, k_dim)).contiguous()
        assert torch.equal(part, shortconv.l2_norm(heads) if norm else heads)
    assert torch.equal(v.flatten(1), out[:, 2 * keys :])
    gates = shortconv.Gates(a, b, a_log, dt_bias, decay="exp" if exponential else "log")
    for got, expected in zip((g, beta), shortconv.delta_gates(gates)):
        assert torch.equal(got, expected)
    with pytest.raises(ValueError, match="query_start_loc"):
        vllm.conv_and_post_conv_prep(x, weight, bias, state, bounds.float(), a, b, a_log, dt_bias,
                                     k_heads, k_dim, v_dim)


def test_signatures(device):
    def names(function):
        return ", ".join(inspect.signature(function).parameters)

    assert names(causal_conv1d_fn) == (
        "x, weight, bias, conv_states, query_start_loc, cache_indices, has_initial_state, "
        "activation, pad_slot_id, null_block_id, block_idx_first_scheduled_token, "
        "block_idx_last_scheduled_token, initial_state_idx, num_computed_tokens, "
        "block_size_to_align, metadata, validate_data")
    assert names(causal_conv1d_update) == (
        "x, conv_state, weight, bias, activation, conv_state_indices, num_accepted_tokens, "
        "query_start_loc, max_query_len, null_block_id, block_idx_last_scheduled_token, "
        "initial_state_idx, validate_data, out, pad_slot_id")
