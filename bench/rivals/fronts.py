"""The measured fronts of gated delta nets: from the projection to q, k (both normalized), v, g and
beta, which the chunk kernels read."""

from dataclasses import dataclass
from random import Random
from typing import Any, List, Optional, Sequence

import torch
from cases import WIDTH, skewed


@dataclass
class FrontCase:
    """Layers with key_heads and value_heads of head_dim channels. z stays in the projection."""

    name: str
    lengths: List[int]
    key_heads: int = 16
    value_heads: int = 32
    head_dim: int = 128
    is_interleaved: bool = False
    decode: bool = False

    @property
    def channels(self) -> int:
        return (2 * self.key_heads + self.value_heads) * self.head_dim

    @property
    def moved_bytes(self) -> int:
        """Bytes of the channels read and written, of a, b, g and beta, and of the states."""
        states = len(self.lengths) * (WIDTH - 1) * self.channels * 2
        token = 2 * self.channels * 2 + 2 * self.value_heads * (2 + 4)
        return sum(self.lengths) * token + states + states // 2


def _qwen(name: str, lengths: List[int], is_interleaved: bool, parts: int = 1) -> FrontCase:
    layout = "interleaved" if is_interleaved else "flat"
    heads = {} if parts == 1 else {"key_heads": 16 // parts, "value_heads": 32 // parts}
    return FrontCase(f"{name}, {layout}{'' if parts == 1 else f', TP {parts}'}", lengths,
                     is_interleaved=is_interleaved, **heads)


FRONTS = [_qwen(name, lengths, is_interleaved, parts)
          for name, lengths in (("8192 in 1", [8192]), ("8192 in 64", [128] * 64),
                                ("4096 and 136 short", skewed()), ("2048 in 8", [256] * 8),
                                ("1024 in 1", [1024]))
          for is_interleaved in (True, False) for parts in (1, 4)]
TINY_FRONTS = [FrontCase("5 in 2", [2, 3], 2, 4, 16, is_interleaved)
               for is_interleaved in (True, False)]


def front_sweep() -> List[FrontCase]:
    """216 shapes that the library was not tuned for."""
    draw = Random(2)
    batches = {
        "1": [1], "17": [17], "300": [300], "1000": [1000], "8192": [8192],
        "7 of 100": [100] * 7, "64 of 32": [32] * 64, "256 of 1 to 17":
        [draw.randint(1, 17) for _ in range(256)], "one and 136 short": skewed(),
    }
    cases = [FrontCase(
        f"{name}; {keys} and {keys * ratio} heads of {head_dim}, "
        f"{'interleaved' if is_interleaved else 'flat'}", lengths, keys, keys * ratio, head_dim,
        is_interleaved)
        for name, lengths in batches.items() for keys in (2, 4, 8, 16)
        for ratio in (1, 2, 3, 4, 8) for head_dim in (64, 128, 256)
        for is_interleaved in (False, True) if (2 + ratio) * keys * head_dim <= 24576]
    return draw.sample(cases, 216)


class FrontBuffers:
    """One set of bf16 tensors of a case, with index tensors as in serving engines."""

    def __init__(self, case: FrontCase, device: str):
        from shortconv import models

        tokens, sequences = sum(case.lengths), len(case.lengths)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=device).bfloat16()

        self.case = case
        layout = "interleaved" if case.is_interleaved else "flat"

        def front(round_beta: bool) -> Any:
            return models.gated_delta_net(
                num_k_heads=case.key_heads, num_v_heads=case.value_heads,
                head_k_dim=case.head_dim, head_v_dim=case.head_dim, layout=layout, copy_z=False,
                round_beta=round_beta)

        self.front, self.front_with_rounded_beta = front(False), front(True)
        self.qkvz = random(tokens, self.front.columns)
        self.ba = random(tokens, 2 * case.value_heads)
        self.weight = random(case.channels, WIDTH)
        self.bias: Optional[torch.Tensor] = None
        self.a_log = torch.rand(case.value_heads, device=device)
        self.dt_bias = random(case.value_heads)
        self.state = random(2 * sequences + 1, WIDTH - 1, case.channels)
        self.bounds = torch.tensor([0, *case.lengths]).cumsum(0).int().to(device)
        self.slots = 1 + torch.randperm(2 * sequences)[:sequences].int().to(device)
        self.resumed = (torch.arange(sequences) % 2 == 0).to(device)
        sizes = [(case.key_heads, case.head_dim)] * 2 + [(case.value_heads, case.head_dim)]
        self.outs = [self.qkvz.new_empty(tokens, *size) for size in sizes]
        self.g, self.beta = (torch.empty(tokens, case.value_heads, device=device)
                             for _ in range(2))

    @property
    def x(self) -> torch.Tensor:
        """The channels of the convolution in the flat layout."""
        return self.qkvz[:, : self.case.channels]

    def split(self, out: torch.Tensor) -> Sequence[torch.Tensor]:
        """q, k and v of the convolution's results [tokens, channels]."""
        keys = self.case.key_heads * self.case.head_dim
        parts = out.split([keys, keys, out.shape[1] - 2 * keys], -1)
        return [part.unflatten(-1, (-1, self.case.head_dim)) for part in parts]


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str:
    """How q, k, v, g and beta of two fronts differ: the share of q, k and v that is not equal, by
    how many bf16 at most, and the largest difference of g and beta, relative to 1 and more."""
    def ordered(one: torch.Tensor) -> torch.Tensor:
        bits = one.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    unequal = most = count = 0
    for one, other in zip(found[:3], expected[:3]):
        distance = (ordered(one.reshape(-1)) - ordered(other.reshape(-1))).abs()
        unequal += int((distance > 0).sum())
        most = max(most, int(distance.max()))
        count += distance.numel()
    gates = max(float(((one.float().reshape(-1) - other.reshape(-1)).abs()
                       / other.reshape(-1).abs().clamp(min=1)).max())
                for one, other in zip(found[3:], expected[3:]))
    return f"{unequal / count:.1e} of q, k, v differ, by {most} bf16; gates {gates:.1e}"
