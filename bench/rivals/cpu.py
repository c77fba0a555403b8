#!/usr/bin/env python3
"""The CPU backend beside torch's conv1d (oneDNN) and ggml's ssm_conv, which llama.cpp runs.

    bench/rivals/cpu.py RESULTS.json [--threads 1 2] [--ggml FOLDER] [--rounds 15] [--tiny]

All compute the convolution of width 4 alone, without bias and activation, as ssm_conv does; ours
and torch's with SiLU in rows of their own. Each has the layout that it wants, prepared before: ours
rows [tokens, channels]; torch and ggml runs of tokens [channels, tokens] with the history in front.
In a decode ours and torch's update the states, ggml's does not: its input has been put together
already. Results are compared with fp64 before they are timed.

FOLDER has libggml-base.so and libggml-cpu.so, as the wheel of pywhispercpp. All rivals and a copy
of x, whose bytes are those of x and the result without states, are timed in each round, and the
ratios are those of one round.
"""

import argparse
import ctypes
import glob
import json
import os
import platform
import statistics
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import shortconv
import torch

WIDTH = 4
Call = Callable[[], Any]


class Case(NamedTuple):
    """tokens: of each sequence; 0: a decode of one token with states."""

    name: str
    sequences: int
    tokens: int
    channels: int


CASES = [
    Case("8192 x 8192", 1, 8192, 8192), Case("64 x 128 x 8192", 64, 128, 8192),
    Case("8192 x 2048", 1, 8192, 2048), Case("64 x 4 x 8192", 64, 4, 8192),
    Case("decode 1 x 8192", 1, 0, 8192), Case("decode 8 x 8192", 8, 0, 8192),
    Case("decode 64 x 8192", 64, 0, 8192), Case("decode 256 x 8192", 256, 0, 8192)]
TINY = [Case("2 x 9 x 32", 2, 9, 32), Case("decode 3 x 32", 3, 0, 32)]


class Buffers:
    """Inputs of a case: history [sequences, 3, channels], x [sequences, tokens, channels]."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        torch.manual_seed(1)
        self.case = case
        self.weight = torch.randn(case.channels, WIDTH).to(dtype)
        self.history = torch.randn(case.sequences, WIDTH - 1, case.channels).to(dtype)
        self.x = torch.randn(case.sequences, max(case.tokens, 1), case.channels).to(dtype)
        if case.tokens > 0:
            self.history.zero_()

    def expected(self, silu: bool) -> torch.Tensor:
        """[sequences, tokens, channels] in fp64."""
        x = torch.cat([self.history, self.x], 1).double()
        y = sum(x[:, k : x.shape[1] - WIDTH + 1 + k] * self.weight[:, k].double()
                for k in range(WIDTH))
        assert isinstance(y, torch.Tensor)
        return torch.nn.functional.silu(y) if silu else y


# ---- Rivals: a call, and its result as [sequences, tokens, channels] ----


def shortconv_call(b: Buffers, silu: bool, threads: int) -> Tuple[Call, Call]:
    options: Dict[str, Any] = {"activation": "silu" if silu else None, "threads": threads,
                               "backend": "cpu"}
    out = torch.empty_like(b.x)
    if b.case.tokens > 0:
        return (lambda: shortconv.forward(b.x, b.weight, out=out, **options)), lambda: out
    state, row, result = b.history.clone(), b.x[:, 0], out[:, 0]

    def call() -> None:
        shortconv.decode(row, b.weight, state=state, out=result, **options)

    return call, lambda: out


def torch_call(b: Buffers, silu: bool, threads: int) -> Tuple[Call, Call]:
    found: List[torch.Tensor] = []
    if b.case.tokens > 0:
        x = torch.cat([b.history, b.x], 1).transpose(1, 2).contiguous()
        weight = b.weight.unsqueeze(1)

        def call() -> None:
            y = torch.nn.functional.conv1d(x, weight, groups=b.case.channels)
            found[:] = [torch.nn.functional.silu(y, inplace=True) if silu else y]
    else:
        state = b.history.transpose(1, 2).contiguous()
        new = b.x.transpose(1, 2).contiguous()

        def call() -> None:
            window = torch.cat([state, new], 2)
            state.copy_(window[..., 1:])
            y = (window * b.weight).sum(2, keepdim=True)
            found[:] = [torch.nn.functional.silu(y, inplace=True) if silu else y]

    return call, lambda: found[0].transpose(1, 2)


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p),
                ("no_alloc", ctypes.c_bool)]


class _Plan(ctypes.Structure):
    """The first members of ggml_cplan, and room for those that versions add."""

    _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p),
                ("n_threads", ctypes.c_int), ("rest", ctypes.c_char * 128)]


class Ggml:
    """Two shared libraries of ggml.

    Raises:
      OSError: the folder does not have them.
    """

    F32 = 0  # enum ggml_type

    def __init__(self, folder: str) -> None:
        def load(name: str) -> ctypes.CDLL:
            paths = sorted(glob.glob(os.path.join(folder, f"{name}*.so*")))
            if not paths:
                raise OSError(f"{folder}: has no {name}*.so")
            return ctypes.CDLL(paths[0], mode=ctypes.RTLD_GLOBAL)

        self.base, self.cpu = load("libggml-base"), load("libggml-cpu")
        self._context: Optional[int] = None  # memory of the last case
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        for library, name, result, arguments in (
            (self.base, "ggml_init", pointer, [_InitParams]),
            (self.base, "ggml_free", None, [pointer]),
            (self.base, "ggml_new_tensor_3d", pointer, [pointer, ctypes.c_int, size, size, size]),
            (self.base, "ggml_get_data", pointer, [pointer]),
            (self.base, "ggml_ssm_conv", pointer, [pointer, pointer, pointer]),
            (self.base, "ggml_new_graph", pointer, [pointer]),
            (self.base, "ggml_build_forward_expand", None, [pointer, pointer]),
            (self.cpu, "ggml_graph_plan", _Plan, [pointer, ctypes.c_int, pointer]),
            (self.cpu, "ggml_graph_compute", ctypes.c_int, [pointer, ctypes.POINTER(_Plan)]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    def call(self, b: Buffers, threads: int) -> Tuple[Call, Call]:
        """Valid until the next one."""
        case, tokens = b.case, b.x.shape[1]
        rows = tokens + WIDTH - 1
        floats = case.sequences * case.channels * (rows + tokens) + case.channels * WIDTH
        if self._context is not None:
            self.base.ggml_free(self._context)
        context = self.base.ggml_init(_InitParams(4 * floats + (1 << 20), None, False))
        self._context = context
        x = self.base.ggml_new_tensor_3d(context, self.F32, rows, case.channels, case.sequences)
        weight = self.base.ggml_new_tensor_3d(context, self.F32, WIDTH, case.channels, 1)
        y = self.base.ggml_ssm_conv(context, x, weight)
        graph = self.base.ggml_new_graph(context)
        self.base.ggml_build_forward_expand(graph, y)
        self._fill(x, torch.cat([b.history, b.x], 1).transpose(1, 2))
        self._fill(weight, b.weight)
        plan = self.cpu.ggml_graph_plan(graph, threads, None)
        work = ctypes.create_string_buffer(max(plan.work_size, 1))
        plan.work_data = ctypes.addressof(work)
        shape = (case.sequences, tokens, case.channels)

        def call() -> None:
            assert work is not None  # kept as long as the call
            self.cpu.ggml_graph_compute(graph, ctypes.byref(plan))

        return call, lambda: torch.from_numpy(self._array(y, shape).copy())

    def _array(self, tensor: int, shape: Tuple[int, ...]) -> np.ndarray:
        floats = ctypes.cast(self.base.ggml_get_data(tensor), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(floats, shape)

    def _fill(self, tensor: int, values: torch.Tensor) -> None:
        np.copyto(self._array(tensor, tuple(values.shape)), values.numpy())


# ---- Times ----


def seconds_of(call: Call, at_least: float) -> float:
    """Of a call, from so many that they take `at_least` seconds."""
    count, taken = 1, 0.0
    while True:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        taken = time.perf_counter() - begin
        if taken >= at_least:
            return taken / count
        count = max(2 * count, int(1.2 * count * at_least / max(taken, 1e-9)))


def require_right(b: Buffers, name: str, result: torch.Tensor, silu: bool) -> None:
    """Raises ArithmeticError: a result differs from fp64 by more than its roundings explain."""
    expected = b.expected(silu)
    bound = {torch.float32: 2e-6, torch.bfloat16: 2e-2}[b.x.dtype] * expected.abs().max()
    difference = (result.double() - expected).abs().max()
    if not difference <= bound:
        raise ArithmeticError(f"{b.case.name}: {name} differs from fp64 by {difference:.3g}")


def measure(case: Case, dtype: torch.dtype, threads: int, ggml: Optional[Ggml],
            options: argparse.Namespace) -> List[Dict[str, Any]]:
    """One row for each rival: median time in us and median ratio to the copy."""
    b = Buffers(case, dtype)
    copied = torch.empty_like(b.x)
    calls: Dict[str, Tuple[Call, bool, Optional[Call]]] = {
        "copy": (lambda: copied.copy_(b.x), False, None)}
    for silu in (False, True):
        for name, make in (("shortconv", shortconv_call), ("torch", torch_call)):
            call, result = make(b, silu, threads)
            calls[f"{name}, SiLU" if silu else name] = (call, silu, result)
    if ggml is not None and dtype == torch.float32:
        call, result = ggml.call(b, threads)
        calls["ggml"] = (call, False, result)
    for name, (call, silu, result) in calls.items():
        call()
        if result is not None:
            require_right(b, name, result(), silu)
    times: Dict[str, List[float]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, (call, _, _) in calls.items():
            times[name].append(seconds_of(call, options.seconds))
    return [{"case": case.name, "dtype": str(dtype)[6:], "threads": threads, "rival": name,
             "us": statistics.median(taken) * 1e6,
             "ratio": statistics.median(a / c for a, c in zip(taken, times["copy"]))}
            for name, taken in times.items()]


def print_table(rows: List[Dict[str, Any]]) -> None:
    names = list(dict.fromkeys(row["rival"] for row in rows))
    print("| case | dtype | threads | copy, us | " + " | ".join(names[1:]) + " |")
    print("|---|---|---|---|" + "---|" * (len(names) - 1))
    for key in dict.fromkeys((row["case"], row["dtype"], row["threads"]) for row in rows):
        found = {row["rival"]: row for row in rows
                 if (row["case"], row["dtype"], row["threads"]) == key}
        ratios = [f"{found[name]['ratio']:.2f}" if name in found else "" for name in names[1:]]
        print(f"| {key[0]} | {key[1]} | {key[2]} | {found['copy']['us']:.1f} | "
              + " | ".join(ratios) + " |")


def processor() -> str:
    """The name in /proc/cpuinfo, or the architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def main(argv: Optional[List[str]] = None) -> List[Dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", help="file for the results")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--ggml", help="folder with the shared libraries of ggml")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.02, help="of a rival in a round")
    parser.add_argument("--tiny", action="store_true", help="tiny cases, for tests")
    options = parser.parse_args(argv)
    ggml = None if options.ggml is None else Ggml(options.ggml)
    rows: List[Dict[str, Any]] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16):
            for case in TINY if options.tiny else CASES:
                rows += measure(case, dtype, threads, ggml, options)
    print_table(rows)
    backends = {one["name"]: one["detail"] for one in shortconv.capabilities()["backends"]}
    about = {"processor": processor(), "cores": os.cpu_count(), "shortconv": backends["cpu"],
             "torch": torch.__version__,
             "ggml": None if ggml is None else ggml.cpu._name.rsplit("/", 1)[-1]}
    with open(options.json, "w") as file:
        json.dump({"about": about, "rows": rows}, file, indent=1)
    return rows


if __name__ == "__main__":
    main()
