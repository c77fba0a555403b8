"""Dtypes, tolerances and devices shared by the tests with torch."""

import shortconv
import torch


def has_gradients(device):
    """Whether the backend of a device has gradients: CUDA does not have them yet."""
    one = torch.ones(2, 2, device=device)
    try:
        shortconv.backward(one, one, one)
    except NotImplementedError:
        return False
    return True


DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

DEVICES_WITH_GRADIENTS = list(filter(has_gradients, DEVICES))

# (rtol, atol) of causal-conv1d, SGLang and vLLM for outputs; states are compared bit for bit.
TOLERANCES = {
    torch.float32: (3e-4, 1e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (1e-2, 5e-2)}


def assert_outputs(actual, expected):
    rtol, atol = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=rtol, atol=atol)


def pick(device, on_cpu, on_gpu):
    """A smaller grid on the CPU, where the large one would take too long."""
    return on_cpu if device == "cpu" else on_gpu


def convolve(history, x, weight, bias=None, silu=False):
    """One sequence in float64: history [width - 1, channels], x [tokens, channels]."""
    width = weight.shape[1]
    values = torch.cat([history.to(x.dtype), x]).double()
    y = sum(values[tap : tap + len(x)] * weight[:, tap].double() for tap in range(width))
    y = y if bias is None else y + bias.double()
    return torch.nn.functional.silu(y) if silu else y


def random_bounds(tokens, sequences):
    """[sequences + 1] int32: `tokens` cut into sequences of one and more."""
    cuts = torch.randperm(tokens - 1)[: sequences - 1].add(1).sort().values.tolist()
    return torch.tensor([0, *cuts, tokens], dtype=torch.int32)
