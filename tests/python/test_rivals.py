"""bench/rivals/: the shapes of the forward sweep, its buffers and calls on the CPU, and the summary
of its rows."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench" / "rivals"))

import cases  # noqa: E402
import rival_sglang  # noqa: E402
import rival_shortconv  # noqa: E402
import rival_vllm  # noqa: E402
import run  # noqa: E402
import summary  # noqa: E402
from cases import Buffers, Case  # noqa: E402


def row(case, rival, us, **more):
    return {"case": case, "rival": rival, "gpu_us": us, "copy_us": 10.0, "moved_bytes": 60e6} | more


@pytest.fixture
def rows():
    near, far, small = (f"{batch} channels, width 4"
                        for batch in ("512; 1024", "512; 2048", "64 of 1; 1024"))
    return [
        row(near, "copy", 10.0), row(near, "shortconv", 11.0),
        row(near, "sglang", 22.0, difference=0.01, states_equal=True),
        row(near, "vllm", 33.0, difference=0.02, states_equal=False),
        row(far, "copy", 10.0), row(far, "shortconv", 15.0), row(far, "sglang", 12.5),
        {"case": far, "rival": "vllm", "copy_us": 10.0, "error": "OutOfMemory"},
        row(small, "copy", 10.0), row(small, "shortconv", 9.0, moved_bytes=1e6),
        row(small, "vllm", 18.0),
    ]


def test_the_shapes_of_the_forward_sweep_are_all_different():
    points = cases.forward_sweep()
    assert len(points) == 364
    assert len({point.name for point in points}) == 364
    shapes = {(*point.lengths, point.channels, point.width, point.window_innermost, point.decode)
              for point in points}
    assert len(shapes) == 364
    assert {point.channels for point in points} == set(cases.CHANNELS)
    assert all(point.decode == point.name.startswith("decode") for point in points)
    assert all(len(point.lengths) <= point.pool for point in points)
    assert [sum(point.lengths) for point in points if "one and" in point.name] == [8192] * 21


def test_bytes_of_a_prefill_and_of_a_decode_call_of_single_tokens():
    points = {point.name: point for point in cases.forward_sweep()}
    rows = 64 * 1024 * 2
    # x and y, states written, and those read: all or half of them.
    assert points["decode 64 of 1; 1024 channels, width 4"].moved_bytes == (2 + 3 + 3) * rows
    assert points["64 of 1; 1024 channels, width 4"].moved_bytes == (2 + 3 + 1.5) * rows
    assert points["decode 64 of 1; 1024 channels, width 3"].moved_bytes == (2 + 2 + 2) * rows


@pytest.mark.parametrize("window_innermost", [False, True])
def test_buffers_have_a_pool_of_the_given_size_and_permuted_slots(window_innermost):
    b = Buffers(Case("", [2, 3], 16, 4, window_innermost=window_innermost, pool=8), "cpu")
    assert b.state.shape == (9, 3, 16)
    assert b.state.stride() == ((48, 1, 3) if window_innermost else (48, 16, 1))
    assert len(set(b.slots.tolist())) == 2 and int(b.slots.min()) >= 1 and int(b.slots.max()) <= 8


@pytest.mark.parametrize("window_innermost", [False, True])
@pytest.mark.parametrize("prefills", [False, True])
@pytest.mark.parametrize("rival", [rival_sglang, rival_vllm])
def test_calls_of_the_rivals_give_our_results(rival, prefills, window_innermost):
    case = Case("", [1] * 5, 64, 3, prefills, window_innermost, 16)
    b = Buffers(case, "cpu")
    before = b.x.clone(), b.state.clone()
    found = run.forward_difference(rival, rival.ours(), b)
    assert found == {"difference": 0, "states_equal": True}
    assert torch.equal(b.x, before[0]) and torch.equal(b.state, before[1])


def test_a_rival_with_other_results_or_states_is_noticed():
    class Other:
        @staticmethod
        def prefill(functions, b):
            def call():
                b.state[b.slots[0].long()] += 1
                return (rival_shortconv.prefill(functions, b)() * float("nan")).T

            return call

    b = Buffers(Case("", [2, 3], 64), "cpu")
    found = run.forward_difference(Other, rival_shortconv.original(), b)
    assert found == {"difference": float("inf"), "states_equal": False}


def test_blocks_are_listed_where_most_of_the_grid_would_be_empty():
    class Functions:
        CAUSAL_CONV1D_FWD_BLOCK_M = 8

    b = Buffers(Case("", [40, *[1] * 20], 16), "cpu")
    pairs = rival_sglang.blocks_of(Functions, b)["block_table"].tolist()
    assert pairs == [[0, block] for block in range(5)] + [[index, 0] for index in range(1, 21)]
    assert rival_sglang.blocks_of(Functions, Buffers(Case("", [40, 40], 16), "cpu")) == {}
    assert rival_sglang.blocks_of(object(), b) == {}  # a version without such a list


def test_summary_of_the_forward_sweep(rows):
    text = "\n".join(summary.beside(rows))
    assert "3 points; another library is faster on 1:\n" \
           "  512; 2048 channels, width 4" in text
    assert "copy 10.00  shortconv 15.00  sglang 12.50 us" in text
    assert "2 points: least 1.100, median 1.300, most 1.500" in text
    assert "2 points of more than 50 MB, 1 of them above 1.25:" in text
    assert "sglang: speedup on 2 shapes: least 0.83 (512; 2048 channels, width 4)" in text
    assert "vllm: results differ from ours by 2.0e-02 at most, states on 1 points" in text
    assert "vllm: no time for 1 points: 512; 2048 channels, width 4" in text


def test_summary_of_the_other_sweeps(rows):
    lines = summary.large_shapes_and_speedups(rows)
    assert lines[0] == "3 shapes, 2 of them large; slowest against the copy:"
    assert "15.00 us  x 1.500" in lines[1] and "x 1.100" in lines[2]
    assert lines[-1].startswith("vllm: speedup on 2 shapes: least 2.00")


def test_table_of_the_forward_sweep(rows, tmp_path):
    script = ROOT / "scripts" / "performance.py"
    spec = importlib.util.spec_from_file_location("performance", script)
    performance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(performance)
    (tmp_path / "rivals-sweep.json").write_text(json.dumps({"absent": [], "rows": rows}))
    lines = performance.TABLES["forward_sweep"](tmp_path).splitlines()
    assert [line.strip("| ").split(" | ") for line in lines[2:]] == [
        ["512", "2", "1.10", "1.30", "1.50", "1 of 2", "0.83", "1.42", "2.00", *["3.00"] * 3],
        ["64 of 1", "1", *["0.90"] * 3, "0 of 0", *["-"] * 3, *["2.00"] * 3],
    ]


def test_rivals_on_the_cpu(tmp_path):
    import cpu

    rows = cpu.main([str(tmp_path / "cpu.json"), "--tiny", "--threads", "1", "--rounds", "2",
                     "--seconds", "0.0001"])
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert found["rows"] == rows and found["about"]["ggml"] is None
    assert {(row["case"], row["dtype"], row["rival"]) for row in rows} == {
        (case.name, dtype, rival) for case in cpu.TINY for dtype in ("float32", "bfloat16")
        for rival in ("copy", "shortconv", "shortconv, SiLU", "torch", "torch, SiLU")}
    assert all(row["us"] > 0 and row["ratio"] > 0 for row in rows)


def test_wrong_results_are_not_timed():
    import cpu

    buffers = cpu.Buffers(cpu.TINY[0], torch.float32)
    right = buffers.expected(False)
    cpu.require_right(buffers, "one", right.float(), False)
    for wrong in (right.float() + 1e-3, right.float() * float("nan")):
        with pytest.raises(ArithmeticError, match="2 x 9 x 32: one differs from fp64"):
            cpu.require_right(buffers, "one", wrong, False)
    with pytest.raises(OSError, match="has no libggml-base"):
        cpu.Ggml("/nowhere")
