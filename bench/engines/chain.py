#!/usr/bin/env python3
"""Where the time of the short convolutions of a model goes in vLLM, with its own kernels and ours.

    bench/engines/chain.py MODEL RESULTS.json [--workloads prefill:8x2048,decode:64] [--eager]
                           [--chain REGEX] [--rounds 4]

For each workload and variant:

- GPU time and launches of each kernel of the chain between the projection and the delta rule, or
  the output projection of LFM2: the kernels whose names match --chain. Per layer: divided by the
  number of layers with a short convolution and of forward passes. The largest other kernels follow.
- Host time of the functions of this chain, as their callers in vLLM see it: number of calls, median
  and mean. "layer" is the method of the layer, from its beginning to its end. A decode with CUDA
  graphs calls none of them; --eager shows it, and --eager --ngram-drafts 3 with draft tokens.
  In --rounds rounds in alternating order, each with a second measurement of vLLM's kernels as a
  control: the speed of a host changes by the minute. Where the GPU is slower than the host, a call
  may contain a wait for it; compare with a workload of few tokens, such as prefill:1x256.

The kernels are those of one process, so --tensor-parallel has to be 1.
"""

import argparse
import json
import re
import sys
import time
from typing import Any, Callable, Dict, List, Tuple

import engine
import models
import samples
import throughput

# Ours; vLLM's convolution and what follows it; for LFM2 the products and copies around it, which
# are kernels of torch.
CHAINS = {"lfm2": r"shortconv|causal_conv1d|MulFunctor|CatArray|direct_copy",
          "": r"shortconv|causal_conv1d|post_conv|l2norm|gdn_gating"}
FUNCTIONS = {"causal_conv1d_fn": "extend", "causal_conv1d_update": "decode and draft",
             "fused_post_conv_prep": "after extend",
             "compute_causal_conv1d_metadata": "metadata"}
METHODS = {"_forward_core": "layer", "forward_cuda": "layer"}
Times = Dict[str, Dict[str, float]]  # of each function: calls, p50_us, mean_us
_LAYERS = ("vllm.model_executor.layers.mamba.", "vllm.v1.attention.backends.",
           "vllm.model_executor.models.")
OTHERS = 8  # kernels outside of the chain that are printed


class HostTimes:
    """Times the functions of the chain where vLLM's modules call them, until `remove`."""

    def __init__(self) -> None:
        self.seconds: Dict[str, List[float]] = {}
        self._before: List[Tuple[Any, str, Any]] = []
        for name, module in list(sys.modules.items()):
            # The module that defines a function has no callers.
            if not name.startswith(_LAYERS) or ".ops." in name or name.endswith("backends.utils"):
                continue
            for function, label in FUNCTIONS.items():
                if callable(getattr(module, function, None)):
                    self._wrap(module, function, f"{label}: {function}")
            for layer in list(vars(module).values()):
                if isinstance(layer, type) and layer.__module__ == name:
                    for method, label in METHODS.items():
                        if method in vars(layer) and hasattr(module, "causal_conv1d_fn"):
                            self._wrap(layer, method, f"{label}: {layer.__name__}.{method}")

    def _wrap(self, owner: Any, name: str, label: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)
        taken = self.seconds.setdefault(label, [])

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = original(*arguments, **options)
            taken.append(time.perf_counter() - begin)
            return result

        self._before.append((owner, name, original))
        setattr(owner, name, timed)

    def remove(self) -> Times:
        """Ends timing; returns calls, median and mean in us for each function that was called."""
        while self._before:
            owner, name, original = self._before.pop()
            setattr(owner, name, original)
        return {label: {"calls": len(taken), "p50_us": 1e6 * samples.median(taken),
                        "mean_us": 1e6 * sum(taken) / len(taken)}
                for label, taken in self.seconds.items() if taken}


DECODED = 32  # tokens of a decode


def work_of(running: engine.Engine, workload: throughput.Workload) -> Callable[[], None]:
    """Runs the prompts of a decode, and returns what is left to do."""
    prompts = throughput.prompts_of(workload, running.vocabulary)
    if running.drafts:  # the same tokens again and again, so that a lookup in the prompt finds some
        prompts = [(ids[:8] * len(ids))[: len(ids)] for ids in prompts]
    if workload.kind != "decode":
        return lambda: run_prompts(running, prompts, workload.tokens)
    running.start_decodes(prompts, DECODED)
    return running.finish


def run_prompts(running: engine.Engine, prompts: List[List[int]], tokens: int) -> None:
    running.generate(prompts, tokens)


def kernels_of(work: Callable[[], None]) -> Dict[str, List[float]]:
    """{kernel: [launches, us]} of some work."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    kernels: Dict[str, List[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            of = kernels.setdefault(event.name, [0, 0.0])
            of[0] += 1
            of[1] += event.device_time
    return kernels


class Passes:
    """Counts the forward passes of the engine's model."""

    def __init__(self, running: engine.Engine) -> None:
        self.count = 0
        self._runner = running.model_runner()
        original = self._runner.execute_model

        def execute_model(scheduled: Any, *arguments: Any, **options: Any) -> Any:
            self.count += scheduled.total_num_scheduled_tokens > 0
            return original(scheduled, *arguments, **options)

        self._runner.execute_model = execute_model

    def remove(self) -> int:
        del self._runner.execute_model  # of the instance; that of the class is visible again
        return self.count


def chain_of(kernels: Dict[str, List[float]], pattern: str) -> Dict[str, List[float]]:
    return {name: of for name, of in kernels.items() if re.search(pattern, name)}


def profiled(running: engine.Engine, workload: throughput.Workload, pattern: str,
             layers: int) -> Dict[str, Any]:
    """Kernels of a workload."""
    work_of(running, workload)()  # what is compiled or chosen at the first call
    work = work_of(running, workload)
    passes = Passes(running)
    kernels = kernels_of(work)
    count = passes.remove()
    chain = chain_of(kernels, pattern)
    launches, us = (sum(of[i] for of in chain.values()) for i in range(2))
    return {"passes": count, "total_us": sum(of[1] for of in kernels.values()), "chain": chain,
            "launches": sum(of[0] for of in kernels.values()),
            "chain_us": us, "launches_per_layer": launches / (layers * max(count, 1)),
            "us_per_layer": us / (layers * max(count, 1)),
            "others": dict(sorted(((name, of) for name, of in kernels.items() if name not in chain),
                                  key=lambda item: -item[1][1])[:OTHERS])}


def host_times(running: engine.Engine, workload: throughput.Workload) -> Times:
    """Host times of a workload, run five times after once that does not count."""
    work_of(running, workload)()
    host = HostTimes()
    try:
        for _ in range(5):
            work_of(running, workload)()
    finally:
        times = host.remove()
    return times


def summary(rounds: List[Times]) -> Dict[str, Dict[str, Any]]:
    """Over rounds: all calls, the median of the medians and these, the mean of all calls."""
    found: Dict[str, Dict[str, Any]] = {}
    for label in dict.fromkeys(label for times in rounds for label in times):
        of = [times[label] for times in rounds if label in times]
        calls, medians = sum(one["calls"] for one in of), [one["p50_us"] for one in of]
        found[label] = {"calls": calls, "p50_us": samples.median(medians),
                        "mean_us": sum(one["mean_us"] * one["calls"] for one in of) / calls,
                        "rounds_p50_us": medians}
    return found


def print_kernels(workload: str, variant: str, one: Dict[str, Any]) -> None:
    print(f"\n{workload}, {variant}: {one['passes']} passes, {one['launches']} launches, GPU time "
          f"{one['total_us']:.0f} us; chain {one['chain_us']:.0f} us; per layer and pass "
          f"{one['launches_per_layer']:.2f} launches, {one['us_per_layer']:.2f} us")
    for title, kernels in (("chain", one["chain"]), ("others", one["others"])):
        for name, (calls, us) in sorted(kernels.items(), key=lambda item: -item[1][1]):
            print(f"  {title:<7} {calls:>7.0f} calls {us:>10.1f} us {us / calls:>8.2f} us a call  "
                  f"{name[:90]}", flush=True)


def print_summary(workload: str, of: Dict[str, Dict[str, Any]]) -> None:
    print(f"\n{workload}, host:")
    for variant, one in of.items():
        for label, times in one["host"].items():
            medians = times["rounds_p50_us"]
            print(f"  {variant:<10} {times['calls']:>6} calls  p50 {times['p50_us']:>8.1f} us "
                  f"({min(medians):.1f} to {max(medians):.1f})  mean {times['mean_us']:>8.1f} us  "
                  f"{label}")
    ours, theirs = of["shortconv"], of["vllm"]
    if theirs["chain_us"] > 0:
        part = ours["us_per_layer"] / theirs["us_per_layer"]
        print(f"{workload}: the chain takes {part:.3f} of vLLM's GPU time per layer, "
              f"{ours['launches_per_layer']:.2f} instead of "
              f"{theirs['launches_per_layer']:.2f} launches per layer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    engine.add_arguments(parser)
    parser.add_argument("--workloads", default="prefill:8x2048,decode:64,decode:256")
    parser.add_argument("--chain", help="regular expression of the chain's kernels")
    parser.add_argument("--rounds", type=int, default=4, help="of host times")
    options = parser.parse_args()
    try:
        workloads = {text: throughput.workload_of(text) for text in options.workloads.split(",")}
        re.compile(options.chain or "")
    except (ValueError, re.error) as error:
        parser.error(str(error))
    if options.tensor_parallel != 1:
        parser.error("--tensor-parallel: is not 1; the profiler sees the kernels of one process")
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    batches = [one.prompts for one in workloads.values() if one.kind != "prefill"]
    running = engine.Engine(options, batches or [64])
    pattern = options.chain or CHAINS.get(running.config["model_type"], CHAINS[""])
    layers = models.convolution_layers(running.config)
    rows: Dict[str, Dict[str, Dict[str, Any]]] = {name: {} for name in workloads}
    times: Dict[Tuple[str, str], List[Times]] = {}

    def save() -> None:  # what has been measured so far
        with open(options.json, "w") as file:
            json.dump({"about": running.about(), "layers": layers, "chain": pattern,
                       "profiles": rows}, file, indent=1)

    for number in range(options.rounds):
        for variant in throughput.order_of(number, 1):
            running.switch(variant)
            for name, workload in workloads.items():
                times.setdefault((name, variant), []).append(host_times(running, workload))
                rows[name].setdefault(variant, {})["host"] = summary(times[name, variant])
        save()
    for variant in throughput.VARIANTS[:2]:  # last: the profiler may slow down what comes after it
        running.switch(variant)
        for name, workload in workloads.items():
            rows[name][variant].update(profiled(running, workload, pattern, layers))
            print_kernels(name, variant, rows[name][variant])
    save()
    for name, of in rows.items():
        print_summary(name, of)


if __name__ == "__main__":
    main()
