"""Calls with threads in worker processes: docs/robustness.md, "Threads and processes"."""

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import shortconv

SECONDS = 120  # a worker that hangs fails the test instead


def convolve(seed, threads=3):
    """Large enough for several threads."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((2000, 64), np.float32)
    weight = random.standard_normal((64, 4), np.float32)
    return shortconv.forward(x, weight, activation="silu", threads=threads)


def is_right(seed):
    return np.array_equal(convolve(seed), convolve(seed, threads=1))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_a_pool(method):
    assert is_right(0)  # the parent has threads before the workers start
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        assert pool.map_async(is_right, range(6)).get(SECONDS) == [True] * 6
    assert is_right(0)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_an_executor(method):
    assert is_right(0)
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, context) as executor:
        results = [executor.submit(is_right, seed) for seed in range(6)]
        assert all(result.result(SECONDS) for result in results)


def test_forked_child_that_ends_in_the_usual_way():
    assert is_right(0)
    process = multiprocessing.get_context("fork").Process(target=is_right, args=(1,))
    process.start()
    process.join(SECONDS)
    assert process.exitcode == 0


def test_workers_of_a_data_loader():
    data = pytest.importorskip("torch.utils.data")

    class Rows(data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return is_right(index)

    assert is_right(0)
    for context in "fork", "forkserver", "spawn":
        rows = Rows() if context == "fork" else list(range(8))
        loader = data.DataLoader(rows, num_workers=2, timeout=SECONDS, batch_size=None,
                                 multiprocessing_context=context,
                                 collate_fn=None if context == "fork" else is_right)
        assert [bool(right) for right in loader] == [True] * 8


def test_threads_of_one_process():
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        assert all(executor.map(is_right, range(32), timeout=SECONDS))


@pytest.mark.parametrize("value, threads", [
    ("3", 3), ("5,2", 5), ("100000", 256), ("99999999999999999999", 256),
    ("0", None), ("-4", None), ("many", None), ("", None)])
def test_number_of_threads_of_the_environment(value, threads):
    script = ("import shortconv\n"
              "backends = shortconv.capabilities()['backends']\n"
              "print(next(b for b in backends if b['name'] == 'cpu')['detail'])\n"
              "import test_processes\n"
              "assert test_processes.convolve(0, threads=0).shape == (2000, 64)")
    environment = {**os.environ, "OMP_NUM_THREADS": value}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, os.path.dirname(__file__)])
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=SECONDS,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = int(done.stdout.split()[-2])
    assert found == threads or threads is None and 1 <= found <= len(os.sched_getaffinity(0))


def test_processors_that_the_process_may_use():
    script = ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
              "import shortconv\n"
              "backends = shortconv.capabilities()['backends']\n"
              "print(next(b for b in backends if b['name'] == 'cpu')['detail'])")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=SECONDS,
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(" 1 threads")
