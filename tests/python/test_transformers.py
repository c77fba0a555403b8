"""Small models of transformers give the same greedy tokens with our convolution as with torch's."""

import json
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from grids import DEVICES  # noqa: E402


def run(model, device, mode):
    program = pathlib.Path(__file__).with_name("transformers_model.py")
    done = subprocess.run([sys.executable, program, model, device, mode], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model, layers", [("qwen3_next", 3), ("mamba2", 4), ("lfm2", 3)])
def test_greedy_tokens(model, layers, device):
    plain, ours = run(model, device, "torch"), run(model, device, "install")
    assert ours["tokens"] == plain["tokens"]
    assert len({tuple(row) for row in ours["tokens"]}) == 2
    # The prefill of each layer and every decode step called the installed functions.
    assert plain["calls"] == {}
    assert ours["calls"] == {"causal_conv1d_fn": layers, "causal_conv1d_update": 23 * layers}
