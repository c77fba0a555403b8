"""Compiles the Triton kernels of rivals in several processes before anything is measured.

A process makes the calls of a rival, with kernels that are compiled into Triton's cache on disk and
not launched: for each tuning key those of every configuration of the autotuner. The autotuner then
measures all of them as always, but compiles none, and chooses as it would have without this.
"""

import importlib
import multiprocessing
import os
import time
from contextlib import ExitStack
from typing import Any, Callable, List, NamedTuple, Optional
from unittest import mock

import torch
import training
from cases import Buffers, Case

MOST_PROCESSES = 14  # each takes some 1.5 GB of host memory and a CUDA context


class Task(NamedTuple):
    """Calls of a rival with some cases; each parts-th configuration of the autotuner from part."""

    rival: str
    cases: List[Case]
    part: int
    parts: int


def tasks_of(rivals: List[str], sharing: List[List[Case]]) -> List[Task]:
    """The tasks for lists of cases that share a tuning key, of the rivals with Triton kernels."""
    parts = {name: getattr(importlib.import_module(f"rival_{name}"), "COMPILED_PARTS", 0)
             for name in rivals}
    return [Task(name, cases, part, parts[name])
            for cases in sharing for name in rivals for part in range(parts[name])]


def only_compiling(tuner: Any, function: Any, part: int, parts: int) -> ExitStack:
    """A context in which functions of Triton's classes Autotuner and JITFunction only compile."""
    compile_function = function.run

    def run_function(self: Any, *args: Any, **options: Any) -> Any:
        return compile_function(self, *args, **(options | {"warmup": True}))

    def run_tuner(self: Any, *args: Any, **options: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args))
        for config in self.prune_configs(options)[part::parts]:
            try:
                self.fn.run(*args, **options, **config.all_kwargs())
            except Exception as error:  # the autotuner skips such a configuration
                print(f"{config}: {type(error).__name__}")

    context = ExitStack()
    context.enter_context(mock.patch.object(function, "run", run_function))
    context.enter_context(mock.patch.object(tuner, "run", run_tuner))
    return context


def compile_task(task: Task, device: str = "cuda") -> Optional[str]:
    """Compiles the kernels of a task. Returns what failed, or None."""
    torch.set_num_threads(1)
    rival = importlib.import_module(f"rival_{task.rival}")
    try:
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.jit import JITFunction

        with training.environment(rival), only_compiling(Autotuner, JITFunction, task.part,
                                                         task.parts):
            functions = rival.original()
            for case in task.cases:
                call = training.call(rival, functions, Buffers(case, device))
                if call is not None:
                    call()
        return None
    except Exception as error:
        return f"{task.rival}, {task.cases[0].name}: {type(error).__name__}: {str(error)[:100]}"
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()


def compile_ahead(tasks: List[Task], seconds: float, processes: Optional[int] = None,
                  work: Callable[[Task], Optional[str]] = compile_task) -> int:
    """Runs the tasks in this order, `seconds` at most. Returns how many were finished; the kernels
    of the others are compiled when they are called."""
    if not tasks:
        return 0
    deadline, done = time.monotonic() + seconds, 0
    processes = processes or max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)) - 1))
    with multiprocessing.get_context("spawn").Pool(min(processes, len(tasks))) as pool:
        finished = pool.imap_unordered(work, tasks)
        try:
            for _ in tasks:
                failure = finished.next(timeout=max(0.0, deadline - time.monotonic()))
                done += 1
                if failure:
                    print("not compiled ahead:", failure)
        except multiprocessing.TimeoutError:
            pass
    return done
