"""Time of a call on the GPU and on the host."""

import math
import statistics
import time
from typing import Callable, List

import torch

COLD_BYTES = 512 << 20  # several times any L2 cache


def gpu_us(calls: List[Callable[[], object]], rounds: int = 15,
           seconds: float = math.inf) -> float:
    """Median time per call, in us, of a CUDA graph with many calls over rotating buffers. Three
    rounds at least, and no more of them once they have taken `seconds`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls * 2:
            call()
    torch.cuda.synchronize()
    count = len(calls) * max(1, 32 // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(count):
            calls[index % len(calls)]()
    graph.replay()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / count)
        if len(times) >= 3 and sum(times) * count * 1e-6 >= seconds:
            break
    return statistics.median(times)


def host_us(calls: List[Callable[[], object]], device: str, turns: int = 20) -> List[float]:
    """Median host time of each call, in us; no waiting for the device within a batch.

    The calls alternate: other work on a machine comes in bursts of up to seconds, in which
    everything takes 1.5 times as long.
    """
    batches, batch = 5, 25
    times: List[List[float]] = [[] for _ in calls]
    for _ in range(turns):
        for call, taken in zip(calls, times):
            for _ in range(batches):
                begin = time.perf_counter()
                for _ in range(batch):
                    call()
                taken.append((time.perf_counter() - begin) * 1e6 / batch)
                if device == "cuda":
                    torch.cuda.synchronize()
    return [statistics.median(taken) for taken in times]
