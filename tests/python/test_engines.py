"""bench/engines/ on an engine that is not there: statistics, arguments, and the loops around it."""

import argparse
import json
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("numpy")

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "engines"))

import accuracy  # noqa: E402
import chain  # noqa: E402
import engine  # noqa: E402
import models  # noqa: E402
import samples  # noqa: E402
import throughput  # noqa: E402
from throughput import Workload, workload_of  # noqa: E402


class Llm:
    """Answers token 7 n + position to prompts of n tokens, two requests of a batch in a step."""

    def __init__(self, model, **arguments):
        assert json.loads((Path(model) / "config.json").read_text())["vocab_size"] > 0
        self.arguments, self.waiting, self.switches = arguments, {}, []
        self.llm_engine = self

    def collective_rpc(self, function, args=()):
        if function is engine._switch:
            self.switches.append(args)
            return [0.5]
        self.runner = getattr(self, "runner", types.SimpleNamespace())
        return [self.runner]

    @staticmethod
    def output(name, prompt, count):
        ids = [7 * len(prompt) + i for i in range(count)]
        return types.SimpleNamespace(request_id=name, outputs=[
            types.SimpleNamespace(token_ids=ids)])

    def generate(self, prompts, sampling, use_tqdm):
        return [self.output("", one["prompt_token_ids"], sampling.max_tokens) for one in prompts]

    def add_request(self, name, prompt, sampling):
        self.waiting[name] = [prompt["prompt_token_ids"], 0, sampling.max_tokens]

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        started = [name for name, one in self.waiting.items() if one[1] > 0]
        new = [name for name, one in self.waiting.items() if one[1] == 0][:2]
        outputs = []
        for name in started + new:
            one = self.waiting[name]
            one[1] += 1
            outputs.append(self.output(name, one[0], one[1]))
            if one[1] == one[2]:
                del self.waiting[name]
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    """A module vllm, and the engines that it made."""
    pytest.importorskip("torch")
    made = []
    module = types.SimpleNamespace(
        __version__="0.99.0", LLM=lambda **n: made.append(Llm(**n)) or made[-1],
        SamplingParams=lambda **n: types.SimpleNamespace(**n), made=made)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    for name in engine.ENVIRONMENT:
        monkeypatch.setenv(name, "")
    return module


def run(monkeypatch, program, *arguments):
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
    program.main()


def test_ratio_of_rounds():
    # The host is twice as fast in some rounds; within each round ours has 1.1 times the rate.
    theirs = [[100.0 * (1 + i % 2), 102.0 * (1 + i % 2), 99.0 * (1 + i % 2)] for i in range(10)]
    ours = [[1.1 * one for one in part] for part in theirs]
    found = samples.ratio(ours, theirs)
    assert found == pytest.approx((1.1, 1.1, 1.1))
    ours[3] = [1000.0]
    found = samples.ratio(ours, theirs)
    assert found.median == pytest.approx(1.1) and found.low == pytest.approx(1.1)
    assert str(found).startswith("1.1000 (1.1000 to ")


def test_the_interval_contains_the_ratio_and_narrows_with_rounds():
    import numpy as np

    random = np.random.default_rng(1)
    widths = []
    for rounds in (10, 160):
        one, other = (list(1 + 0.02 * random.standard_normal((rounds, 3))) for _ in range(2))
        found = samples.ratio(one, other)
        assert found.low <= found.median <= found.high and found.low < 1.01 and found.high > 0.99
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_ratio_refuses_other_numbers_of_rounds():
    with pytest.raises(ValueError, match="^ours: has 1 rounds, theirs has 2; expected the same"):
        samples.ratio([[1.0]], [[1.0], [2.0]])


def test_noise_and_summary():
    assert samples.noise([[100.0, 110.0], [105.0]]) == pytest.approx((5 / 105, 0))
    rows = {"vllm": {0: [10.0, 10.0], 1: [20.0]}, "shortconv": {0: [11.0], 1: [22.0]},
            "control": {1: [20.0]}}
    found = samples.summary(rows)
    assert found["shortconv / vllm"]["median"] == pytest.approx(1.1)
    assert found["control / vllm"]["median"] == 1 and found["rounds"] == 2
    assert found["median"] == {"vllm": 10, "shortconv": 16.5, "control": 20}
    assert "control / vllm" not in samples.summary({**rows, "control": {}})


def test_workloads():
    assert workload_of("prefill:8x2048") == Workload("prefill", 8, 2048, 1)
    assert workload_of("decode:64") == Workload("decode", 64, 64, 0)
    assert workload_of("mixed:4x512x32") == Workload("mixed", 4, 512, 32)
    for text in ("decode", "decode:0", "decode:4x4", "prefill:8", "serve:8", "mixed:1x2"):
        with pytest.raises(ValueError, match=f"^workload: is '{text}'; expected prefill:PROMPTSx"):
            workload_of(text)
    one, again = (throughput.prompts_of(workload_of("prefill:3x5"), 100) for _ in range(2))
    assert one == again and [len(ids) for ids in one] == [5, 5, 5] and max(map(max, one)) < 90
    assert throughput.order_of(0, 2) == ["vllm", "shortconv", "control"]
    assert throughput.order_of(1, 2) == ["shortconv", "vllm"]
    assert throughput.order_of(0, 0) == ["vllm", "shortconv"]


def test_models(tmp_path):
    next_, lfm = models.config_of("qwen3-next:12"), models.config_of("lfm2-1.2b")
    assert models.convolution_layers(next_) == 9 and models.convolution_layers(lfm) == 10
    folder = models.folder_of("qwen3-next:4", tmp_path)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 4
    assert models.folder_of(str(folder), tmp_path / "other") == folder
    for name in ("qwen3-next", "qwen3-next:0", "qwen3-next:x", "lfm2"):
        with pytest.raises(ValueError, match=f"^model: is '{name}'; expected a folder"):
            models.folder_of(name, tmp_path)


def test_without_vllm_the_message_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in engine.ENVIRONMENT:
        monkeypatch.setenv(name, "")
    with pytest.raises(SystemExit, match="^vllm: cannot be imported .*; expected vLLM 0.20 to"):
        engine.load_vllm()


def test_throughput(monkeypatch, vllm, tmp_path, capsys):
    run(monkeypatch, throughput, "lfm2-350m", tmp_path / "out.json", "--rounds", 3, "--window", 4,
        "--repetitions", 2, "--workloads", "prefill:3x5,decode:5,mixed:2x4x3", "--parts", "conv")
    llm, = vllm.made
    assert llm.arguments["compilation_config"] == {"cudagraph_capture_sizes": [2, 5]}
    parts = [args[0] for args in llm.switches]
    assert parts == [(), ("conv",), (), ("conv",), (), (), ("conv",), ()] and not llm.waiting
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["about"]["vllm"] == "0.99.0" and set(found["summaries"]) == {
        "prefill:3x5", "decode:5", "mixed:2x4x3"}
    rows = found["tokens_per_s"]["decode:5"]
    assert [len(one) for one in rows["shortconv"].values()] == [2, 2, 2]
    assert list(rows["control"]) == ["0", "2"]
    assert "noise of vllm" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--workloads", "x"], []])
def test_bad_arguments_of_throughput(monkeypatch, arguments):
    with pytest.raises(SystemExit):
        run(monkeypatch, throughput, *(["lfm2-350m", "out.json", *arguments] if arguments else []))


PROMPTS = {"sets": {
    "sums": {"max_tokens": 3, "stop": [2], "prompts": [
        {"ids": [1, 2], "answer": [14, 15]}, {"ids": [1], "answer": [9]}]}}}


def test_accuracy(monkeypatch, vllm, tmp_path, capsys):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(PROMPTS))
    run(monkeypatch, accuracy, "lfm2-350m", tmp_path / "out.json", prompts, "--dtype", "float32",
        "--control-seqs", 1)
    llm, = vllm.made
    assert llm.arguments["attention_backend"] == "TRITON_ATTN" and len(llm.switches) == 3
    found = json.loads((tmp_path / "out.json").read_text())["comparisons"]["sums"]
    assert found["right"] == {"vllm": 1, "shortconv": 1, "control": 1}
    assert found["identical"] == found["identical_in_control"] == 2 and not found["differences"]
    assert "vllm       1 right, 50.00%" in capsys.readouterr().out


def test_differing_answers():
    answers = {"vllm": [[1, 2, 3], [4], [5, 6]], "shortconv": [[1, 2, 4], [4], [5]],
               "control": [[1, 9, 3], [4], [5, 6]]}
    right = {"vllm": [True, False, True], "shortconv": [False, True, True],
             "control": [True, True, True]}
    found = accuracy.compare(answers, right)
    assert found["differences"] == [{"prompt": 0, "token": 2, "control_differs": True},
                                    {"prompt": 2, "token": 1, "control_differs": False}]
    assert found["identical"] == 1 and found["identical_in_control"] == 2
    assert found["differing_in_control_too"] == 1
    assert (found["right_with_vllm_only"], found["right_with_shortconv_only"]) == (1, 1)


def test_right_answers():
    def is_right(text, answer, pattern=r"####\s*(\S+)"):
        return accuracy.is_right([0], answer, pattern, lambda ids: text)

    assert is_right("so 4 + 4\n#### 1,008", "1008") and is_right("#### 8.0", "8")
    assert not is_right("#### 9", "8") and not is_right("8", "8") and is_right("#### red", "red")
    assert is_right(" 8 apples", "8", None) and not is_right("18", "8", None)
    assert accuracy.is_right([3, 4, 2], [3, 4], None, None)
    assert not accuracy.is_right([3], [3, 4], None, None)


@pytest.mark.parametrize("content, message", [
    ([], "has no sets"), ({"sets": {}}, "has no sets"),
    ({"sets": {"a": {"max_tokens": 1}}}, "a has no prompts"),
    ({"sets": {"a": {"prompts": [{"ids": [1], "answer": "x"}]}}}, "max_tokens of a is None"),
    ({"sets": {"a": {"max_tokens": 1, "prompts": [{"ids": ["b"], "answer": "x"}]}}}, "ids of pr"),
    ({"sets": {"a": {"max_tokens": 1, "prompts": [{"ids": [1]}]}}}, "answer of prompt 0 of a is")])
def test_bad_files_of_prompts(tmp_path, content, message):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        accuracy.read_sets(str(path))


def test_texts_need_a_tokenizer(monkeypatch, tmp_path, capsys):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"sets": {"a": {"max_tokens": 1, "prompts": [
        {"ids": [1], "answer": "x"}]}}}))
    with pytest.raises(SystemExit):
        run(monkeypatch, accuracy, "lfm2-350m", tmp_path / "out.json", path)
    assert "--tokenizer: is not given, but answers are texts" in capsys.readouterr().err


def test_host_times(monkeypatch):
    name = "vllm.model_executor.layers.mamba.some_layer"

    class Layer:
        def forward_cuda(self):
            return module.causal_conv1d_fn(3)

    Layer.__module__ = name
    module = types.ModuleType(name)
    vars(module).update(causal_conv1d_fn=lambda x: x + 1, Layer=Layer)
    original, method = module.causal_conv1d_fn, Layer.forward_cuda
    monkeypatch.setitem(sys.modules, name, module)
    host = chain.HostTimes()
    assert Layer().forward_cuda() == 4 and Layer().forward_cuda() == 4
    times = host.remove()
    assert {label: one["calls"] for label, one in times.items()} == {
        "extend: causal_conv1d_fn": 2, "layer: Layer.forward_cuda": 2}
    assert all(one["p50_us"] > 0 and one["mean_us"] > 0 for one in times.values())
    assert module.causal_conv1d_fn is original and Layer.forward_cuda is method


def test_chain_of_kernels():
    kernels = {"void shortconv::cuda::tiles<1>()": [2, 4.0], "_causal_conv1d_fwd_kernel": [2, 6.0],
               "_fused_post_conv_kernel": [2, 2.0], "gemm": [2, 99.0]}
    assert set(chain.chain_of(kernels, chain.CHAINS[""])) == set(kernels) - {"gemm"}


def test_profile(monkeypatch, vllm, tmp_path, capsys):
    kernels = {"_causal_conv1d_fwd_kernel": [20, 40.0], "gemm": [3, 9.0]}
    monkeypatch.setattr(chain, "kernels_of", lambda work: (work(), dict(kernels))[1])
    monkeypatch.setattr(chain, "Passes", lambda running: types.SimpleNamespace(remove=lambda: 2))
    run(monkeypatch, chain, "lfm2-1.2b", tmp_path / "out.json", "--workloads",
        "prefill:2x8,decode:3", "--eager", "--rounds", 3)
    found = json.loads((tmp_path / "out.json").read_text())
    one = found["profiles"]["decode:3"]["shortconv"]
    assert (one["us_per_layer"], one["launches_per_layer"], found["layers"]) == (2, 1, 10)
    assert "the chain takes 1.000 of vLLM's GPU time per layer" in capsys.readouterr().out
    assert sorted(found["profiles"]["decode:3"]) == ["control", "shortconv", "vllm"]
    for bad in (("--tensor-parallel", 2), ("--rounds", 0)):
        with pytest.raises(SystemExit):
            run(monkeypatch, chain, "lfm2-1.2b", "out.json", *bad)


def test_host_times_of_rounds():
    rounds = [{"layer": {"calls": 2, "p50_us": 5.0, "mean_us": 6.0}}, {},
              {"layer": {"calls": 4, "p50_us": 8.0, "mean_us": 9.0}, "extend": {
                  "calls": 1, "p50_us": 1.0, "mean_us": 1.0}}]
    assert chain.summary(rounds) == {
        "layer": {"calls": 6, "p50_us": 6.5, "mean_us": 8.0, "rounds_p50_us": [5.0, 8.0]},
        "extend": {"calls": 1, "p50_us": 1.0, "mean_us": 1.0, "rounds_p50_us": [1.0]}}


def test_arguments_are_those_of_the_engine(vllm):
    parser = argparse.ArgumentParser()
    engine.add_arguments(parser)
    options = parser.parse_args(["lfm2-350m", "out.json", "--eager", "--ngram-drafts", "3"])
    running = engine.Engine(options, [4, 4, 2])
    arguments = running.llm.arguments
    assert "compilation_config" not in arguments and arguments["max_num_seqs"] == 4
    assert arguments["speculative_config"]["num_speculative_tokens"] == 3 and running.drafts == 3
    running.switch("shortconv")
    assert running.llm.switches == [(("conv", "front", "gates", "metadata"), False)]
