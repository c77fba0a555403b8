"""Gradients of short_conv_groups against torch's operators in float64, each sequence alone."""

import pytest

torch = pytest.importorskip("torch")

import shortconv  # noqa: E402
from grids import DEVICES  # noqa: E402
from shortconv import Group, HeadMap, models  # noqa: E402
from shortconv.torch import short_conv_groups  # noqa: E402

pytestmark = pytest.mark.parametrize("device", DEVICES)
BOUNDS = [0, 3, 3, 4, 11]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Layer:
    """Inputs of a gated delta net that need gradients."""

    def __init__(self, device, layout="interleaved", dtype=torch.float32, k_dim=16, **options):
        self.front = models.gated_delta_net(
            num_k_heads=2, num_v_heads=4, head_k_dim=k_dim, head_v_dim=8, layout=layout, **options)

        def make(*shape):
            return torch.randn(*shape).to(device, dtype).requires_grad_()

        self.inputs = {
            "x": make(11, self.front.columns), "ba": make(11, 8),
            "weight": make(self.front.channels, 4), "bias": make(self.front.channels),
            "initial_state": make(4, 3, self.front.channels),
            "a_log": torch.randn(4, device=device).requires_grad_(), "dt_bias": make(4)}

    def call(self, x, ba, weight, bias, initial_state, a_log, dt_bias):
        bounds = torch.tensor(BOUNDS, dtype=torch.int32, device=x.device)
        (groups, g, beta), final = short_conv_groups(
            x, weight, bias, groups=self.front.groups, gates=self.front.gates(ba, a_log, dt_bias),
            query_start_loc=bounds, initial_state=initial_state, return_final_state=True,
            activation="silu")
        return [*groups, g, beta, final]


def columns_of(one, heads, head_dim):
    blocks = one.block_heads or heads
    return [one.offset + h // blocks * one.block_stride + h % blocks * (one.head_stride or head_dim)
            + d for h in range(heads) for d in range(head_dim)]


def expected(front, x, ba, weight, bias, initial_state, a_log, dt_bias):
    """The results by torch's operators."""
    convolved = [one for one in front.groups if not one.copy]
    rows = torch.cat([x[:, columns_of(one.input, one.heads, one.head_dim)] for one in convolved], 1)
    outs, finals = [], []
    for s, (begin, end) in enumerate(zip(BOUNDS[:-1], BOUNDS[1:])):
        history = torch.cat([initial_state[s], rows[begin:end]])
        finals.append(history[end - begin:])
        if end > begin:
            out = torch.nn.functional.conv1d(history.T[None], weight[:, None], bias,
                                             groups=len(weight))[0].T
            outs.append(torch.nn.functional.silu(out))
    parts = iter(torch.cat(outs).split([one.heads * one.head_dim for one in convolved], 1))
    results = []
    for one in front.groups:
        if one.copy:
            part = x[:, columns_of(one.input, one.heads, one.head_dim)]
        else:
            part = next(parts)
        part = part.unflatten(1, (one.heads, one.head_dim))
        if one.l2_norm:
            part = part / (part.square().sum(-1, keepdim=True) + one.eps).sqrt() * one.scale
        results.append(part)
    a, b = (ba[:, columns_of(one, 4, 1)] for one in front.gate_maps)
    g = -a_log.exp() * torch.nn.functional.softplus(a + dt_bias)
    results += [g.exp() if front.decay == "exp" else g, front.beta_factor * b.sigmoid()]
    return [*results, torch.stack(finals)]


@pytest.mark.parametrize("layout", ["interleaved", "flat"])
@pytest.mark.parametrize("options", [{}, {"decay": "exp", "beta_factor": 2.0, "normalize": False},
                                     {"copy_z": False}])
def test_gradients(device, layout, options):
    layer = Layer(device, layout, **options)
    results = layer.call(**layer.inputs)
    wide = {name: one.detach().double().requires_grad_() for name, one in layer.inputs.items()}
    exact = expected(layer.front, **wide)
    grads = [torch.randn_like(one) for one in results]
    for got, other in zip(results, exact):
        torch.testing.assert_close(got.double(), other, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(results, list(layer.inputs.values()), grads)
    exact = torch.autograd.grad(exact, list(wide.values()), [one.double() for one in grads])
    for name, got, other in zip(layer.inputs, found, exact):
        assert got.dtype == layer.inputs[name].dtype and got.shape == layer.inputs[name].shape
        torch.testing.assert_close(got.double(), other, rtol=1e-4, atol=1e-4, msg=name)


def test_results_are_those_of_forward_groups_and_runs_repeat(device):
    layer = Layer(device, dtype=torch.bfloat16)
    detached = {name: one.detach() for name, one in layer.inputs.items()}
    results = layer.call(**layer.inputs)
    ba, a_log, dt_bias = (detached[name] for name in ("ba", "a_log", "dt_bias"))
    state = detached["initial_state"].clone()
    groups, g, beta = shortconv.forward_groups(
        detached["x"], detached["weight"], detached["bias"], groups=layer.front.groups,
        gates=layer.front.gates(ba, a_log, dt_bias), state=state, initial_state=True,
        query_start_loc=torch.tensor(BOUNDS, dtype=torch.int32, device=device), activation="silu")
    for got, other in zip(results, [*groups, g, beta, state]):
        assert torch.equal(got, other)
    grads = [torch.randn_like(one) for one in results]
    first = torch.autograd.grad(results, list(layer.inputs.values()), grads)
    again = torch.autograd.grad(layer.call(**layer.inputs), list(layer.inputs.values()), grads)
    for one, other in zip(first, again):
        assert torch.equal(one, other)


def test_only_what_is_needed_is_differentiated(device):
    layer = Layer(device)
    inputs = {name: one.detach() for name, one in layer.inputs.items()}
    inputs["weight"].requires_grad_()
    results = layer.call(**inputs)
    assert all(one.requires_grad for one in results)
    results[0].sum().backward()
    assert inputs["weight"].grad.abs().sum() > 0 and inputs["x"].grad is None
    inputs["weight"] = inputs["weight"].detach()
    assert not any(one.requires_grad for one in layer.call(**inputs))


def test_gradients_of_copied_columns_and_of_columns_that_are_not_read(device):
    x = torch.randn(2, 5, 12, device=device, requires_grad=True)
    weight = torch.randn(4, 3, device=device)
    groups = [Group(1, 4, HeadMap(8)), Group(2, 2, HeadMap(0, 4), copy=True)]
    results, final = short_conv_groups(x, weight, groups=groups)
    assert final is None and results.g is None
    (3 * results.groups[1].sum()).backward()
    expected_row = torch.tensor([3.0, 3, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0], device=device)
    assert torch.equal(x.grad, expected_row.expand(2, 5, 12))
    with pytest.raises(NotImplementedError, match="groups: two of them read the same column"):
        groups[1] = Group(2, 2, HeadMap(7, 2), copy=True)
        short_conv_groups(x, weight, groups=groups)[0].groups[0].sum().backward()


def test_there_is_no_double_backward(device):
    layer = Layer(device)
    x = layer.inputs["x"]
    loss = layer.call(**layer.inputs)[0].square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        grad.sum().backward()
