"""Which backward passes of short_conv_groups are one call of backward_groups."""

import pytest

torch = pytest.importorskip("torch")

from shortconv import models  # noqa: E402
from shortconv._training_groups import _is_supported, _memory, _Options  # noqa: E402
from shortconv.torch import short_conv_groups  # noqa: E402


def rows_of_memory(tokens, offset=0, pitch=32):
    return torch.zeros(tokens * pitch + offset)[offset:].view(tokens, pitch)[:, :16]


def test_a_refusal_is_kept_for_tensors_with_like_memory_alone():
    kept = _memory(rows_of_memory(5), False)
    assert _memory(rows_of_memory(9), False) == kept
    assert _memory(rows_of_memory(5, offset=1), False) != kept
    assert _memory(rows_of_memory(5, pitch=33), False) != kept
    batch = torch.zeros(2, 5, 16)
    assert _memory(batch, True) != _memory(batch[:, 1:], True)


@pytest.mark.parametrize("width, head_dim, dtype, is_supported", [
    (4, 128, torch.bfloat16, True), (2, 8, torch.float16, True), (3, 64, torch.float32, True),
    (5, 128, torch.bfloat16, False), (4, 256, torch.bfloat16, False),
    (4, 96, torch.bfloat16, False), (4, 128, torch.float32, False)])
def test_compiled_training_composes_what_may_be_refused(width, head_dim, dtype, is_supported):
    front = models.kimi_delta_attention(num_heads=2, head_dim=head_dim, normalize=True)
    options = _Options(tuple(front.groups), None, None, None, "silu", False, None, 0)
    x, weight = torch.zeros(5, front.columns, dtype=dtype), torch.zeros(front.channels, width)
    grads = [torch.zeros(5, one.heads, one.head_dim, dtype=dtype) for one in front.groups]
    assert _is_supported(options, (x, weight), grads) == is_supported
    if is_supported:
        shifted = torch.zeros(x.numel() + 1, dtype=dtype)[1:].view(x.shape)
        assert not _is_supported(options, (shifted, weight), grads)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("decay", ["log", "exp"])
def test_compiled_training_composes_in_one_graph(decay, packed):
    """With b and a in one tensor, of which torch 2.11 would lose a gradient."""
    torch.manual_seed(3)
    front = models.gated_delta_net(num_k_heads=1, num_v_heads=2, head_k_dim=4, head_v_dim=6,
                                   decay=decay)
    groups = (front.groups[0]._replace(input_scale=0.5), *front.groups[1:])
    batch = () if packed else (2,)
    shapes = [(*batch, 9, front.columns), (front.channels, 4), (*batch, 9, 4), (2,), (2,)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    options = {}
    if packed:
        options["query_start_loc"] = torch.tensor([1, 4, 8], dtype=torch.int32)

    def run(x, weight, *gates):
        (parts, g, beta), final = short_conv_groups(
            x, weight, groups=groups, gates=front.gates(*gates), activation="silu",
            return_final_state=True, **options)
        rows = [one[1:8] if packed else one for one in (*parts, g, beta)]  # without padding
        return sum(one.square().sum() for one in rows) + final.square().sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for one, other in zip(*(torch.autograd.grad(f(*inputs), inputs) for f in (compiled, run))):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("loss", [torch.sum, lambda out: out.square().sum()])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_there_is_no_second_gradient(backend, loss):
    """Also where it could be mistaken for zero: the gradient does not depend on the loss."""
    front = models.kimi_delta_attention(num_heads=1, head_dim=4)
    x = torch.randn(6, front.columns, requires_grad=True)
    weight = torch.randn(front.channels, 4, requires_grad=True)
    (parts, _, _), _ = short_conv_groups(x, weight, groups=front.groups, activation="silu",
                                         backend=backend)
    grad, = torch.autograd.grad(sum(map(loss, parts)), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        torch.autograd.grad(grad.square().sum() + x.square().sum(), x)


@pytest.mark.parametrize("shape, bounds", [((0,), None), ((0,), [0]), ((2, 0), None),
                                           ((0, 3), None)])
def test_gradients_without_tokens(shape, bounds):
    front = models.gated_delta_net(num_k_heads=1, num_v_heads=2, head_k_dim=4, head_v_dim=4)
    shapes = [(*shape, front.columns), (front.channels, 4), (*shape, 4), (2,), (2,)]
    x, weight, *gates = (torch.randn(one, requires_grad=True) for one in shapes)
    options = {} if bounds is None else {"query_start_loc": torch.tensor(bounds)}
    (parts, g, beta), _ = short_conv_groups(
        x, weight, groups=front.groups, gates=front.gates(*gates), **options)
    sum(one.sum() for one in (*parts, g, beta)).backward()
    assert x.grad.shape == x.shape and not weight.grad.any() and not gates[1].grad.any()
