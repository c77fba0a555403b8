"""SHORTCONV_CHECK: the checked mode for every call."""

import os
import subprocess
import sys

import numpy as np
import pytest
import shortconv
from shortconv import _check, _core

try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="needs torch")
WEIGHT = np.ones((8, 4), np.float32)
# Bounds for 10 rows that used to give zeros silently, and what is told about them.
BAD_BOUNDS = {
    "another batch's": ([64, 70, 74], "query_start_loc outside: 3, first at 0"),
    "lengths": ([5, 3, 2], "query_start_loc decreasing: 2, first at 1"),
    "ascending lengths": ([2, 3, 5], "query_start_loc does not start at 0: 1, first at 0"),
    "no leading 0": ([4, 10], "query_start_loc does not start at 0: 1, first at 0"),
}


@pytest.fixture
def raising(monkeypatch):
    checked = _check.checked(_core.forward, "raise", _core.violations())
    monkeypatch.setattr(_core, "forward", checked)
    if torch is not None:  # as at import, where the variable decides
        from shortconv import _torch

        monkeypatch.setattr(_torch, "_core_forward", checked)
        monkeypatch.setattr(_torch._RUN, "core", checked)


def finish(arrays):
    if arrays.kind == "torch-cuda":
        torch.cuda.synchronize()


def call(arrays, bounds, **others):
    return shortconv.forward(arrays.of(np.ones((10, 8), np.float32)), arrays.of(WEIGHT),
                             query_start_loc=arrays.of(np.array(bounds, np.int32)), **others)


@needs_torch
def test_the_convolution_with_gradients_is_checked(raising):
    from shortconv.torch import ShortConv1d, short_conv

    bounds, layer = torch.tensor([0, 11], dtype=torch.int32), ShortConv1d(8, 4)
    x = torch.ones(10, 8, requires_grad=True)
    calls = {"short_conv": lambda: short_conv(x, torch.ones(8, 4), query_start_loc=bounds),
             "ShortConv1d.forward": lambda: layer(x, query_start_loc=bounds)}
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^shortconv.torch.{name}: bad index values .*outsid"):
            call()


@pytest.mark.parametrize("case", BAD_BOUNDS)
def test_bad_bounds(arrays, raising, case):
    bounds, message = BAD_BOUNDS[case]
    call(arrays, [0, 4, 10])
    finish(arrays)
    with pytest.raises(ValueError) as raised:
        call(arrays, bounds)
        finish(arrays)  # on a GPU the next call tells
        call(arrays, [0, 4, 10])
    assert str(raised.value).startswith("shortconv.forward: bad index values (SHORTCONV_CHECK). ")
    assert message in str(raised.value)
    call(arrays, [0, 4, 10])


def test_bad_slots_and_several_kinds(arrays, raising):
    state = arrays.of(np.zeros((3, 3, 8), np.float32))
    with pytest.raises(ValueError) as raised:
        shortconv.decode(arrays.of(np.ones((4, 8), np.float32)), arrays.of(WEIGHT), state=state,
                         read_slots=arrays.of(np.array([0, 7, 1, 0], np.int32)))
        finish(arrays)
        call(arrays, [0, 10])
    assert str(raised.value) == (
        "shortconv.decode: bad index values (SHORTCONV_CHECK). read slot outside: 1, first at 1. "
        "The pool has no such slot; the sequence was skipped like padding. write slot shared: 1, "
        "first at 3. An earlier live sequence writes the same slot; its contents are undefined, "
        "and so are the outputs of sequences that continue from it.")


def test_padding_is_not_reported(arrays, raising):
    state = arrays.of(np.zeros((3, 3, 8), np.float32))
    call(arrays, [0, 4, 6, 6, 6], state=state,
         read_slots=arrays.of(np.array([2, 0, -1, -1], np.int32)))
    finish(arrays)
    call(arrays, [0, 10])


def test_a_report_of_the_caller_wins(arrays, raising):
    report = arrays.of(np.zeros((13, 2), np.int64))
    call(arrays, [0, 4, 70], violations=report)
    assert arrays.numpy(report)[0, 0] == 1
    finish(arrays)
    call(arrays, [0, 10])


def test_read_only_arrays_are_checked_as_well(raising):
    bounds = np.frombuffer(np.array([64, 70], np.int32).tobytes(), np.int32)
    with pytest.raises(ValueError, match="query_start_loc outside: 2"):
        shortconv.forward(np.ones((10, 8), np.float32), WEIGHT, query_start_loc=bounds)


@needs_torch
@pytest.mark.parametrize("name", [
    "vllm.causal_conv1d_fn", "sglang.triton.causal_conv1d_fn", "fla.causal_conv1d"])
def test_compat_functions_are_named(raising, name):
    from shortconv.compat import fla, sglang, vllm

    x, weight = torch.ones(10, 8), torch.ones(8, 4)
    bounds = torch.tensor([64, 70, 74], dtype=torch.int32)
    calls = {
        "vllm": lambda: vllm.causal_conv1d_fn(x.T, weight, None, torch.zeros(3, 8, 3), bounds),
        "sglang": lambda: sglang.causal_conv1d_fn(x.T, weight, None, None, bounds),
        "fla": lambda: fla.causal_conv1d(x[None], weight, cu_seqlens=bounds)}
    with pytest.raises(ValueError, match=f"^shortconv.compat.{name}: bad index values"):
        calls[name.partition(".")[0]]()


@needs_torch
def test_shortconv_torch_and_compiled_code_are_checked(raising):
    from shortconv import torch as conv

    x, weight = torch.ones(10, 8), torch.ones(8, 4)
    bounds = torch.tensor([64, 70, 74], dtype=torch.int32)
    with pytest.raises(ValueError, match="^shortconv.forward: bad index values"):
        conv.forward(x, weight, query_start_loc=bounds)
    with pytest.raises(ValueError, match="^shortconv.forward: bad index values"):
        torch.ops.shortconv.run(0, x, torch.empty_like(x), weight, None, None, None, bounds)


class Emulated:
    """_check._TorchDevice with tensors on the CPU: events and captures are made by the test."""

    def __init__(self, monkeypatch):
        self.capturing, self.arrived = False, True
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.arrive())
        test = self

        class Event:
            def record(self):
                pass

            def query(self):
                return test.arrived

        monkeypatch.setattr(torch.cuda, "Event", Event)
        kinds = len(_check.json.loads(_core.violations())) + 1
        self.device = _check._TorchDevice(torch.device("cpu"), kinds)
        self.device._pinned = lambda shape: torch.empty(shape, dtype=torch.int64)

    def arrive(self):
        self.arrived = True

    def call(self, name, bounds):
        x, weight = torch.ones(10, 8), torch.ones(8, 4)
        bounds = torch.tensor(bounds, dtype=torch.int32)
        self.device.call(name, _core.forward, (
            0, x, torch.empty_like(x), weight, None, None, None, bounds, *[None] * 5), bounds)

    def told(self, **arguments):
        return [(name, {kind: list(row) for kind, row in enumerate(rows) if row[0]})
                for name, rows in self.device.finished(**arguments)
                if any(count for count, _ in rows)]


@needs_torch
def test_reports_of_a_gpu_are_told_when_they_arrive(monkeypatch):
    gpu = Emulated(monkeypatch)
    gpu.arrived = False
    gpu.call("f", [64, 70, 74])
    gpu.call("g", [4, 10])
    assert gpu.told() == []
    gpu.arrived = True
    assert gpu.told() == [("f", {0: [3, 0], 13: [1, 0]}), ("g", {13: [1, 0]})]
    assert gpu.told() == []
    gpu.arrived = False
    gpu.call("h", [0, 20])
    assert gpu.told(at_exit=True) == [("h", {0: [1, 1]})]


@needs_torch
def test_replays_are_told_by_later_calls(monkeypatch, caplog):
    gpu = Emulated(monkeypatch)
    gpu.capturing = True
    gpu.call("f", [0, 20])
    assert "f is not checked, because it is captured" in caplog.text
    gpu.capturing = False
    gpu.call("f", [0, 10])
    assert gpu.told() == []
    gpu.capturing = True
    for _ in range(2):  # what two replays do
        gpu.call("f", [0, 20])
        gpu.call("g", [0, 5, 3])
        assert gpu.told() == []
    gpu.capturing = False
    gpu.call("h", [0, 10])
    in_graph = [("f in a CUDA graph", {0: [2, 1]}), ("g in a CUDA graph", {1: [2, 2]})]
    assert gpu.told() == in_graph
    gpu.call("h", [0, 10])
    assert gpu.told() == []
    gpu.capturing = True
    gpu.call("f", [0, 20])
    gpu.capturing = False
    assert gpu.told(at_exit=True) == [("f in a CUDA graph", {0: [1, 1]})]


@pytest.mark.skipif(torch is None or not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_on_a_gpu(raising):
    def forward():
        return shortconv.forward(x, weight, query_start_loc=bounds)

    x, weight = torch.ones(10, 8, device="cuda"), torch.ones(8, 4, device="cuda")
    bounds = torch.tensor([0, 4, 10], dtype=torch.int32, device="cuda")
    forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    bounds.copy_(torch.tensor([64, 70, 74]))
    graph.replay()
    bounds.copy_(torch.tensor([0, 4, 10]))
    forward()
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="^shortconv.forward in a CUDA graph: .* outside: 3"):
        forward()


def run_python(value, code):
    environment = {name: one for name, one in os.environ.items() if name != "SHORTCONV_CHECK"}
    if value is not None:
        environment["SHORTCONV_CHECK"] = value
    code = f"import numpy as np, shortconv, sys\nfrom shortconv import _core\n{code}"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True)


BAD_CALL = """
shortconv.forward(np.ones((10, 8), "f"), np.ones((8, 4), "f"),
                  query_start_loc=np.array([64, 70, 74], "i"))
print("went on")
"""


@pytest.mark.parametrize("value", ["1", "raise"])
def test_values_that_raise(value):
    done = run_python(value, BAD_CALL)
    assert done.returncode == 1 and done.stdout == ""
    assert "ValueError: shortconv.forward: bad index values (SHORTCONV_CHECK)" in done.stderr


def test_value_that_logs():
    done = run_python("log", BAD_CALL)
    assert done.returncode == 0 and done.stdout == "went on\n"
    assert done.stderr.startswith("shortconv.forward: bad index values (SHORTCONV_CHECK)")


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_the_variable_nothing_is_added(value):
    done = run_python(value, BAD_CALL + """
assert "shortconv._check" not in sys.modules and _core.forward is _core._module.forward
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_unknown_value():
    done = run_python("yes", "")
    assert done.returncode == 1
    assert "ValueError: SHORTCONV_CHECK: is 'yes'; expected 1 or raise, log, or 0" in done.stderr
