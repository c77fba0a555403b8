"""bench/rivals/: the training sweep. Order of the shapes, budget and file of results, kernels that
are compiled ahead, gradients of the rivals on the CPU."""

import json
import os
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "rivals"))

import cases  # noqa: E402
import compile_ahead  # noqa: E402
import rival_fla  # noqa: E402
import rival_fla_gluon  # noqa: E402
import rival_shortconv  # noqa: E402
import rival_torch  # noqa: E402
import run  # noqa: E402
import summary  # noqa: E402
import sweep  # noqa: E402
import training  # noqa: E402
from cases import Buffers, Case  # noqa: E402

RIVALS = ["shortconv", "fla", "torch"]


def test_the_shapes_of_the_training_sweep():
    points = cases.training_sweep()
    assert len(points) == 216
    shapes = {(tuple(point.lengths), point.channels, point.width) for point in points}
    assert len(shapes) == len({point.name for point in points}) == 216
    assert {point.width for point in points} == {2, 3, 4}
    assert min(point.channels for point in points) == 512
    assert max(point.channels for point in points) == 12288
    batches = {tuple(point.lengths) for point in points}
    assert any(len(lengths) == 1 for lengths in batches)
    assert any(len(lengths) > 1 and max(lengths) <= 17 for lengths in batches)
    assert tuple(cases.skewed()) in batches
    assert cases.training_sweep() == points


def test_order_keeps_shapes_of_a_tuning_key_together_and_spreads_the_keys():
    points = cases.training_sweep()
    order = sweep.in_order(points)
    assert order == sweep.in_order(points)
    assert order != sweep.in_order(points, seed=5)
    assert sorted(case.name for those in order for case in those) == sorted(
        case.name for case in points)
    keys = [sweep.tuning_key(those[0]) for those in order]
    assert len(set(keys)) == len(keys) == 48
    for those, key in zip(order, keys):
        assert {sweep.tuning_key(case) for case in those} == {key}
        assert sum(those[0].lengths) == max(sum(case.lengths) for case in those)
    for count in (8, 16, 24, 40):  # cut off there
        for kind in range(3):
            seen = Counter(key[kind] for key in keys[:count])
            assert len(seen) == len({key[kind] for key in keys})
            assert max(seen.values()) - min(seen.values()) <= 2


class Clock:
    """Time that passes only while shapes are measured: first of a tuning key, or others beside
    rivals, or alone."""

    def __init__(self, first=10.0, beside=2.0, alone=0.5):
        self.now, self.tuned, self.measured = 0.0, set(), []
        self.first, self.beside, self.alone = first, beside, alone

    def __call__(self):
        return self.now

    def measure(self, case, beside):
        key = sweep.tuning_key(case)
        self.now += self.alone if not beside else self.beside if key in self.tuned else self.first
        if beside:
            self.tuned.add(key)
        self.measured.append((case.name, beside))
        rivals = [name for name in RIVALS[: 3 if beside else 1]
                  if name != "torch" or len(case.lengths) == 1]
        return [{"case": case.name, "rival": name, "gpu_us": 1.0, "copy_us": 1.0,
                 "moved_bytes": 60e6} for name in ("copy", *rivals)]


def swept(path, clock, seconds, resume=False):
    points = cases.training_sweep()
    results = sweep.Results(str(path), points, RIVALS, {"gpu": "none"}, resume)
    sweep.run(sweep.in_order(points), results, clock.measure, clock.now + seconds, clock)
    return json.loads(path.read_text())


def missing(found, rival, reason):
    return {row["case"] for row in found["rows"]
            if row["rival"] == rival and row.get("missing") == reason}


def test_without_a_limit_all_shapes_are_measured_beside_the_rivals(tmp_path, capsys):
    clock = Clock()
    found = swept(tmp_path / "found.json", clock, float("inf"))
    assert len(clock.measured) == 216 and all(beside for _, beside in clock.measured)
    assert found["gpu"] == "none" and found["pending"] == []
    assert missing(found, "fla", sweep.NO_CALL) == missing(found, "fla", sweep.NO_TIME) == set()
    assert len(missing(found, "torch", sweep.NO_CALL)) == 144
    names = [row["case"] for row in found["rows"]]
    assert list(dict.fromkeys(names)) == [case.name for case in cases.training_sweep()]
    assert "48 of 48 keys" in capsys.readouterr().out
    lines = summary.beside(found["rows"])
    assert lines[0].startswith("216 points; another library is faster on 0")
    assert lines[-1] == "torch: no call for it on 144 points"


@pytest.mark.parametrize("seconds", [150, 300, 500])
def test_the_budget_leaves_time_for_this_library_on_all_shapes(tmp_path, seconds):
    clock = Clock()
    found = swept(tmp_path / "found.json", clock, seconds)
    assert seconds - 15 < clock.now <= seconds
    assert found["pending"] == []
    ours = {row["case"] for row in found["rows"] if row["rival"] == "shortconv"}
    beside = {row["case"] for row in found["rows"] if row["rival"] == "fla" and "gpu_us" in row}
    assert len(ours) == 216 and 0 < len(beside) < 216
    assert missing(found, "fla", sweep.NO_TIME) == ours - beside


def test_a_budget_that_is_too_small_leaves_pending_shapes(tmp_path):
    clock = Clock()
    found = swept(tmp_path / "found.json", clock, 20)
    assert clock.now <= 20 + clock.first
    assert len(found["pending"]) == 216 - len(clock.measured) > 0


def test_a_sweep_that_was_cut_off_is_resumed(tmp_path):
    path, clock = tmp_path / "found.json", Clock()

    def measure(case, beside):
        if len(clock.measured) == 50:
            raise KeyboardInterrupt
        return Clock.measure(clock, case, beside)

    clock.measure = measure
    with pytest.raises(KeyboardInterrupt):
        swept(path, clock, float("inf"))
    found = json.loads(path.read_text())
    assert len(found["pending"]) == 166
    assert len([row for row in found["rows"] if row["rival"] == "fla"]) == 50

    again = Clock()
    found = swept(path, again, 300, resume=True)
    assert not {name for name, _ in clock.measured} & {name for name, _ in again.measured}
    assert found["pending"] == [] and missing(found, "fla", sweep.NO_TIME)

    last = Clock()
    lacking = missing(found, "fla", sweep.NO_TIME)
    found = swept(path, last, float("inf"), resume=True)
    assert {name for name, _ in last.measured} == lacking
    assert not missing(found, "fla", sweep.NO_TIME)
    assert len([row for row in found["rows"] if row["rival"] == "shortconv"]) == 216
    assert swept(path, Clock(), 0, resume=True)["rows"] == found["rows"]


def test_resuming_does_not_measure_this_library_alone_again(tmp_path):
    path = tmp_path / "found.json"
    assert missing(swept(path, Clock(), 200), "fla", sweep.NO_TIME)
    again = Clock()
    swept(path, again, 13, resume=True)
    assert again.measured and all(beside for _, beside in again.measured)
    assert 10 <= again.now <= 13


class Config:
    def __init__(self, number):
        self.number = number

    def all_kwargs(self):
        return {"number": self.number}


def test_kernels_are_compiled_and_not_launched():
    class Function:
        made = []

        def run(self, *args, grid, warmup, **options):
            assert grid == (1,)
            if options.get("number") == 9:
                raise RuntimeError("too many registers")
            self.made.append((args, warmup, options))

    class Tuner:
        arg_names = ["x"]
        fn = Function()

        def prune_configs(self, options):
            return [Config(number) for number in (0, 5, 9, 13, 2, 21)]

        def run(self, *args, **options):
            raise AssertionError("measured")

    original = Function.run, Tuner.run
    with compile_ahead.only_compiling(Tuner, Function, 1, 2):
        Tuner().run("x", grid=(1,), warmup=False, width=4)
        Tuner.fn.run("y", grid=(1,), warmup=False)
    assert Function.made == [
        *((("x",), True, {"width": 4, "number": number}) for number in (5, 13, 21)),
        (("y",), True, {})]
    assert (Function.run, Tuner.run) == original
    with compile_ahead.only_compiling(Tuner, Function, 0, 2):
        Tuner().run("x", grid=(1,), warmup=False)  # the configuration that fails is skipped
    assert [made[2]["number"] for made in Function.made[4:]] == [0, 2]


def test_tasks_cover_the_parts_of_the_rivals_with_triton_kernels():
    order = sweep.in_order(cases.training_sweep())
    tasks = compile_ahead.tasks_of(["shortconv", "fla", "fla_gluon", "torch"], order)
    assert len(tasks) == 48 * (rival_fla.COMPILED_PARTS + 1)
    assert [(task.rival, task.part, task.parts) for task in tasks[:5]] == [
        *(("fla", part, 4) for part in range(4)), ("fla_gluon", 0, 1)]
    assert tasks[5].cases == order[1]


def test_compiling_ahead_ends_with_its_time():
    tasks = [compile_ahead.Task("fla", [], part, 2) for part in range(2)]
    assert compile_ahead.compile_ahead([], 0) == 0
    assert compile_ahead.compile_ahead(tasks, 60, processes=1, work=repr) == 2
    assert compile_ahead.compile_ahead(tasks, 0, processes=1, work=repr) == 0


def test_environment_of_a_rival_is_set_and_restored(monkeypatch):
    monkeypatch.setenv("FLA_CONV_GLUON", "before")
    for rival, value in ((rival_fla, "0"), (rival_fla_gluon, "1"), (rival_torch, "before")):
        with training.environment(rival):
            assert os.environ["FLA_CONV_GLUON"] == value
    assert os.environ["FLA_CONV_GLUON"] == "before"


def compared(rival, lengths, width=4):
    b = Buffers(Case("", lengths, 16, width), "cpu")
    return training.difference(rival, rival.original(), b)["difference"]


@pytest.mark.parametrize("width", [2, 3, 4])
def test_gradients_of_torch_are_ours_on_the_cpu(width):
    assert 0 <= compared(rival_torch, [40], width) < 0.1
    assert compared(rival_shortconv, [7, 1, 30], width) == 0


def test_other_gradients_are_noticed():
    class Other:
        original = rival_shortconv.original

        @staticmethod
        def training(functions, b):
            convolve = rival_shortconv.training(functions, b)
            return lambda: convolve() * float("nan")

    assert compared(Other, [5, 3]) == float("inf")


def test_a_shape_beside_rivals_on_the_cpu():
    case = Case("5 and 3; 16 channels, width 4", [5, 3], 16)
    rivals = [("shortconv", rival_shortconv, rival_shortconv.original()),
              ("torch", rival_torch, rival_torch.original())]
    with torch.no_grad():
        timed = run.measured(case, rivals, "cpu", True, False, {"torch": training.difference})
    assert [row["rival"] for row, _ in timed] == ["copy", "shortconv"]  # torch: one sequence only
    one = Case("8; 16 channels, width 4", [8], 16)
    with torch.no_grad():
        timed = run.measured(one, rivals, "cpu", True, False, {"torch": training.difference})
    assert timed[2][0]["rival"] == "torch" and timed[2][0]["difference"] < 0.1
    assert "error" not in timed[1][0] and "error" not in timed[2][0]


def test_close_rivals_are_tuned_again_and_the_shorter_time_counts(monkeypatch):
    class Tuned:
        tuned_again = staticmethod(nullcontext)

    times = {"shortconv": 10.0, "near": 12.0, "nearer": 11.0, "far": 13.0, "untuned": 11.0}
    rows = [{"rival": name, "gpu_us": us} for name, us in times.items()]
    rows.append({"rival": "failed", "error": "OutOfMemory"})
    again = {"near": 9.0, "nearer": 14.0}
    monkeypatch.setattr(run, "measured", lambda case, rivals, *_, **options: [
        ({}, None), ({"gpu_us": again[rivals[0][0]]}, None)])
    rivals = [(row["rival"], None if row["rival"] in ("shortconv", "untuned") else Tuned, None)
              for row in rows]
    run.tune_close_rivals(None, rivals, rows, "cpu")
    assert {row["rival"]: row["gpu_us"] for row in rows[:5]} == times | {"near": 9.0}
    assert rows[1]["gpu_us_both_choices"] == [12.0, 9.0]
    assert rows[2]["gpu_us_both_choices"] == [11.0, 14.0]
    assert [row["rival"] for row in rows if "gpu_us_both_choices" in row] == ["near", "nearer"]


def test_the_sweep_on_the_cpu(tmp_path, capsys):
    shapes = [Case(f"{name}; 16 channels, width 4", lengths, 16)
              for name, lengths in (("8", [8]), ("3 and 2", [3, 2]), ("12", [12]))]
    rivals = [("shortconv", rival_shortconv, rival_shortconv.original()),
              ("torch", rival_torch, rival_torch.original())]
    options = SimpleNamespace(json=str(tmp_path / "found.json"), budget_seconds=100.0,
                              resume=False, device="cpu")
    with torch.no_grad():
        rows = run.sweep_training(shapes, rivals, options, {"absent": ["fla"]})
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"absent": ["fla"], "pending": [], "rows": rows}
    assert [(row["rival"], row.get("missing")) for row in rows] == [
        ("copy", None), ("shortconv", None), ("torch", None),
        ("copy", None), ("shortconv", None), ("torch", sweep.NO_CALL),
        ("copy", None), ("shortconv", None), ("torch", None)]
    assert not any("error" in row for row in rows)
    assert "0 of 0 tasks compiled ahead" in capsys.readouterr().out
