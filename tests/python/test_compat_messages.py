"""Bad arguments of shortconv.compat: messages have the names and axes of the caller's function, and
the backward pass is refused for each argument that the result depends on."""

import pytest

torch = pytest.importorskip("torch")

from grids import DEVICES  # noqa: E402
from shortconv import torch as conv  # noqa: E402
from shortconv.compat import causal_conv1d, fla, sglang, vllm  # noqa: E402
from shortconv.compat.sglang import dispatcher  # noqa: E402

DIM, WIDTH = 8, 4


@pytest.fixture(params=DEVICES, autouse=True)
def device(request):
    with torch.device(request.param):
        torch.manual_seed(0)
        yield request.param


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def pool(slots=5, columns=3):
    return torch.randn(slots, columns, DIM).transpose(1, 2)


def weight(channels=DIM):
    return torch.randn(channels, WIDTH)


def rows(*shape):
    return torch.randn(*shape, DIM)


def vllm_fn(x=None, state=None, slots=None, **others):
    return vllm.causal_conv1d_fn(
        rows(5).T if x is None else x, weight(), None, pool() if state is None else state,
        ints(0, 2, 5), cache_indices=slots, **others)


def sglang_fn(x=None, state=None, slots=None, **others):
    return sglang.causal_conv1d_fn(
        rows(5).T if x is None else x, weight(), None, pool() if state is None else state,
        ints(0, 2, 5), None, cache_indices=slots, **others)


def dispatcher_fn(x=None, state=None, slots=None, **others):
    return dispatcher.causal_conv1d_fn(
        rows(5).T if x is None else x, weight(), query_start_loc=ints(0, 2, 5),
        cache_indices=slots, conv_states=pool() if state is None else state, **others)


def update_of(module):
    def update(x=None, state=None, slots=None, **others):
        return module.causal_conv1d_update(
            rows(2) if x is None else x, pool() if state is None else state, weight(),
            conv_state_indices=slots, **others)

    return update


PACKED = pytest.mark.parametrize("call", [vllm_fn, sglang_fn, dispatcher_fn])
UPDATE = pytest.mark.parametrize("call", [
    update_of(module) for module in (vllm, sglang, dispatcher, causal_conv1d)])


@PACKED
@pytest.mark.parametrize("arguments, message", [
    (lambda: {"slots": torch.zeros(2)}, "cache_indices: dtype f32 is not supported (i32, i64)"),
    (lambda: {"slots": ints(1)},
     "cache_indices: axis 'sequences' is 1, but query_start_loc made 'sequences' = 2"),
    (lambda: {"state": pool(1)},
     "conv_states: has 1 slots, but without cache_indices sequence s uses slot s; expected at "
     "least 2"),
    (lambda: {"state": pool(5, 2), "slots": ints(1, 2)},
     "conv_states: has 2 columns, but width 4 needs 3"),
    (lambda: {"state": rows(5), "slots": ints(1, 2)},
     "conv_states: expected 3 axes [slots, channels, columns], got 2"),
    (lambda: {"state": pool().to(torch.int8), "slots": ints(1, 2)},
     "conv_states: dtype i8 is not supported (f32, f16, bf16, f64)"),
    (lambda: {"x": rows(), "slots": ints(1, 2)}, "x: expected 2 axes [channels, tokens], got 1"),
    (lambda: {"state": pool(1).expand(5, DIM, 3), "slots": ints(1, 2)},
     "conv_states: an axis has stride 0 but is written"),
])
def test_packed_functions_name_their_arguments(call, arguments, message):
    with pytest.raises(ValueError) as raised:
        call(**arguments())
    assert str(raised.value) == message


@UPDATE
@pytest.mark.parametrize("arguments, message", [
    (lambda: {"slots": torch.zeros(2)},
     "conv_state_indices: dtype f32 is not supported (i32, i64)"),
    (lambda: {"slots": ints(1)},
     "conv_state_indices: axis 'sequences' is 1, but x made 'sequences' = 2"),
    (lambda: {"state": pool(1)},
     "conv_state: has 1 slots, but without conv_state_indices sequence s uses slot s; expected at "
     "least 2"),
    (lambda: {"state": pool(5, 2), "slots": ints(1, 2)},
     "conv_state: has 2 columns, but width 4 needs 3"),
    (lambda: {"state": rows(5), "slots": ints(1, 2)},
     "conv_state: expected 3 axes [slots, channels, columns], got 2"),
    (lambda: {"x": rows(1, 1, 1)}, "x: expected 2 axes [sequences, channels], got 4"),
])
def test_update_functions_name_their_arguments(call, arguments, message):
    with pytest.raises(ValueError) as raised:
        call(**arguments())
    assert str(raised.value) == message


@pytest.mark.parametrize("call, message", [
    (lambda: vllm.causal_conv1d_update(
        rows(5), pool(9, 6), weight(), conv_state_indices=ints(1, 2),
        num_accepted_tokens=ints(1, 1), query_start_loc=ints(0, 2, 5)),
     "max_query_len: is -1; expected the number of tokens of the longest sequence, with "
     "query_start_loc and num_accepted_tokens"),
    (lambda: vllm.causal_conv1d_update(
        rows(2), pool(9, 6), weight(), num_accepted_tokens=torch.ones(2)),
     "num_accepted_tokens: dtype f32 is not supported (i32, i64)"),
    (lambda: vllm.causal_conv1d_update(
        rows(2), rows(9), weight(), num_accepted_tokens=ints(1, 1)),
     "conv_state: is of shape (9, 8); expected [slots, channels, columns]"),
    (lambda: sglang.causal_conv1d_update(rows(2), None, weight(), num_accept_tokens=ints(1, 1)),
     "conv_state: is absent; expected [slots, channels, columns]"),
    (lambda: sglang.causal_conv1d_update(rows(2), None, weight()),
     "conv_state: is absent, but sequences continue from it"),
    (lambda: vllm_fn(slots=ints(1, 2), block_idx_last_scheduled_token=ints(0, 0),
                     num_computed_tokens=ints(0, 0), block_size_to_align=4),
     "cache_indices: has no blocks; expected [sequences, blocks] with "
     "block_idx_last_scheduled_token and block_size_to_align"),
    (lambda: vllm_fn(slots=torch.ones(2, 3), block_idx_last_scheduled_token=ints(0, 0),
                     num_computed_tokens=ints(0, 0), block_size_to_align=4),
     "cache_indices: dtype f32 is not supported (i32, i64)"),
    (lambda: sglang.causal_conv1d_update(
        rows(2, 3).mT, pool(), weight(), intermediate_conv_window=rows(4, 2)),
     "intermediate_conv_window: is of shape (4, 2, 8); expected [rows, steps, channels, width - "
     "1]"),
    (lambda: sglang.causal_conv1d_update(
        rows(2, 3).mT, pool(), weight(), intermediate_conv_window=torch.randn(4, 3, DIM, 2)),
     "intermediate_conv_window: axis 'width - 1' is 2, but weight made 'width - 1' = 3"),
    (lambda: sglang.causal_conv1d_update(
        rows(2, 3).mT, pool(), weight(), retrieve_next_token=torch.full((2, 3), -1),
        retrieve_next_sibling=torch.full((2, 4), -1)),
     "retrieve_next_sibling: axis 'tokens' is 4, but retrieve_next_token made 'tokens' = 3"),
    (lambda: causal_conv1d.causal_conv1d_fn(rows(2, 5).mT, weight(), initial_states=pool(2, 2)),
     "initial_states: is of shape (2, 8, 2); expected (2, 8, 3) (batch, channels, width - 1)"),
    (lambda: causal_conv1d.causal_conv1d_fn(rows(2, 5).mT, weight(), initial_states=pool(1)),
     "initial_states: is of shape (1, 8, 3); expected (2, 8, 3) (batch, channels, width - 1)"),
    (lambda: causal_conv1d.causal_conv1d_fn(
        rows(2, 5).mT, weight(), return_final_states=True, final_states_out=rows(2, 3)),
     "final_states_out: is of shape (2, 3, 8); expected (2, 8, 3) (batch, channels, width - 1)"),
    (lambda: causal_conv1d.causal_conv1d_fn(
        rows(2, 5).mT, weight(), seq_idx=torch.zeros(2, 5).int(), initial_states=pool(2, 2)),
     "initial_states: has 2 columns, but width 4 needs 3"),
    (lambda: causal_conv1d.causal_conv1d_fn(rows(2), weight(), return_final_states=True),
     "x: is of shape (2, 8); expected [batch, channels, tokens]"),
    (lambda: fla.causal_conv1d(rows(1, 5), weight(), cu_seqlens=torch.zeros(2)),
     "cu_seqlens: dtype f32 is not supported (i32, i64)"),
    (lambda: fla.causal_conv1d(rows(1, 5), torch.randn(DIM)),
     "weight: is of shape (8,); expected [channels, width] or [channels, 1, width]"),
    (lambda: fla.causal_conv1d(rows(1, 5), weight(), initial_state=pool(1, 3)),
     "initial_state: has 3 columns, but width 4 needs 4"),
    (lambda: fla.causal_conv1d_update(rows(5), pool(4, 4), weight=weight()),
     "cache: has 4 slots, but without slot numbers sequence s uses slot s; expected at least 5"),
    (lambda: fla.short_convolution(rows(2, 5), weight(), cache=pool(2, 2)),
     "cache: has 2 columns, but width 4 needs 4"),
])
def test_rare_arguments_are_named(call, message):
    with pytest.raises(ValueError) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize("call", [sglang_fn, dispatcher_fn])
def test_unknown_keywords_are_refused_by_name(call):
    known = call(slots=ints(1, 2), block_table=torch.zeros(3, 2).int())
    assert known.shape == (DIM, 5)
    with pytest.raises(TypeError, match="^chunk_states: is not a known argument"):
        call(slots=ints(1, 2), chunk_states=None)


def test_words_of_the_core_remain_without_a_table():
    with pytest.raises(ValueError, match=r"^state: has 2 columns, .* 0 \(base_column\) on$"):
        conv.decode(rows(2), weight(), state=rows(2, 2))


@pytest.mark.parametrize("dtype, name", [
    (torch.bool, "bool"), (torch.int8, "i8"), (torch.uint8, "u8"), (torch.uint16, "u16"),
    (torch.complex64, "complex64"), (torch.float8_e4m3fn, "f8_e4m3fn"),
    (torch.float8_e5m2, "f8_e5m2"), (torch.float8_e8m0fnu, "f8_e8m0fnu")])
def test_unsupported_dtypes_are_named(dtype, name):
    x = torch.zeros(2, DIM).to(dtype)
    for call in (lambda: conv.forward(x, weight()), lambda: update_of(vllm)(x)):
        with pytest.raises(ValueError, match=f"^x: dtype {name} is not supported"):
            call()


DIFFERENTIABLE = {
    "vllm fn": (lambda x, w, b, s: vllm.causal_conv1d_fn(
        x, w, b, s, ints(0, 2, 5), has_initial_state=torch.ones(2).bool()), (DIM, 5)),
    "vllm update": (lambda x, w, b, s: vllm.causal_conv1d_update(
        x, s, w, b, out=torch.empty_like(x)), (2, DIM)),
    "vllm update in place": (lambda x, w, b, s: vllm.causal_conv1d_update(x.clone(), s, w, b),
                             (2, DIM)),
    "vllm drafts": (lambda x, w, b, s: vllm.causal_conv1d_update(
        x, s, w, b, num_accepted_tokens=ints(1, 1), out=torch.empty_like(x)), (2, DIM, 1)),
    "vllm drafts in place": (lambda x, w, b, s: vllm.causal_conv1d_update(
        x.clone(), s, w, b, num_accepted_tokens=ints(1, 1)), (2, DIM, 1)),
    "sglang fn": (lambda x, w, b, s: sglang.causal_conv1d_fn(
        x, w, b, s, ints(0, 2, 5), has_initial_state=torch.ones(2).bool()), (DIM, 5)),
    "sglang update": (lambda x, w, b, s: sglang.causal_conv1d_update(x, s, w, b), (2, DIM)),
    "sglang drafts": (lambda x, w, b, s: sglang.causal_conv1d_update(
        x, s, w, b, num_accept_tokens=ints(1, 1)), (2, DIM)),
    "sglang dispatcher": (lambda x, w, b, s: dispatcher.causal_conv1d_fn(
        x, w, b, conv_states=s, has_initial_state=torch.ones(2).bool()), (2, DIM, 3)),
    "sglang dispatcher update": (lambda x, w, b, s: dispatcher.causal_conv1d_update(
        x.clone(), s, w, b), (2, DIM)),
    "causal-conv1d update": (lambda x, w, b, s: causal_conv1d.causal_conv1d_update(x, s, w, b),
                             (2, DIM)),
    "fla residual": (lambda x, w, b, s: fla.causal_conv1d_update(x, s, x.detach(), w, b)[0],
                     (2, DIM)),
    "fla update": (lambda x, w, b, s: fla.causal_conv1d_update(x, s, None, w, b)[0], (2, DIM)),
}


@pytest.mark.parametrize("argument", range(4), ids=["x", "weight", "bias", "state"])
@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_the_backward_pass_is_refused(case, argument):
    call, shape = DIFFERENTIABLE[case]
    columns = 4 if case.startswith("fla") else 3
    given = [torch.randn(shape), weight(), torch.randn(DIM), torch.randn(2, DIM, columns)]
    given[argument].requires_grad_()
    with pytest.raises(NotImplementedError, match="no backward pass"):
        call(*given).sum().backward()
