"""A small hybrid language model over bytes: gated linear attention with short convolutions, and
every few layers causal attention. Plain torch, but for the convolution, which can be chosen.

A batch is rows of bytes in which documents follow each other. Nothing passes from one document to
the next: not in the convolution, not in the state of linear attention, not in attention.

Weights are fp32, as is the sum that the layers add to; all other activations have one dtype, which
is bf16 in a run that matters. No function here sums in an order that could change from run to run.
For that reason sums along a row are products with a matrix of ones (torch.cumsum has no
deterministic kernel on a GPU), and the embedding is a product with one row of 256 for each byte.
"""

import dataclasses
import math
from typing import Callable, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256
WIDTH = 4  # of the short convolutions
END = 0  # the byte after each document, WIDTH - 1 times


@dataclasses.dataclass
class Documents:
    """Where the documents of a batch are.

    Attributes:
      bounds: [sequences + 1] i32, of the batch as packed rows [batch * length]. A row of the batch
        starts a sequence too.
      long_bounds: the same as i64, which flash-linear-attention expects.
      index: [batch, length] i32, number of the sequence of each token.
      inside: [batch, length, 1] bool, false at the END bytes.
    """

    bounds: Tensor
    long_bounds: Tensor
    index: Tensor
    inside: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> "Documents":
        """Those of [batch, length] bytes on the host."""
        inside = tokens != END
        starts = torch.ones_like(inside)
        starts[:, 1:] = inside[:, 1:] & ~inside[:, :-1]
        bounds = torch.cat([starts.flatten().nonzero()[:, 0], torch.tensor([tokens.numel()])])
        index = starts.flatten().cumsum(0).sub(1).view(tokens.shape)
        return cls(bounds.int(), bounds, index.int(), inside[..., None])

    def to(self, device: torch.device) -> "Documents":
        return Documents(*(send(getattr(self, field.name), device)
                           for field in dataclasses.fields(self)))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; the host does not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


# ---- The convolution: [batch, length, channels], [channels, WIDTH], with SiLU ----

Convolve = Callable[[Tensor, Tensor, Documents], Tensor]


def _by_torch() -> Convolve:
    def convolve(x: Tensor, weight: Tensor, documents: Documents) -> Tensor:
        # The window of a document's first tokens has the END bytes before it, which become zeros.
        # Results at END bytes differ from those of the others; nothing depends on them.
        rows = (x * documents.inside).transpose(1, 2)
        y = F.conv1d(rows, weight[:, None], padding=WIDTH - 1, groups=weight.shape[0])
        return F.silu(y[..., : x.shape[1]]).transpose(1, 2)

    return convolve


def _by_causal_conv1d() -> Convolve:
    from causal_conv1d import causal_conv1d_fn

    def convolve(x: Tensor, weight: Tensor, documents: Documents) -> Tensor:
        return causal_conv1d_fn(x.transpose(1, 2), weight, seq_idx=documents.index,
                                activation="silu").transpose(1, 2)

    return convolve


def _by_fla() -> Convolve:
    from fla.modules.convolution import causal_conv1d

    def convolve(x: Tensor, weight: Tensor, documents: Documents) -> Tensor:
        y = causal_conv1d(x.flatten(0, 1)[None], weight, activation="silu",
                          cu_seqlens=documents.long_bounds)
        return (y[0] if isinstance(y, tuple) else y).view(x.shape)

    return convolve


def _by_shortconv() -> Convolve:
    from shortconv.torch import short_conv

    def convolve(x: Tensor, weight: Tensor, documents: Documents) -> Tensor:
        return short_conv(x.flatten(0, 1), weight, activation="silu",
                          query_start_loc=documents.bounds).view(x.shape)

    return convolve


CONVOLUTIONS: Dict[str, Callable[[], Convolve]] = {
    "torch": _by_torch, "causal_conv1d": _by_causal_conv1d, "fla": _by_fla,
    "shortconv": _by_shortconv}
PACKAGES = {"torch": "torch", "causal_conv1d": "causal-conv1d", "fla": "flash-linear-attention",
            "shortconv": "shortconv"}


def convolution(name: str) -> Convolve:
    """One of CONVOLUTIONS.

    Raises:
      ImportError: its package is not installed.
    """
    try:
        return CONVOLUTIONS[name]()
    except ImportError as error:
        raise ImportError(f"--conv {name}: needs the package {PACKAGES[name]}, which cannot be "
                          f"imported here: {error}") from error


class ShortConvolution(nn.Module):
    """A depthwise convolution over the last WIDTH tokens of a document, then SiLU; no bias."""

    def __init__(self, channels: int, convolve: Convolve) -> None:
        super().__init__()
        self.convolve = convolve
        bound = 1 / math.sqrt(WIDTH)
        self.weight = nn.Parameter(torch.empty(channels, WIDTH).uniform_(-bound, bound))

    def forward(self, x: Tensor, documents: Documents) -> Tensor:
        return self.convolve(x, self.weight.to(x.dtype), documents)


# ---- Layers ----


class Linear(nn.Linear):
    """A product without bias, in the type of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=0.5 / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Norm(nn.Module):
    """RMSNorm over the last axis, in fp32, with a result of a given type."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.float()
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return (x * scale * self.weight).to(dtype)


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, index: Tensor,
                           chunk: int) -> Tensor:
    """q S, where each head has a state S = exp(log_decay) S + k v^T, of zeros before each document.

    A chunk of tokens is computed as attention inside of it, plus what the state before it adds. The
    state before a chunk is a sum over all earlier chunks, so that there is no loop over them.

    Args:
      q, k, v: [batch, length, heads, features].
      log_decay: [batch, length, heads] f32, 0 or less.
      index: [batch, length], number of the document; grows along a row.
      chunk: tokens of a chunk; divides length.
    """
    batch, length, heads, features = q.shape
    chunks, dtype, device = length // chunk, q.dtype, q.device
    # [batch, chunks, heads, chunk, features], and without features
    q, k, v = (one.view(batch, chunks, chunk, heads, features).transpose(2, 3) for one in (q, k, v))
    total = log_decay.view(batch, chunks, chunk, heads).transpose(2, 3)
    total = total @ torch.ones(chunk, chunk, device=device).triu()  # from the chunk's first token
    index = index.view(batch, chunks, 1, chunk)
    never = float("-inf")

    same = (index[..., :, None] == index[..., None, :]).tril()
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~same, never).exp()
    within = (q @ k.mT * decay.to(dtype)) @ v

    last = index[..., -1:]  # the document that a chunk's state belongs to
    decay = (total[..., -1:] - total).masked_fill(index != last, never).exp()
    states = (k * decay[..., None].to(dtype)).mT @ v

    # From the state after chunk j to the one before chunk i: the decays of the chunks between.
    i, j, m = (torch.arange(chunks, device=device).view(shape)
               for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    between = ((j < m) & (m < i)).float().view(-1, chunks)
    decay = (total[..., -1].transpose(1, 2) @ between.T).view(batch, heads, chunks, chunks)
    last = last.view(batch, 1, chunks, 1)
    before = F.pad(last[:, :, :-1], (0, 0, 1, 0), value=-1)
    same = (before == last.mT) & (j < i)[..., 0]
    decay = decay.masked_fill(~same, never).exp().to(dtype)
    states = decay @ states.transpose(1, 2).flatten(3)
    states = states.view(batch, heads, chunks, features, features).transpose(1, 2)
    decay = total.masked_fill(index != before.view(batch, chunks, 1, 1), never).exp()
    out = within + (q * decay[..., None].to(dtype)) @ states
    return out.transpose(2, 3).reshape(batch, length, heads, features)


class LinearAttention(nn.Module):
    """Gated linear attention with one decay for each head and token; its q, k and v pass a short
    convolution together."""

    def __init__(self, features: int, heads: int, chunk: int, convolve: Convolve) -> None:
        super().__init__()
        self.heads, self.chunk = heads, chunk
        self.qkv = Linear(features, 3 * features)
        self.convolution = ShortConvolution(3 * features, convolve)
        self.gate = Linear(features, features)
        self.decay = Linear(features, heads)
        # At first a state halves in 2 tokens (first head) to 512 (last head).
        halves = torch.logspace(1, 9, heads, base=2)
        self.decay_bias = nn.Parameter(torch.expm1(math.log(2) / halves).log())
        self.norm = Norm(features // heads)
        self.out = Linear(features, features)

    def forward(self, x: Tensor, documents: Documents) -> Tensor:
        q, k, v = (one.unflatten(-1, (self.heads, -1))
                   for one in self.convolution(self.qkv(x), documents).chunk(3, -1))
        log_decay = -F.softplus(self.decay(x).float() + self.decay_bias)
        k = k / math.sqrt(k.shape[-1])
        y = gated_linear_attention(q, k, v, log_decay, documents.index, self.chunk)
        return self.out(self.norm(y, x.dtype).flatten(2) * F.silu(self.gate(x)))


class Attention(nn.Module):
    """Causal attention inside of documents. Positions come from the layers before it."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(features, 3 * features)
        self.out = Linear(features, features)

    def forward(self, x: Tensor, documents: Documents) -> Tensor:
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for one in self.qkv(x).chunk(3, -1))
        index = documents.index[:, None]
        same = (index[..., :, None] == index[..., None, :]).tril()
        scores = (q / math.sqrt(q.shape[-1]) @ k.mT).masked_fill(~same, float("-inf"))
        y = scores.softmax(-1, dtype=torch.float32).to(x.dtype) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, mixer: nn.Module, features: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.norms = nn.ModuleList([Norm(features), Norm(features)])
        inner = 8 * features // 3 // 64 * 64 or 8 * features // 3  # SwiGLU's three matrices
        self.up = Linear(features, 2 * inner)
        self.down = Linear(inner, features)

    def forward(self, x: Tensor, documents: Documents, dtype: torch.dtype) -> Tensor:
        x = x + self.mixer(self.norms[0](x, dtype), documents)
        gate, value = self.up(self.norms[1](x, dtype)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class LanguageModel(nn.Module):
    """Logits of the next byte.

    Args:
      layers, features, heads: their numbers; heads divides features.
      attention_every: each layer of a number that this divides has attention.
      chunk: tokens of a chunk of linear attention.
      dtype: of the activations.
    """

    def __init__(self, convolve: Convolve, *, layers: int, features: int, heads: int,
                 attention_every: int, chunk: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding = nn.Parameter(torch.randn(BYTES, features))
        self.layers = nn.ModuleList(
            Layer(Attention(features, heads) if number % attention_every == 0
                  else LinearAttention(features, heads, chunk, convolve), features)
            for number in range(1, layers + 1))
        self.norm = Norm(features)
        self.head = Linear(features, BYTES)

    def forward(self, tokens: Tensor, documents: Documents) -> Tensor:
        x = (one_hot(tokens, self.dtype) @ self.embedding.to(self.dtype)).float()
        for layer in self.layers:
            x = layer(x, documents, self.dtype)
        return self.head(self.norm(x, self.dtype)).float()

    def first_convolution(self) -> Optional[ShortConvolution]:
        return next((one for one in self.modules() if isinstance(one, ShortConvolution)), None)


def one_hot(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return (tokens[..., None] == torch.arange(BYTES, device=tokens.device)).to(dtype)


def loss_of(logits: Tensor, targets: Tensor, documents: Documents) -> Tensor:
    """Mean of -log p in nats; END bytes predict nothing."""
    losses = -(logits.log_softmax(-1) * one_hot(targets, logits.dtype)).sum(-1)
    inside = documents.inside[..., 0]
    return (losses * inside).sum() / inside.sum()
