"""Trains the language model of language_model.py and writes the run as JSON.

  python examples/train_language_model.py --conv shortconv --data train.jsonl --json run.json

The same options give the same weights at the start and the same batches for each --conv. With
--tiny it trains a tiny model, on a CPU in seconds. Without --data it trains on sums and differences
that it makes.
"""

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

# Read when cuBLAS is loaded: it chooses sums whose order is fixed.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch  # noqa: E402
from language_model import (  # noqa: E402
    CONVOLUTIONS,
    END,
    PACKAGES,
    WIDTH,
    Documents,
    LanguageModel,
    convolution,
    loss_of,
    send,
)
from torch import Tensor  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TINY = {"layers": 2, "features": 64, "heads": 2, "attention_every": 2, "chunk": 16, "batch": 4,
        "length": 64, "steps": 60, "warmup": 5, "rate": 4e-3, "validation_batches": 2,
        "conv_repeats": 5, "log_every": 20}

# ---- Text ----


def documents_of(text: str) -> List[str]:
    """The documents of a file: the objects of JSON lines, whose strings are joined, or the parts of
    a text between blank lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        objects = [json.loads(line) for line in lines]
    except json.JSONDecodeError:
        objects = [None]
    if all(isinstance(one, dict) for one in objects):
        return ["\n".join(value for value in one.values() if isinstance(value, str))
                for one in objects]
    return [part for part in (part.strip() for part in text.split("\n\n")) if part]


def synthetic_documents(seed: int, count: int = 4000) -> List[str]:
    """Sums and differences of small numbers, a few lines a document."""
    numbers, found = random.Random(seed), []
    for _ in range(count):
        lines = []
        for _ in range(numbers.randrange(2, 7)):
            a, b = numbers.randrange(100), numbers.randrange(100)
            lines.append(f"{a} plus {b} is {a + b}." if numbers.randrange(2)
                         else f"{a} minus {b} is {a - b}.")
        found.append("\n".join(lines))
    return found


class Text:
    """Documents in rows of bytes: each document, then WIDTH - 1 END bytes, cut every `length`."""

    def __init__(self, documents: Sequence[str], length: int) -> None:
        data = b"".join(one.encode().replace(bytes([END]), b" ") + bytes([END] * (WIDTH - 1))
                        for one in documents)
        self.sha256 = hashlib.sha256(data).hexdigest()
        rows = (len(data) - 1) // length
        if rows == 0:
            raise ValueError(f"--data: has {len(data)} bytes here; expected more than --length, "
                             f"{length}")
        self.tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.length, self.rows = length, rows

    def batch(self, rows: Sequence[int], device: torch.device) -> Tuple[Tensor, Tensor, Documents]:
        """Bytes, next bytes and documents of some rows."""
        parts = torch.stack([self.tokens[row * self.length :][: self.length + 1] for row in rows])
        tokens, targets = parts[:, :-1].contiguous(), parts[:, 1:].contiguous()
        documents = Documents.of(tokens).to(device)
        return send(tokens, device), send(targets, device), documents

    def shuffled(self, batch: int, seed: int) -> Iterator[List[int]]:
        """Rows of endless batches: all rows in a random order, then in another one."""
        order: List[int] = []
        numbers = random.Random(seed)
        while True:
            while len(order) < batch:
                order += numbers.sample(range(self.rows), self.rows)
            yield [order.pop(0) for _ in range(batch)]


def texts(options: argparse.Namespace) -> Tuple[Text, Text]:
    """For training, and every twentieth document for validation."""
    if options.data is None:
        documents = synthetic_documents(options.seed)
    else:
        documents = documents_of(options.data.read_text(encoding="utf-8"))
    train = [one for number, one in enumerate(documents) if number % 20 != 19]
    return Text(train, options.length), Text(documents[19::20], options.length)


# ---- Time ----


class Stopwatch:
    """Marks on the GPU's stream, without waiting for it, or on the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: List[Any] = []

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def intervals_ms(self) -> List[float]:
        pairs = zip(self.marks, self.marks[1:])
        if not self.cuda:
            return [(after - before) * 1e3 for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in pairs]


def convolution_ms(model: LanguageModel, documents: Documents, repeats: int) -> Optional[float]:
    """Median time of one layer's convolution, forward and backward."""
    layer = model.first_convolution()
    if layer is None:
        return None
    weight = layer.weight
    shape = (*documents.index.shape, weight.shape[0])
    x = torch.randn(shape, device=weight.device).to(model.dtype).requires_grad_()
    grad = torch.randn(shape, device=weight.device).to(model.dtype)

    def call() -> None:
        torch.autograd.grad(layer(x, documents), (x, weight), grad)

    for _ in range(3):
        call()
    if x.device.type == "cuda":  # it waits, so that the calls below queue up behind one another
        torch.cuda._sleep(100_000_000)
    watch = Stopwatch(x.device)
    watch.mark()
    for _ in range(repeats):
        call()
        watch.mark()
    return statistics.median(watch.intervals_ms())


# ---- Training ----


def rate_at(step: int, options: argparse.Namespace) -> float:
    """As a share of --rate: a linear warm-up, then a cosine down to a tenth."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return 0.55 + 0.45 * math.cos(math.pi * done)


def weights_sha256(model: torch.nn.Module) -> str:
    """Of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, one in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(one.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def validation_loss(model: LanguageModel, text: Text, options: argparse.Namespace,
                    device: torch.device) -> float:
    losses = []
    for first in range(0, text.rows, options.batch)[: options.validation_batches]:
        rows = range(first, min(first + options.batch, text.rows))
        tokens, targets, documents = text.batch(rows, device)
        losses.append(loss_of(model(tokens, documents), targets, documents).item())
    return statistics.fmean(losses)


def train(options: argparse.Namespace, report: Callable[[str], None] = print) -> Dict[str, Any]:
    """A run, as it is written to the JSON file."""
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    model = LanguageModel(
        convolution(options.conv), layers=options.layers, features=options.features,
        heads=options.heads, attention_every=options.attention_every, chunk=options.chunk,
        dtype=DTYPES[options.dtype]).to(device)
    parameters = sum(one.numel() for one in model.parameters())
    text, validation = texts(options)
    report(f"{options.conv}: {parameters / 1e6:.2f} M parameters, {options.batch * options.length} "
           f"tokens a step, {text.rows * text.length} in the text")
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.95),
                                  weight_decay=0.1, fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, options))
    losses, watch = [], Stopwatch(device)
    watch.mark()
    for step, rows in zip(range(options.steps), text.shuffled(options.batch, options.seed)):
        tokens, targets, documents = text.batch(rows, device)
        loss = loss_of(model(tokens, documents), targets, documents)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        watch.mark()
        if (step + 1) % options.log_every == 0:
            report(f"step {step + 1}: loss {loss.item():.4f}")
    times = watch.intervals_ms()
    result = {
        "conv": options.conv, "parameters": parameters, "losses": torch.stack(losses).tolist(),
        "validation_loss": validation_loss(model, validation, options, device),
        "weights_sha256": weights_sha256(model),
        "step_ms": statistics.median(times[min(options.warmup, len(times) - 1) :]),
        "step_times_ms": times,
        "convolution_ms": convolution_ms(model, documents, options.conv_repeats),
        "convolution_shape": [options.batch * options.length, 3 * options.features],
        "text_sha256": text.sha256, **environment(device, options)}
    report(f"validation loss {result['validation_loss']:.4f}, step {result['step_ms']:.2f} ms, "
           f"weights {result['weights_sha256'][:12]}")
    return result


def environment(device: torch.device, options: argparse.Namespace) -> Dict[str, Any]:
    """Device, versions and options of a run."""
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "cuda": torch.version.cuda}
    package = PACKAGES[options.conv]
    if package not in versions:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # used without being installed
            module = __import__(options.conv)
            versions[package] = str(getattr(module, "__version__", "unknown"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    values = {key: value for key, value in vars(options).items() if key not in ("json", "conv")}
    values["data"] = None if options.data is None else options.data.name
    return {"device": name, "versions": versions, "options": values}


def arguments(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--conv", choices=sorted(CONVOLUTIONS), default="shortconv", help="the short convolution")
    add("--data", type=Path, help="a text, or JSON lines with strings")
    add("--json", type=Path, help="where to write the run")
    add("--tiny", action="store_true", help="a tiny model; other options still count")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=sorted(DTYPES), default="bf16", help="of activations")
    add("--seed", type=int, default=1)
    add("--layers", type=int, default=8)
    add("--features", type=int, default=512, help="a third of the convolution's channels")
    add("--heads", type=int, default=4)
    add("--attention-every", type=int, default=4, help="every how many layers is attention")
    add("--chunk", type=int, default=64, help="tokens of a chunk of linear attention")
    add("--batch", type=int, default=8, help="rows of a step")
    add("--length", type=int, default=2048, help="tokens of a row")
    add("--steps", type=int, default=500)
    add("--warmup", type=int, default=20, help="steps; they are not timed")
    add("--rate", type=float, default=1e-3, help="highest learning rate")
    add("--validation-batches", type=int, default=10)
    add("--conv-repeats", type=int, default=30, help="timed calls of the convolution alone")
    add("--log-every", type=int, default=50)
    if parser.parse_known_args(argv)[0].tiny:
        parser.set_defaults(**TINY)
    options = parser.parse_args(argv)
    for name, divisor in (("length", "chunk"), ("features", "heads")):
        if vars(options)[name] % vars(options)[divisor]:
            parser.error(f"--{name}: is {vars(options)[name]}; expected a multiple of --{divisor}, "
                         f"{vars(options)[divisor]}")
    return options


def main(argv: Optional[Sequence[str]] = None) -> None:
    options = arguments(argv)
    if options.tiny:
        torch.set_num_threads(1)  # its products are too small for several threads
    torch.use_deterministic_algorithms(True)
    # Otherwise each new tensor is filled first, which takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        result = train(options)
    except (ImportError, NotImplementedError, ValueError) as error:
        raise SystemExit(f"train_language_model.py: {error}") from error
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
