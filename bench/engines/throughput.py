#!/usr/bin/env python3
"""Tokens/s of vLLM with its own kernels and with ours, in one process.

    bench/engines/throughput.py MODEL RESULTS.json [--rounds 10] [--repetitions 3]
                                [--workloads prefill:16x2048,decode:64,decode:256]

Each round measures vLLM's kernels and ours, in alternating order, with CUDA graphs captured anew.
In every second round it measures vLLM's a second time: this control shows which differences mean
nothing. Printed: medians over all repetitions; the median of the ratios of the rounds with its 95%
confidence interval (rounds drawn with replacement); the spread of vLLM's own repetitions.

Workloads:
  prefill:PROMPTSxLENGTH        prompts alone, one token each; tokens of the prompts/s
  decode:BATCH                  after prompts of 64 tokens; generated tokens/s
  mixed:PROMPTSxLENGTHxTOKENS   all at once: batches with prompts and decodes; all tokens/s
"""

import argparse
import json
import random
from typing import Any, Dict, List, NamedTuple

import engine
import samples

VARIANTS = ("vllm", "shortconv", "control")


class Workload(NamedTuple):
    """prompts, length: of the prompts. tokens: generated for each; 0: a window of decoding."""

    kind: str
    prompts: int
    length: int
    tokens: int


def workload_of(text: str) -> Workload:
    """Reads a workload, as above.

    Raises:
      ValueError: it is not one.
    """
    kind, _, numbers = text.partition(":")
    parts = numbers.split("x")
    if all(part.isdigit() and int(part) > 0 for part in parts):
        sizes = list(map(int, parts))
        if kind == "prefill" and len(sizes) == 2:
            return Workload(kind, *sizes, 1)
        if kind == "decode" and len(sizes) == 1:
            return Workload(kind, sizes[0], 64, 0)
        if kind == "mixed" and len(sizes) == 3:
            return Workload(kind, *sizes)
    raise ValueError(f"workload: is {text!r}; expected prefill:PROMPTSxLENGTH, decode:BATCH or "
                     "mixed:PROMPTSxLENGTHxTOKENS")


def prompts_of(workload: Workload, vocabulary: int) -> List[List[int]]:
    """Random prompts, the same in each run."""
    numbers = random.Random(1)
    return [[numbers.randrange(10, vocabulary - 10) for _ in range(workload.length)]
            for _ in range(workload.prompts)]


def measure(running: engine.Engine, workload: Workload, repetitions: int,
            window: int) -> List[float]:
    """Tokens/s, once for each repetition, after a run that does not count."""
    prompts = prompts_of(workload, running.vocabulary)
    if workload.kind == "decode":
        return running.decode_rates(prompts, window, repetitions)
    running.seconds(prompts, workload.tokens)
    tokens = workload.prompts * (workload.length + workload.tokens * (workload.kind == "mixed"))
    return [tokens / running.seconds(prompts, workload.tokens) for _ in range(repetitions)]


def order_of(number: int, control_every: int) -> List[str]:
    """The variants of a round; which one is first alternates."""
    order = list(VARIANTS[:2]) if number % 2 == 0 else list(reversed(VARIANTS[:2]))
    if control_every and number % control_every == 0:
        order.append("control")
    return order


def print_summaries(summaries: Dict[str, Dict[str, Any]]) -> None:
    print(f"\n{'workload':<20} {'vllm':>10} {'shortconv':>10}  ratio, 95% interval         "
          "control, 95% interval       noise of vllm")
    for name, one in summaries.items():
        medians = one["median"]
        ratios = [str(samples.Ratio(**one[f"{variant} / vllm"]))
                  if f"{variant} / vllm" in one else "" for variant in VARIANTS[1:]]
        print(f"{name:<20} {medians['vllm']:>10.0f} {medians['shortconv']:>10.0f}  "
              f"{ratios[0]:<27} {ratios[1]:<27} {samples.Noise(**one['noise'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    engine.add_arguments(parser)
    parser.add_argument("--workloads", default="prefill:16x2048,decode:64,decode:256")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repetitions", type=int, default=3, help="of a workload in a round")
    parser.add_argument("--window", type=int, default=32, help="decoded tokens of a repetition")
    parser.add_argument("--control-every", type=int, default=2, help="rounds; 0: no control")
    options = parser.parse_args()
    try:
        workloads = {text: workload_of(text) for text in options.workloads.split(",")}
    except ValueError as error:
        parser.error(str(error))
    if min(options.rounds, options.repetitions, options.window) < 1:
        parser.error("--rounds, --repetitions and --window: expected at least 1")
    batches = [one.prompts for one in workloads.values() if one.kind != "prefill"]
    running = engine.Engine(options, batches or [64])
    rows: Dict[str, Dict[str, Dict[int, List[float]]]] = {
        name: {variant: {} for variant in VARIANTS} for name in workloads}
    summaries: Dict[str, Dict[str, Any]] = {}
    for number in range(options.rounds):
        for variant in order_of(number, options.control_every):
            captured = running.switch(variant)
            for name, workload in workloads.items():
                rates = measure(running, workload, options.repetitions, options.window)
                rows[name][variant][number] = rates
                print(f"round {number} {variant:<10} captured in {captured:.1f} s  {name:<20} "
                      f"{' '.join(f'{rate:.0f}' for rate in rates)}", flush=True)
        summaries = {name: samples.summary(of) for name, of in rows.items()}
        with open(options.json, "w") as file:  # after each round: a run may be ended early
            json.dump({"about": running.about(), "summaries": summaries, "tokens_per_s": rows},
                      file, indent=1)
    print_summaries(summaries)


if __name__ == "__main__":
    main()
