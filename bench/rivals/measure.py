"""Time of a call on the GPU, and on the host."""

import statistics
import time
from typing import Callable, List

import torch

COLD_BYTES = 512 << 20  # more than any L2 cache, several times


def gpu_us(calls: List[Callable[[], object]], rounds: int = 15) -> float:
    """Median time per call of a CUDA graph that holds many calls over rotating buffers."""
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
    return statistics.median(times)


def host_us(call: Callable[[], object], device: str, rounds: int = 100, batch: int = 25) -> float:
    """Median time that the caller spends in a call; a batch of them waits for nothing.

    The machine's other work comes in bursts of milliseconds, and 20 batches of 50 may all lie in
    one: rows of 8 us then read 10 to 14.
    """
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(batch):
            call()
        times.append((time.perf_counter() - begin) * 1e6 / batch)
        if device == "cuda":
            torch.cuda.synchronize()
    return statistics.median(times)
