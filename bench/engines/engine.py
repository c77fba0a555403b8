"""vLLM in this process, with its own kernels or ours: switched without a restart.

SHORTCONV_VLLM is set to 0 here, so that the plug-in does nothing of its own. `switch` installs or
removes our functions in all workers and captures their CUDA graphs anew.
"""

import argparse
import itertools
import json
import os
import pathlib
import tempfile
import time
from typing import Any, Dict, List, Sequence, Tuple

import models

ENVIRONMENT = {
    "SHORTCONV_VLLM": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the scheduler runs in this process
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # _switch is sent to the workers
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # whose graphs _switch does not know
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiles at the first call
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
PARTS = "conv,front,gates,metadata"
_undo: List[Any] = []  # in each worker: what removes our functions


def load_vllm() -> Any:
    """Imports vLLM, with the environment that these programs need.

    Raises:
      SystemExit: vLLM is not installed; the message says how it can be.
    """
    os.environ.update({name: os.environ.get(name, value) if name != "SHORTCONV_VLLM" else value
                       for name, value in ENVIRONMENT.items()})
    try:
        import vllm
    except ImportError as error:
        raise SystemExit(f"vllm: cannot be imported ({error}); expected vLLM 0.20 to 0.33 and a "
                         "GPU, because these programs measure a running engine") from None
    return vllm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of all programs here."""
    parser.add_argument("model", help=f"a folder with config.json, or one of {models.NAMES}")
    parser.add_argument("json", help="file for the results")
    parser.add_argument("--weights", choices=["random", "folder"], default="random")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--parts", default=PARTS, help=f"of the plug-in, default {PARTS}")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-batched-tokens", type=int, default=8192)
    parser.add_argument("--memory", type=float, default=0.9, help="part of the GPU's memory")
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs, no compilation")
    parser.add_argument("--ngram-drafts", type=int, default=0,
                        help="speculative decoding with so many tokens, looked up in the prompt")


def _model_runner(worker: Any) -> Any:
    return getattr(worker, "worker", worker).model_runner


def _switch(worker: Any, parts: Tuple[str, ...], captures: bool) -> float:
    """Installs the parts in a worker, or removes all, and captures CUDA graphs; returns seconds."""
    import torch
    from shortconv.compat import vllm as plugin
    from vllm.compilation.cuda_graph import CUDAGraphWrapper

    while _undo:
        _undo.pop()()
    if parts:
        _undo.append(plugin.install(parts))
    torch.cuda.synchronize()
    begin = time.perf_counter()
    if captures:
        CUDAGraphWrapper.clear_all_graphs()
        _model_runner(worker).capture_model()
    return time.perf_counter() - begin


class Engine:
    """An engine with random or loaded weights.

    Args:
      options: of add_arguments.
      batches: batch sizes of decodes; their CUDA graphs are captured.
    """

    def __init__(self, options: argparse.Namespace, batches: Sequence[int]) -> None:
        self._vllm = load_vllm()
        self._options = options
        self._ids = itertools.count()
        with tempfile.TemporaryDirectory() as scratch:
            folder = models.folder_of(options.model, pathlib.Path(scratch))
            self.config: Dict[str, Any] = json.loads((folder / "config.json").read_text())
            begin = time.perf_counter()
            self.llm = self._vllm.LLM(model=str(folder), **self._arguments(batches))
        self.start_seconds = time.perf_counter() - begin
        self.drafts = int(options.ngram_drafts)
        self.vocabulary = int(self.config["vocab_size"])
        print(f"engine: started in {self.start_seconds:.0f} s", flush=True)

    def _arguments(self, batches: Sequence[int]) -> Dict[str, Any]:
        options = self._options
        arguments: Dict[str, Any] = {
            "skip_tokenizer_init": True, "dtype": options.dtype, "seed": 0,
            "load_format": "dummy" if options.weights == "random" else "auto",
            "max_model_len": options.max_model_len, "max_num_seqs": max(batches),
            "max_num_batched_tokens": options.max_batched_tokens,
            "gpu_memory_utilization": options.memory, "disable_log_stats": True,
            "enable_prefix_caching": options.prefix_caching, "enforce_eager": options.eager,
            "tensor_parallel_size": options.tensor_parallel,
            "disable_custom_all_reduce": options.tensor_parallel > 1,
            # Others compile kernels at their first call.
            "additional_config": {"gdn_prefill_backend": "triton"}}
        if not options.eager:
            sizes = sorted(set(batches))
            arguments["compilation_config"] = {"cudagraph_capture_sizes": sizes}
        if options.dtype == "float32":
            arguments["attention_backend"] = "TRITON_ATTN"  # others have no f32
        if options.ngram_drafts:
            arguments["speculative_config"] = {
                "method": "ngram", "num_speculative_tokens": options.ngram_drafts,
                "prompt_lookup_max": 4, "prompt_lookup_min": 1}
        return arguments

    def about(self) -> Dict[str, Any]:
        """What the results depend on."""
        import torch

        options = {name: value for name, value in vars(self._options).items() if name != "json"}
        return {"model": self._options.model, "options": options,
                "device": torch.cuda.get_device_name(), "vllm": self._vllm.__version__,
                "torch": torch.__version__, "start_seconds": self.start_seconds}

    def switch(self, variant: str) -> float:
        """Uses our functions for "shortconv", vLLM's for all else; returns the seconds to capture.

        Raises:
          ImportError: the plug-in refuses this vLLM.
        """
        parts = tuple(self._options.parts.split(",")) if variant == "shortconv" else ()
        seconds = self.llm.collective_rpc(_switch, args=(parts, not self._options.eager))
        return float(max(seconds))

    def model_runner(self) -> Any:
        """The object that runs the model, where the only worker is in this process."""
        return self.llm.collective_rpc(_model_runner)[0]

    def sampling(self, tokens: int, stop: Sequence[int] = ()) -> Any:
        """Greedy; without `stop` exactly so many tokens."""
        return self._vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=not stop,
                                         stop_token_ids=list(stop), detokenize=False)

    def generate(self, prompts: Sequence[List[int]], tokens: int,
                 stop: Sequence[int] = ()) -> List[List[int]]:
        """The greedy answers to prompts of token ids."""
        outs = self.llm.generate([{"prompt_token_ids": ids} for ids in prompts],
                                 self.sampling(tokens, stop), use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in outs]

    def seconds(self, prompts: Sequence[List[int]], tokens: int) -> float:
        """The time of generate."""
        begin = time.perf_counter()
        self.generate(prompts, tokens)
        return time.perf_counter() - begin

    def start_decodes(self, prompts: Sequence[List[int]], tokens: int) -> Dict[str, int]:
        """Adds requests and runs their prompts, until each has two tokens.

        Returns:
          {request: tokens that it has}, for `step`.
        """
        produced: Dict[str, int] = {}
        # The prompts take several steps, in which the first requests decode already: without more
        # tokens than are measured, these would end before the last ones.
        sampling = self.sampling(tokens + 32)
        for ids in prompts:
            self.llm.llm_engine.add_request(
                f"decode-{next(self._ids)}", {"prompt_token_ids": ids}, sampling)
        while len(produced) < len(prompts) or min(produced.values()) < 2:
            self.step(produced)
        return produced

    def step(self, produced: Dict[str, int]) -> int:
        """One step of the engine; returns the number of tokens that all requests have."""
        for one in self.llm.llm_engine.step():
            produced[one.request_id] = len(one.outputs[0].token_ids)
        return sum(produced.values())

    def finish(self) -> None:
        """Runs until no request is left."""
        while self.llm.llm_engine.has_unfinished_requests():
            self.llm.llm_engine.step()

    def decode_rates(self, prompts: Sequence[List[int]], tokens: int, windows: int) -> List[float]:
        """Tokens/s of decoding alone, in some windows of `tokens` tokens for each request."""
        produced = self.start_decodes(prompts, tokens * windows)
        begin, count = time.perf_counter(), sum(produced.values())
        rates: List[float] = []
        while len(rates) < windows and self.llm.llm_engine.has_unfinished_requests():
            total = self.step(produced)
            if total - count >= tokens * len(prompts):
                now = time.perf_counter()
                rates.append((total - count) / (now - begin))
                begin, count = now, total
        self.finish()
        return rates
