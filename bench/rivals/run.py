#!/usr/bin/env python3
"""This library and others, on the same memory: GPU time, its ratio to a copy, host time.

    bench/rivals/run.py [--json FILE] [--only NAMES] [--device cuda|cpu] [--tiny]
                        [--training | --fronts] [--cases PARTS] [--sweep [--every N]]

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
that move more than 50 MB, and the speedup over each rival; of forward passes also the shapes on
which a rival is faster, the ratio to the copy by batch, and how far results differ from ours.

"as NAME" is this library through shortconv.compat.NAME; with --fronts its convolution in the chain
of NAME. Rivals that are not installed are listed as absent; their packages are on PyPI.
"""

import argparse
import functools
import gc
import importlib
import json
import sys

import summary
import torch
from cases import DECODE, PREFILL, TINY, TRAINING, Buffers, forward_sweep, training_sweep
from fronts import FRONTS, TINY_FRONTS, FrontBuffers, difference, front_sweep
from measure import COLD_BYTES, gpu_us, host_us

RIVALS = ["shortconv", "sglang", "vllm", "causal_conv1d", "fla", "torch"]
FORWARD_SWEEP_RIVALS = ["shortconv", "sglang", "vllm"]


def load(only):
    """List of (label, module of the rival, its functions), and list of absent rivals."""
    found, absent = [], []
    for name in RIVALS:
        if only and name not in only:
            continue
        rival = importlib.import_module(f"rival_{name}")
        try:
            found.append((name, rival, rival.original()))
        except Exception as error:  # packages fail to import in many ways
            absent.append(f"{name} ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
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


def training(rival, functions, buffers):
    """Forward and backward pass, or None if the rival has none for this case."""
    x, weight = buffers.x.requires_grad_(), buffers.weight.requires_grad_()
    with torch.enable_grad():
        convolve = rival.training(functions, buffers) if hasattr(rival, "training") else None
    if convolve is None:
        return None

    def call():
        with torch.enable_grad():
            return torch.autograd.grad(convolve(), (x, weight), buffers.grad_out)

    return call


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
        return functools.partial(training, rival)
    if fronts:
        return getattr(rival, "front", None)
    return rival.decode if case.decode else rival.prefill


def measured(case, rivals, device, trains, fronts, sweeps_forward=False):
    """List of (row with GPU time, call for the host timing or None), one per rival."""
    on_gpu = device == "cuda"
    moved_bytes = case.trained_bytes if trains else case.moved_bytes
    count = max(2, min(64, COLD_BYTES // moved_bytes)) if on_gpu else 1
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
            calls = [make(functions, one) for one in buffers]
            if calls[0] is None:
                continue
            calls[0]()
            if fronts and on_gpu:
                row["difference"] = front_difference(rival, functions, buffers[0])
            if sweeps_forward and label in ("sglang", "vllm"):
                row.update(forward_difference(rival, functions, buffers[0]))
            row["gpu_us"] = gpu_us(calls) if on_gpu else None
            call = calls[0]
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
            print(case.name, label, row["error"])
        timed.append((row, call))
    return timed


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


def main():
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
    options = parser.parse_args()
    if options.sweep and options.device != "cuda":
        parser.error("--sweep measures times of a GPU")
    fronts, trains = options.fronts, options.training
    if fronts and trains:
        parser.error("--training and --fronts exclude each other")
    sweeps_forward = options.sweep and not fronts and not trains
    only = options.only and options.only.split(",")
    rivals, absent = load(only or (FORWARD_SWEEP_RIVALS if sweeps_forward else None))
    if sweeps_forward:
        rivals = [one for one in rivals if not one[0].startswith("as ")]
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(name, "torch", torch.__version__)
    for line in absent:
        print("absent:", line)

    timed = []
    with torch.no_grad():
        cases = TRAINING if trains else FRONTS if fronts else PREFILL + DECODE
        if options.sweep:
            sweep = front_sweep if fronts else training_sweep if trains else forward_sweep
            cases = sweep()[:: options.every]
        if options.tiny:
            cases = TINY_FRONTS if fronts else [case for case in TINY
                                                if not (trains and case.decode)]
        parts = options.cases.split(",") if options.cases else [""]
        gc.freeze()  # the collections of the loop look at its buffers, not at the modules
        for case in (case for case in cases if any(part in case.name for part in parts)):
            timed += measured(case, rivals, options.device, trains, fronts, sweeps_forward)
            if options.sweep:
                timed = [(row, None) for row, _ in timed]  # frees the buffers
            gc.collect()
        can_run = [(row, call) for row, call in timed if call is not None]
        host = host_us([call for _, call in can_run], options.device)
    for (row, _), taken in zip(can_run, host):
        row["host_us"] = taken
    rows = [row for row, _ in timed]
    if options.sweep:
        show = summary.beside if sweeps_forward else summary.large_shapes_and_speedups
        print("\n".join(show(rows)))
    else:
        for name in dict.fromkeys(row["case"] for row in rows):
            print_case(name, [row for row in rows if row["case"] == name])
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"absent": absent, "rows": rows}, file, indent=1)
    failed = [row for row in rows if row["rival"].startswith(("as ", "short")) and "error" in row]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
