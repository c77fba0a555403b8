#!/usr/bin/env python3
"""This library and others, on the same memory: GPU time, its ratio to a copy, host time.

    bench/rivals/run.py [--json FILE] [--only NAMES] [--device cuda|cpu] [--tiny]
                        [--training | --fronts] [--cases PARTS] [--sweep [--every N]]
    bench/rivals/run.py --training --sweep --json FILE [--budget-seconds S] [--resume]

bf16, width 4, SiLU, no bias, token-major x. --training: forward and backward pass through autograd,
gradients of x and weight, without states; the copy moves x and out, then x, the gradient of out and
that of x.

GPU time: median of the replays of a CUDA graph with many calls over rotating buffers, so that no
call finds its data in the cache. copy: copy_ of as many bytes as the call must move, in the same
run. Host time: time of the caller in one call, measured last, alternating over all cases and
libraries. On the CPU only host time is measured.

--fronts: from the projection of a gated delta net to normalized q and k, v, g and beta: this
library's forward_groups and the chains of the others, with how far their results differ from ours.

--sweep: forward passes of 364 shapes beside SGLang and vLLM, or training or fronts of 216 shapes,
or each Nth of them; GPU time only. Prints the shapes that are slowest against the copy, of those
that move more than 50 MB, and the speedup over each rival; of forward passes and of training also
the shapes on which a rival is faster, the ratio to the copy by batch, and how far results differ
from ours.

--training --sweep: beside fla with its Triton and with its Gluon kernels, causal_conv1d and torch,
in an order in which tuning keys of fla are shared (sweep.py), after its kernels have been compiled
in several processes (compile_ahead.py). FILE is written after each shape. With a budget, which
includes the compilation, shapes are measured beside the rivals while time for this library on all
others remains, then without them. A rival that takes less than 1.25 times as long as this library
is tuned again for that shape, and the shorter time counts. --resume keeps the shapes of FILE that
were measured beside all rivals.

"as NAME" is this library through shortconv.compat.NAME; with --fronts its convolution in the chain
of NAME. Rivals that are not installed are listed as absent; their packages are on PyPI.
"""

import argparse
import functools
import gc
import importlib
import importlib.metadata
import json
import math
import sys
import time

import summary
import sweep
import torch
import training
from cases import DECODE, PREFILL, TINY, TRAINING, Buffers, forward_sweep, training_sweep
from compile_ahead import compile_ahead, tasks_of
from fronts import FRONTS, TINY_FRONTS, FrontBuffers, difference, front_sweep
from measure import COLD_BYTES, gpu_us, host_us

RIVALS = ["shortconv", "sglang", "vllm", "causal_conv1d", "fla", "torch"]
FORWARD_SWEEP_RIVALS = ["shortconv", "sglang", "vllm"]
TRAINING_SWEEP_RIVALS = ["shortconv", "fla", "fla_gluon", "causal_conv1d", "torch"]
SLOW_SECONDS = 1.0  # torch's gradients can take tens of milliseconds
CLOSE_RATIO = 1.25  # of a rival's time to ours: its autotuner chooses again, for this shape
COMPILATION_SHARE = 0.4  # of the budget of a sweep, at most


def described(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"


def load(names):
    """List of (label, module of the rival, its functions), and list of absent rivals."""
    found, absent = [], []
    for name in names:
        rival = importlib.import_module(f"rival_{name}")
        try:
            found.append((name, rival, rival.original()))
        except Exception as error:  # packages fail to import in many ways
            absent.append(f"{name} ({described(error)})")
        if hasattr(rival, "ours"):
            found.append((f"as {name}", rival, rival.ours()))
    return found, absent


def copy_call(moved_bytes, device):
    # The driver copies some odd sizes at two thirds of the speed of others.
    step = 1 << 16 if moved_bytes > 1 << 20 else 16
    size = (moved_bytes // 2 + step - 1) // step * step
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def front_difference(rival, functions, buffers):
    """How the results of a rival's chain, with our convolution in it, differ from those of this
    library, from the same states. None for those without states. Their own convolutions round each
    product to bf16, which changes a third of the results."""
    import rival_shortconv as ours

    if rival.__name__ not in ("rival_sglang", "rival_vllm") or functions is not rival.ours():
        return None
    before = buffers.state.clone()
    expected = [one.clone() for one in ours.front(
        ours.original(), buffers, rounds_beta=rival.__name__ == "rival_sglang")()]
    after = buffers.state.clone()
    buffers.state.copy_(before)
    text = difference(rival.front(functions, buffers)(), expected)
    if not torch.equal(buffers.state, after):
        text += "; states differ"
    buffers.state.copy_(before)
    return text


def forward_difference(rival, functions, buffers):
    """The largest difference of a rival's results from ours, relative to 1 or to the result, and
    whether the states are equal; from the same x and states."""
    import rival_shortconv as ours

    x, state, decodes = buffers.x.clone(), buffers.state.clone(), buffers.case.decode

    def results(rival, functions):
        buffers.x.copy_(x)  # vLLM's update overwrites x
        buffers.state.copy_(state)
        out = (rival.decode if decodes else rival.prefill)(functions, buffers)()
        return out.clone(), buffers.state.clone()

    expected, expected_state = results(ours, ours.original())
    found, found_state = results(rival, functions)
    buffers.x.copy_(x)
    buffers.state.copy_(state)
    found = found.reshape(expected.shape) if decodes else found.T
    error = (found.float() - expected.float()).abs() / expected.float().abs().clamp(min=1)
    return {"difference": float(error.nan_to_num(nan=float("inf")).max()),
            "states_equal": torch.equal(found_state, expected_state)}


def maker(rival, trains, fronts, case):
    """The function of the rival that makes the call of a case, or None."""
    if trains:
        return functools.partial(training.call, rival)
    if fronts:
        return getattr(rival, "front", None)
    return rival.decode if case.decode else rival.prefill


def measured(case, rivals, device, trains, fronts, differences=None, seconds=math.inf):
    """List of (row with GPU time, call for the host timing or None), one per rival.

    differences: by label, a function that compares the results of a rival with ours. seconds: of
    the replays of one rival, after which there are no more of them.
    """
    on_gpu = device == "cuda"
    moved_bytes = case.trained_bytes if trains else case.moved_bytes
    # Both passes together read 2/5 of these bytes from the buffers.
    most = 256 if trains else 64
    count = max(2, min(most, COLD_BYTES // moved_bytes)) if on_gpu else 1
    buffers = [(FrontBuffers if fronts else Buffers)(case, device) for _ in range(count)]
    copies = [copy_call(moved_bytes, device) for _ in range(count)]
    copy_us = gpu_us(copies) if on_gpu else None
    row = {"case": case.name, "rival": "copy", "copy_us": copy_us, "gpu_us": copy_us}
    timed = [(row, copies[0])]
    for label, rival, functions in rivals:
        make = maker(rival, trains, fronts, case)
        if make is None:
            continue
        row = {"case": case.name, "rival": label, "copy_us": copy_us, "moved_bytes": moved_bytes}
        call = None
        try:
            with training.environment(rival):
                calls = [make(functions, one) for one in buffers]
                if calls[0] is None:
                    continue
                calls[0]()
                if fronts and on_gpu:
                    row["difference"] = front_difference(rival, functions, buffers[0])
                if differences and label in differences:
                    row.update(differences[label](rival, functions, buffers[0]))
                row["gpu_us"] = gpu_us(calls, seconds=seconds) if on_gpu else None
            call = calls[0]
        except Exception as error:
            row["error"] = described(error)
            print(case.name, label, row["error"])
        timed.append((row, call))
    return timed


def tune_close_rivals(case, rivals, rows, device):
    """Measures rivals with nearly our time again, tuned for this shape; keeps the shorter time."""
    timed = {row["rival"]: row for row in rows if row.get("gpu_us") is not None}
    if sweep.OURS not in timed:
        return
    for label, rival, functions in rivals:
        row = timed.get(label)
        if (row is None or not hasattr(rival, "tuned_again")
                or row["gpu_us"] > CLOSE_RATIO * timed[sweep.OURS]["gpu_us"]):
            continue
        with rival.tuned_again():
            again, _ = measured(case, [(label, rival, functions)], device, True, False,
                                seconds=SLOW_SECONDS)[1]
        if again.get("gpu_us") is not None:
            row["gpu_us_both_choices"] = [row["gpu_us"], again["gpu_us"]]
            row["gpu_us"] = min(row["gpu_us_both_choices"])


def sweep_training(cases, rivals, options, about):
    """Measures the shapes of the training sweep and keeps them in the file. Returns all rows."""
    deadline = time.monotonic() + options.budget_seconds
    names = [label for label, _, _ in rivals]
    results = sweep.Results(options.json, cases, names, about, options.resume)
    order = sweep.in_order(cases)
    sharing = [[case for case in those if not results.is_complete(case)] for those in order]
    tasks = tasks_of(names, [those for those in sharing if those])
    done = compile_ahead(tasks, COMPILATION_SHARE * min(options.budget_seconds, 3600))
    seconds_left = deadline - time.monotonic()
    print(f"{done} of {len(tasks)} tasks compiled ahead; {seconds_left:.0f} s left", flush=True)

    def measure(case, beside):
        timed = measured(case, rivals if beside else rivals[:1], options.device, True, False,
                         {name: training.difference for name in names[1:]}, SLOW_SECONDS)
        rows = [row for row, _ in timed]
        del timed  # frees the buffers
        tune_close_rivals(case, rivals, rows, options.device)
        gc.collect()
        return rows

    sweep.run(order, results, measure, deadline)
    return results.rows()


def versions(packages):
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def print_case(name, rows):
    print(f"\n{name}")
    for row in rows:
        text = row.get("error", "")
        if row.get("gpu_us") is not None:
            text = f"{row['gpu_us']:>9.2f} us  x {row['gpu_us'] / row['copy_us']:6.2f}  "
        if "host_us" in row:
            text += f"host {row['host_us']:7.2f} us"
        if row.get("difference"):
            text += f"  {row['difference']}"
        print(f"  {row['rival']:<18} {text}")


def parsed_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    parser.add_argument("--only", help="names of rivals, with commas")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="two small cases")
    parser.add_argument("--cases", help="parts of the names of cases, with commas")
    parser.add_argument("--training", action="store_true", help="forward and backward pass")
    parser.add_argument("--fronts", action="store_true", help="fronts of gated delta nets")
    parser.add_argument("--sweep", action="store_true", help="shapes that nobody tuned for")
    parser.add_argument("--every", type=int, default=1, help="each Nth shape of the sweep")
    parser.add_argument("--budget-seconds", type=float, default=math.inf,
                        help="--training --sweep: time for all shapes")
    parser.add_argument("--resume", action="store_true",
                        help="--training --sweep: go on with the file of results")
    options = parser.parse_args()
    options.only = options.only and options.only.split(",")
    if options.sweep and options.device != "cuda":
        parser.error("--sweep measures times of a GPU")
    if options.fronts and options.training:
        parser.error("--training and --fronts exclude each other")
    options.sweeps_training = options.sweep and options.training
    options.sweeps_forward = options.sweep and not options.fronts and not options.training
    if options.sweeps_training and not options.json:
        parser.error("--training --sweep writes its results to --json FILE as it goes")
    return options


def chosen_cases(options):
    cases = TRAINING if options.training else FRONTS if options.fronts else PREFILL + DECODE
    if options.sweep:
        shapes = (front_sweep if options.fronts else training_sweep if options.training
                  else forward_sweep)
        cases = shapes()[:: options.every]
    if options.tiny:
        cases = TINY_FRONTS if options.fronts else [
            case for case in TINY if not (options.training and case.decode)]
    parts = options.cases.split(",") if options.cases else [""]
    return [case for case in cases if any(part in case.name for part in parts)]


def measure_all(cases, rivals, options):
    """Rows of all cases with times of the GPU, and of the host if it is not a sweep."""
    timed = []
    differences = {"sglang": forward_difference, "vllm": forward_difference}
    for case in cases:
        timed += measured(case, rivals, options.device, options.training, options.fronts,
                          differences if options.sweeps_forward else None)
        if options.sweep:
            timed = [(row, None) for row, _ in timed]  # frees the buffers
        gc.collect()
    can_run = [(row, call) for row, call in timed if call is not None]
    host = host_us([call for _, call in can_run], options.device)
    for (row, _), taken in zip(can_run, host):
        row["host_us"] = taken
    return [row for row, _ in timed]


def print_rows(rows, options):
    if options.sweeps_training:
        print("\n".join(summary.beside(rows, summary.FAR_TRAINING_RATIO)))
    elif options.sweep:
        show = summary.beside if options.sweeps_forward else summary.large_shapes_and_speedups
        print("\n".join(show(rows)))
    else:
        for name in dict.fromkeys(row["case"] for row in rows):
            print_case(name, [row for row in rows if row["case"] == name])


def main():
    options = parsed_options()
    names = (TRAINING_SWEEP_RIVALS if options.sweeps_training else
             FORWARD_SWEEP_RIVALS if options.sweeps_forward else RIVALS)
    rivals, absent = load([name for name in dict.fromkeys([*names, *RIVALS])
                           if name in (options.only or names)])
    if options.sweeps_training or options.sweeps_forward:
        rivals = [one for one in rivals if not one[0].startswith("as ")]
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(name, "torch", torch.__version__)
    for line in absent:
        print("absent:", line)
    if options.sweeps_training and [label for label, _, _ in rivals][:1] != [sweep.OURS]:
        sys.exit("--training --sweep compares with shortconv, which is absent")

    about = {"absent": absent}
    cases = chosen_cases(options)
    gc.freeze()  # the collections of the loop look at its buffers, not at the modules
    with torch.no_grad():
        if options.sweeps_training:
            about |= {"gpu": name, "versions": versions(["torch", "triton", "fla-core"])}
            rows = sweep_training(cases, rivals, options, about)
        else:
            rows = measure_all(cases, rivals, options)
    print_rows(rows, options)
    if options.json and not options.sweeps_training:
        with open(options.json, "w") as file:
            json.dump({**about, "rows": rows}, file, indent=1)
    failed = [row for row in rows if row["rival"].startswith(("as ", "short")) and "error" in row]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
