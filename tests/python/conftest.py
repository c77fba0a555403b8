"""Tests run on all available kinds of arrays: numpy, torch on the CPU, torch on a GPU.

SHORTCONV_TEST_ARRAYS lists the required kinds ("numpy,torch-cpu,torch-cuda"), so that a run meant
for a GPU does not pass without one.
"""

import os
import sys

# Set before torch loads OpenMP: the calls here are small, and its waiting threads slow others down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

try:
    import torch
except ImportError:
    torch = None


def _available():
    kinds = ["numpy"]
    if torch is not None:
        kinds.append("torch-cpu")
        if torch.cuda.is_available():
            kinds.append("torch-cuda")
    return kinds


def pytest_configure(config):
    required = os.environ.get("SHORTCONV_TEST_ARRAYS", "")
    missing = [kind for kind in required.split(",") if kind and kind not in _available()]
    if missing:
        raise pytest.UsageError(f"not available: {', '.join(missing)}")


def pytest_report_header(config):
    return f"arrays: {', '.join(_available())}"


class Arrays:
    """Converts numpy arrays to one kind and back; memory layout is kept."""

    def __init__(self, kind):
        self.kind = kind

    def of(self, array):
        if array is None or self.kind == "numpy":
            return array
        tensor = torch.from_numpy(array)
        return tensor if self.kind == "torch-cpu" else tensor.cuda()

    def numpy(self, array):
        return array if self.kind == "numpy" else array.cpu().numpy()

    @property
    def backends(self):
        return ["cuda"] if self.kind == "torch-cuda" else ["cpu", "reference"]


@pytest.fixture(params=_available())
def arrays(request):
    return Arrays(request.param)


@pytest.fixture
def random():
    return np.random.default_rng(20260101)


@pytest.fixture
def seeded_and_without_hooks():
    """For tests of plug-ins: a seed, and no import hooks of a test that failed."""
    torch.manual_seed(0)
    before = list(sys.meta_path)
    yield
    sys.meta_path[:] = before
