"""The Python layer: names, errors, streams, arrays of other libraries."""

import ctypes
import inspect
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import shortconv

PACKAGE = pathlib.Path(shortconv.__file__).parent


def call(function, **arguments):
    """A small valid call of `function` with some arguments replaced."""
    indices = np.zeros((2, 3), np.int32)
    if function is shortconv.backward:
        valid = {"grad_out": np.zeros((2, 3, 8), np.float32), "x": np.zeros((2, 3, 8), np.float32),
                 "weight": np.zeros((8, 4), np.float32)}
    elif function is shortconv.backward_groups:
        ones = np.ones((2, 3, 2), np.float32)
        valid = {"grad_groups": [None], "x": np.zeros((2, 3, 8), np.float32),
                 "weight": np.zeros((8, 4), np.float32), "groups": [shortconv.Group(2, 4)],
                 "gates": shortconv.Gates(ones, ones, ones[0, 0], ones[0, 0]),
                 "backend": "reference"}
    elif function in (shortconv.forward_groups, shortconv.decode_groups):
        ones = np.ones((2, 3, 2), np.float32)
        valid = {"x": np.zeros((2, 3, 8), np.float32), "weight": np.zeros((8, 4), np.float32),
                 "groups": [shortconv.Group(2, 4)], "state": np.zeros((4, 3, 8), np.float32),
                 "gates": shortconv.Gates(ones, ones, ones[0, 0], ones[0, 0])}
    elif function is shortconv.l2_norm:
        valid = {"x": np.zeros((2, 3, 2, 4), np.float32)}
    elif function is shortconv.delta_gates:
        ones = np.ones((2, 3, 2), np.float32)
        valid = {"gates": shortconv.Gates(ones, ones, ones[0, 0], ones[0, 0])}
    elif function is shortconv.block_snapshots:
        valid = {"query_start_loc": np.zeros(3, np.int32), "tokens": 0, "block_size": 4,
                 "num_computed_tokens": np.zeros(2, np.int32), "block_slots": indices,
                 "snapshots": indices.copy()}
    elif function is shortconv.tree_parents:
        valid = {"first_child": indices, "next_sibling": indices, "parents": indices.copy()}
    elif function is shortconv.commit:
        valid = {"intermediate_states": np.zeros((1, 2, 6, 8), np.float32), "width": 4,
                 "state": np.zeros((1, 4, 3, 8), np.float32), "accepted": np.zeros(2, np.int32)}
    else:
        valid = {"x": np.zeros((2, 3, 8), np.float32), "weight": np.zeros((8, 4), np.float32),
                 "state": np.zeros((4, 3, 8), np.float32)}
    return function(**{**valid, **arguments})


FUNCTIONS = [shortconv.forward, shortconv.decode, shortconv.verify, shortconv.backward,
             shortconv.commit, shortconv.block_snapshots, shortconv.tree_parents,
             shortconv.forward_groups, shortconv.decode_groups, shortconv.backward_groups,
             shortconv.l2_norm, shortconv.delta_gates]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_valid_calls_are_valid(function):
    call(function)


# Each message begins with the bad argument; a wrong order of arguments would name another one.
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_reaches_its_place(function):
    bad = {
        "threads": (-1, ValueError), "base_column": (99, ValueError),
        "backend": ("abacus", ValueError), "activation": ("relu", ValueError),
        "padded_rows": ("nan", ValueError), "stream": ("s", TypeError),
        "rows_per_token": (77, ValueError), "width": (1, ValueError), "null_slot": ("n", TypeError),
        "update_state": ("yes", TypeError),
        "programmatic_launch": ("yes", TypeError), "tokens": (-1, ValueError),
        "block_size": (0, ValueError), "residual": ("yes", TypeError),
        "shift_full_state": ("yes", TypeError), "accumulate": ("yes", TypeError),
        "dilation": (0, ValueError),
    }
    if function is not shortconv.backward:
        bad["initial_state"] = ("all", TypeError)
    named = {"base_column": "state"}  # state has too few columns
    for name in inspect.signature(function).parameters:
        value, error = bad.get(name, (object(), TypeError))  # others take arrays
        with pytest.raises(error, match=f"^{named.get(name, name)}: "):
            call(function, **{name: value})


def test_messages_come_from_the_core():
    text = "out: axis 2 ('channels') is 7, but x made 'channels' = 8"
    with pytest.raises(ValueError, match=re.escape(text)):
        call(shortconv.forward, out=np.zeros((2, 3, 7), np.float32))
    with pytest.raises(ValueError, match="x: dtype i32 is not supported"):
        call(shortconv.forward, x=np.zeros((2, 3, 8), np.int32))
    with pytest.raises(ValueError, match="intermediate_states: has 5 axes; expected at most 4"):
        call(shortconv.verify, intermediate_states=np.zeros((1, 1, 1, 1, 1), np.float32))


def test_nothing_is_written_by_a_refused_call():
    out, state = np.full((2, 3, 8), 5, np.float32), np.full((4, 3, 8), 6, np.float32)
    with pytest.raises(ValueError):
        call(shortconv.forward, out=out, state=state, read_slots=np.zeros(3, np.int32))
    assert (out == 5).all() and (state == 6).all()


def test_capabilities_equal_what_calls_accept():
    known = shortconv.capabilities()
    assert known["dtypes"] == ["f32", "f16", "bf16"]
    for width in (min(known["widths"]), known["max_width"]):
        call(shortconv.forward, weight=np.zeros((8, width), np.float32), state=None)
    with pytest.raises(ValueError, match=f"width {known['max_width'] + 1} is not supported"):
        call(shortconv.forward, weight=np.zeros((8, known["max_width"] + 1), np.float32))
    for activation in known["activations"]:
        call(shortconv.forward, activation=activation)
    backends = {row["name"]: row for row in known["backends"]}
    assert backends["cpu"]["available"] and backends["reference"]["available"]
    assert all(row["detail"] for row in known["backends"])


def examples():
    """The Python programs of the documents."""
    root = pathlib.Path(__file__).parents[2]
    blocks = [block for page in ("README.md", "docs/training.md", "docs/groups.md") for block in re.findall(
        r"^```python\n(.*?)^```", (root / page).read_text(), re.M | re.S)]
    assert len(blocks) == 7
    return blocks


@pytest.mark.parametrize("block", examples())
def test_examples_of_the_documents(block):
    if "import torch" in block:
        pytest.importorskip("torch")
    exec(block, {})


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", shortconv.__version__)


def test_numpy_is_enough():
    code = """
import sys
sys.modules.update(torch=None, jax=None, cupy=None)  # importing them fails
import numpy, shortconv
shortconv.forward(numpy.ones((2, 4), "f"), numpy.ones((4, 2), "f"))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_core_is_loaded_at_first_use():
    code = """
import sys
import shortconv
assert "forward" in dir(shortconv) and not hasattr(shortconv, "derivative")
assert not {"numpy", "torch", "tvm_ffi", "json", "shortconv._core"} & {*sys.modules}
from shortconv import decode
assert shortconv.forward is vars(shortconv)["forward"]  # later calls do not ask for it again
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_refuse_what_is_not_an_array(tmp_path):
    pytest.importorskip("mypy")
    lines = {
        "shortconv.forward(x, x, read_slots=i, has_initial_state=b).sum()": "",
        "shortconv.decode(x, x, state=x).sum() + len(shortconv.__version__)": "",
        "shortconv.verify(x, x, state=x, parents=i).sum()": "",
        "shortconv.commit(x, x, i, width=4).sum()": "",
        "shortconv.backward(x, x, x, grad_bias=False).weight.sum()": "",
        "shortconv.backward(x, x, x, grad_x='new')": 'incompatible type "str"',
        "shortconv.block_snapshots(i, i, i, tokens=1, block_size=1, snapshots=i).sum()": "",
        "shortconv.tree_parents(i, i, i).sum()": "",
        "shortconv.reference.forward(x, x, x).sum()": "",
        "shortconv.forward('no', x)": '"forward" cannot be "str"',
        "shortconv.forward(x, 5)": 'incompatible type "int"; expected "Array"',
        "shortconv.decode(x, x, state=[x])": 'expected "Array"',
        "shortconv.forward(x, x, activatoin='silu')": "Unexpected keyword argument",
        "shortconv.reference.forward('no', x)": '"forward" cannot be "str"',
    }
    path = tmp_path / "calls.py"
    header = ["import numpy as np", "import shortconv", "x = np.zeros((4, 4), np.float32)",
              "i = np.zeros(4, np.int32)", "b = np.zeros(4, np.bool_)"]
    path.write_text("\n".join([*header, *lines, ""]))
    environment = dict(os.environ)
    if PACKAGE.parent.name != "site-packages":  # where mypy looks anyway, and which it refuses here
        environment["MYPYPATH"] = str(PACKAGE.parent)
    text = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary",
         "--hide-error-context", "--cache-dir", tmp_path / "cache", path],
        env=environment, capture_output=True, text=True).stdout
    for number, (line, expected) in enumerate(lines.items(), len(header) + 1):
        found = re.findall(f"^.*calls.py:{number}: error: (.*)$", text, re.M)
        assert len(found) == (expected != "") and expected in "".join(found), (line, text)
    assert (PACKAGE / "py.typed").exists()


def test_torch_is_imported_in_one_file():
    importing = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))
                 if re.search(r"^\s*(import|from) torch\b", path.read_text(), re.M)]
    assert importing == ["_torch.py"]


def test_functions_are_annotated_and_documented():
    for function in FUNCTIONS:
        parameters = inspect.signature(function).parameters.values()
        assert all(p.annotation is not inspect.Parameter.empty for p in parameters)
        assert function.__doc__ and "Args:" in function.__doc__


class DLPackArray:
    """An array of another library: a numpy array without its first rows, by a byte offset."""

    def __init__(self, array, skipped_rows, device=(1, 0)):
        self.array, self.device = array, device
        shape = (array.shape[0] - skipped_rows, array.shape[1])
        self._shape_and_strides = (ctypes.c_int64 * 4)(*shape, array.shape[1], 1)
        pointer = ctypes.c_void_p

        class Managed(ctypes.Structure):  # DLManagedTensor of dlpack.h
            _fields_ = [
                ("data", pointer), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", pointer), ("strides", pointer), ("byte_offset", ctypes.c_uint64),
                ("manager_ctx", pointer), ("deleter", pointer)]

        address = ctypes.addressof(self._shape_and_strides)
        self._managed = Managed(
            data=array.ctypes.data, device=(ctypes.c_int32 * 2)(*device), ndim=2, code=2, bits=32,
            lanes=1, shape=address, strides=address + 16,
            byte_offset=skipped_rows * array.strides[0])

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **_):
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self._managed), b"dltensor", None)


def test_byte_offsets(random):
    x = random.standard_normal((6, 4), np.float32)
    weight = random.standard_normal((4, 3), np.float32)
    out = np.zeros((4, 4), np.float32)
    shortconv.forward(DLPackArray(x, 2), weight, out=out)
    np.testing.assert_array_equal(out, shortconv.forward(x[2:].copy(), weight))


def test_arrays_of_unknown_libraries():
    x, weight = np.zeros((6, 4), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(TypeError, match="^out: cannot make an array like .*DLPackArray; pass out="):
        shortconv.forward(DLPackArray(x, 0), weight)
    with pytest.raises(ValueError, match="^stream: is None, but .* is not known; pass stream="):
        shortconv.forward(DLPackArray(x, 0, (2, 0)), weight, out=x)
    with pytest.raises(TypeError, match="^x: is builtins.list; expected an array"):
        shortconv.forward([1.0], weight)
