"""The measured cases: calls of one layer, and the buffers that all rivals use."""

from dataclasses import dataclass
from random import Random
from typing import List, Optional, Sequence

import torch

WIDTH = 4


@dataclass
class Case:
    """A prefill of sequences with these lengths, or a decode call if all lengths are 1."""

    name: str
    lengths: List[int]
    channels: int
    width: int = WIDTH
    prefills_tokens: bool = False  # a prefill even if all lengths are 1
    window_innermost: bool = False  # states [channels, columns] instead of [columns, channels]
    pool: Optional[int] = None  # slots; twice the sequences if not given

    @property
    def decode(self) -> bool:
        return max(self.lengths) == 1 and not self.prefills_tokens

    @property
    def moved_bytes(self) -> int:
        """Bytes of x and y, and of the states read (half of them in a prefill) and written."""
        element, states = 2, len(self.lengths) * (self.width - 1)
        read = states if self.decode else states // 2
        return (2 * sum(self.lengths) + read + states) * self.channels * element

    @property
    def trained_bytes(self) -> int:
        """Bytes of x and y of a forward pass; of x and both gradients of a backward pass."""
        return 5 * sum(self.lengths) * self.channels * 2


def skewed() -> List[int]:
    """One sequence of 4096 tokens and 136 short ones; 8192 tokens in total."""
    short = [1 + (7 * index) % 60 for index in range(136)]
    short[-1] += 4096 - sum(short)
    return [4096, *short]


PREFILL = [
    Case("8192 x 8192, 1", [8192], 8192),
    Case("8192 x 8192, 8 x 1024", [1024] * 8, 8192),
    Case("8192 x 8192, 64 x 128", [128] * 64, 8192),
    Case("8192 x 8192, 256 x 32", [32] * 256, 8192),
    Case("8192 x 8192, skewed", skewed(), 8192),
    Case("8192 x 2048, 1", [8192], 2048),
    Case("8192 x 2048, 64 x 128", [128] * 64, 2048),
    Case("1024 x 8192, 1", [1024], 8192),
    Case("256 x 8192, 64 x 4", [4] * 64, 8192),
    Case("64 x 8192, 16 x 4", [4] * 16, 8192),
    Case("4096 x 4096, 1", [4096], 4096),
]
DECODE = [Case(f"decode {batch} x {channels}", [1] * batch, channels)
          for batch, channels in ((1, 8192), (32, 8192), (64, 8192), (128, 8192), (256, 8192),
                                  (512, 8192), (256, 2048), (512, 2048))]
TRAINING = [*PREFILL[:7], Case("32768 x 4096, 1", [32768], 4096), PREFILL[7], PREFILL[10],
            Case("1319 x 2048, 5", [200, 511, 3, 604, 1], 2048)]


def training_sweep() -> List[Case]:
    """Training of shapes that the library was not tuned for: 9 batches x 8 numbers of channels x 3
    widths."""
    draw = Random(1)
    batches = {
        "512": [512],
        "4096": [4096],
        "16384": [16384],
        "16 of 1 to 17": [draw.randint(1, 17) for _ in range(16)],
        "1000 of 1 to 17": [draw.randint(1, 17) for _ in range(1000)],
        "64 of 100": [100] * 64,
        "7 of 1000": [1000] * 7,
        "one and 136 short": skewed(),
        "3000 and 300 of 1 to 17": [3000, *[draw.randint(1, 17) for _ in range(300)]],
    }
    return [Case(f"{name}; {channels} channels, width {width}", lengths, channels, width)
            for name, lengths in batches.items()
            for channels in (512, 1024, 2048, 3072, 4096, 5120, 8192, 12288)
            for width in (2, 3, 4)]


CHANNELS = (1024, 2048, 3072, 4096, 5120, 8192, 12288)
POOL = 1024


def _shapes(batches: Sequence[str], width: int = WIDTH, window_innermost: bool = False,
            ) -> List[Case]:
    """These batches with all numbers of channels. All have a pool of one size, as in a server:
    Triton compiles a kernel for each size."""
    draw = Random(3)
    lengths = {
        "512": [512], "4096": [4096], "16384": [16384], "one and 136 short": skewed(),
        "1000 of 1 to 17": [draw.randint(1, 17) for _ in range(1000)],
    }

    def of(name: str) -> List[int]:
        if name in lengths:
            return lengths[name]
        count, length = name.removeprefix("decode ").split(" of ")
        return [int(length)] * int(count)

    layout = ", window innermost" if window_innermost else ""
    return [Case(f"{name}; {channels} channels, width {width}{layout}", of(name), channels, width,
                 not name.startswith("decode"), window_innermost, POOL)
            for name in batches for channels in CHANNELS]


def forward_sweep() -> List[Case]:
    """Forward passes of shapes that the library was not tuned for: each batch with width 4 and the
    states' channels innermost, some of them with width 3 or the states' window innermost."""
    decode = [f"decode {count} of 1" for count in (1, 8, 32, 64, 256, 512)]
    prefill = ["512", "4096", "16384", "7 of 1000", "64 of 100", "256 of 32", "1000 of 1 to 17",
               "one and 136 short", "64 of 1", "256 of 1", "64 of 2", "256 of 2", "64 of 9",
               "128 of 9", "64 of 17", "256 of 17"]
    some = ["512", "4096", "7 of 1000", "256 of 32", "1000 of 1 to 17", "one and 136 short",
            "64 of 2", "256 of 17"]
    return [*_shapes(prefill + decode), *_shapes(some + decode, width=3),
            *_shapes(some + ["64 of 1", "256 of 1"] + decode, window_innermost=True)]


TINY = [Case("5 x 64, 2 sequences", [2, 3], 64), Case("decode 2 x 64", [1, 1], 64)]


class Buffers:
    """One set of bf16 tensors of a case, with index tensors as in serving engines."""

    def __init__(self, case: Case, device: str):
        tokens, sequences, channels = sum(case.lengths), len(case.lengths), case.channels

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=device).bfloat16()

        self.case = case
        self.x = random(tokens, channels)  # token-major, as projections write it
        self.out = torch.empty_like(self.x)
        self.grad_out = random(tokens, channels)
        self.weight = random(channels, case.width)
        self.bias: Optional[torch.Tensor] = None
        # [slots, columns, channels]. Slot 0 is unused: vLLM's null block.
        slots, columns = case.pool or 2 * sequences, case.width - 1
        self.state = (random(slots + 1, channels, columns).transpose(1, 2) if case.window_innermost
                      else random(slots + 1, columns, channels))
        bounds = torch.tensor([0, *case.lengths]).cumsum(0)
        self.bounds = bounds.int().to(device)
        self.slots = 1 + torch.randperm(slots)[:sequences].int().to(device)
        self.resumed = (torch.arange(sequences) % 2 == 0).to(device)
        seq_idx = torch.repeat_interleave(torch.arange(sequences), torch.tensor(case.lengths))
        self.seq_idx = seq_idx.int().to(device)[None]
