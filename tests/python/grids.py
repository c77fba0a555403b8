"""What the tests of other libraries' functions share: their types, tolerances and devices."""

import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# (rtol, atol) of causal-conv1d, SGLang and vLLM for outputs; states are compared bit for bit.
TOLERANCES = {
    torch.float32: (3e-4, 1e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (1e-2, 5e-2)}


def assert_outputs(actual, expected):
    rtol, atol = TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=rtol, atol=atol)


def pick(device, on_cpu, on_gpu):
    """A smaller grid where there are two cores."""
    return on_cpu if device == "cpu" else on_gpu
