"""Trains a small Qwen3-Next on word problems with new numbers, for the programs of bench/engines.

  python examples/train_qwen3_next.py gsm8k_train.jsonl model --steps 3000

The model is that of transformers. Between the projections and the delta rule its layers are fused
by shortconv.compat.transformers.fuse, forward and backward. transformers takes the delta rule
itself from flash-linear-attention where that is installed, and computes it in torch otherwise.

The folder gets config.json and weights in bf16, the tokenizer, and problems.json: problems that
were not in the training, in the form that bench/engines/accuracy.py reads. The seed determines
problems, weights at the start and batches. --tiny trains a tiny model, on a CPU in seconds.
"""

import argparse
import concurrent.futures
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import transformers
import word_problems
from shortconv.compat.transformers import fuse, unfuse
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from word_problems import Example, Problem

PADDING, BEGIN, END = range(3)  # ids of the special tokens
TINY = {"layers": 4, "features": 64, "steps": 10, "batch": 4, "examples": 400, "vocabulary": 400,
        "held_out": 16, "sums": 8, "warmup": 2, "log_every": 5}

# ---- Text ----


def texts_of(example: Example) -> Tuple[str, str]:
    """Prompt and answer of a word problem."""
    return f"Question: {example.question}\nAnswer:", f" {example.solution}"


def texts_of_sums(examples: Sequence[Example]) -> Tuple[str, str]:
    """The first is the prompt; the others follow in the answer, one a line."""
    lines = [f"{one.question} = {one.answer}" for one in examples]
    prompt, _, rest = "\n".join(lines).partition(" =")
    return f"{prompt} =", rest


def train_tokenizer(problems: Sequence[Problem], vocabulary: int) -> Tokenizer:
    """Byte pairs; each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<padding>", "<begin>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(
        (text for one in problems for text in (one.question, one.solution)), trainer)
    return tokenizer


class Rows:
    """Texts as rows of tokens, one a row, padded at the end.

    Attributes:
      tokens: [rows, length + 1] i16.
      answers: [rows, 2] i16, where the answer begins and where the text ends.
    """

    def __init__(self, tokens: Tensor, answers: Tensor) -> None:
        self.tokens, self.answers = tokens, answers

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: Sequence[Tuple[str, str]], length: int) -> "Rows":
        """Texts that are too long are left out."""
        prompts = [one.ids for one in tokenizer.encode_batch([prompt for prompt, _ in texts])]
        answers = [one.ids for one in tokenizer.encode_batch([answer for _, answer in texts])]
        pairs = [(prompt, answer) for prompt, answer in zip(prompts, answers)
                 if len(prompt) + len(answer) + 2 <= length + 1]
        tokens = torch.full((len(pairs), length + 1), PADDING, dtype=torch.int16)
        ends = torch.empty(len(pairs), 2, dtype=torch.int16)
        for row, (prompt, answer) in enumerate(pairs):
            ids = [BEGIN, *prompt, *answer, END]
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int16)
            ends[row] = torch.tensor([1 + len(prompt), len(ids)], dtype=torch.int16)
        return cls(tokens, ends)


def _training_rows(arguments: Tuple[List[Problem], str, int, int, int, frozenset]) -> Rows:
    """In a process of its own: problems, and a text of sums for every ten of them."""
    problems, tokenizer, seed, count, length, excluded = arguments
    found = word_problems.variants(problems, seed, count, excluded)
    sums = [one for one in word_problems.sums(seed, 2 * count)
            if one.question not in excluded]
    texts = [texts_of(one) for one in found]
    texts += [texts_of_sums(sums[first : first + 12]) for first in range(0, count, 10)]
    return Rows.of(Tokenizer.from_str(tokenizer), texts, length)


def training_rows(problems: List[Problem], tokenizer: Tokenizer, excluded: frozenset,
                  options: argparse.Namespace) -> Rows:
    """The rows of a training, in the order of their seeds. Spread over processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    part = 5000
    parts = [(problems, tokenizer.to_str(), 1000 * options.seed + number + 2, part, options.length,
              excluded) for number in range(math.ceil(options.examples / part))]
    if len(parts) == 1:
        found = [_training_rows((*parts[0][:3], options.examples, *parts[0][4:]))]
    else:
        with concurrent.futures.ProcessPoolExecutor(options.workers) as pool:
            found = list(pool.map(_training_rows, parts))
    return Rows(torch.cat([one.tokens for one in found]),
                torch.cat([one.answers for one in found]))


def problems_file(held_out: Sequence[Example], sums: Sequence[Example],
                  tokenizer: Tokenizer) -> Dict[str, Any]:
    def prompts(texts: Sequence[str], examples: Sequence[Example]) -> List[Dict[str, Any]]:
        return [{"ids": [BEGIN, *tokenizer.encode(text).ids], "answer": one.answer}
                for text, one in zip(texts, examples)]

    return {"sets": {
        "word problems": {
            "max_tokens": 220, "stop": [END], "pattern": r"#### \$?(-?[\d,]*\.?\d+)",
            "prompts": prompts([texts_of(one)[0] for one in held_out], held_out)},
        "sums": {"max_tokens": 8, "stop": [END], "pattern": r"^\s*(-?\d+)",
                 "prompts": prompts([f"{one.question} =" for one in sums], sums)}}}


# ---- Model ----


def config_of(options: argparse.Namespace, vocabulary: int) -> transformers.Qwen3NextConfig:
    """Three of four layers are gated delta nets. The last layer has experts, all of them active,
    because engines expect such a layer in the model."""
    features, layers = options.features, options.layers
    return transformers.Qwen3NextConfig(
        vocab_size=vocabulary, hidden_size=features, num_hidden_layers=layers,
        intermediate_size=features * 5 // 2, num_attention_heads=features // 64,
        num_key_value_heads=max(features // 256, 1), head_dim=64,
        linear_num_key_heads=max(features // 128, 1), linear_num_value_heads=features // 64,
        linear_key_head_dim=64, linear_value_head_dim=64, linear_conv_kernel_dim=4,
        num_experts=2, num_experts_per_tok=2, moe_intermediate_size=features // 2,
        shared_expert_intermediate_size=features, decoder_sparse_step=1,
        mlp_only_layers=list(range(layers - 1)), max_position_embeddings=2048,
        tie_word_embeddings=False, bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PADDING,
        use_cache=False)


def loss_of(model: torch.nn.Module, tokens: Tensor, answers: Tensor,
            prompt_weight: float) -> Tensor:
    """Cross entropy of the next tokens; those of prompts count less, padding does not.

    Args:
      tokens: [rows, length + 1].
      answers: [rows, 2], as Rows has them.
    """
    logits = model(input_ids=tokens[:, :-1]).logits
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    place = torch.arange(1, tokens.shape[1], device=tokens.device)
    weights = (place >= answers[:, :1]) + prompt_weight * (place < answers[:, :1])
    weights = (weights * (place < answers[:, 1:])).flatten()
    return (each * weights).sum() / weights.sum()


def rate_at(step: int, options: argparse.Namespace) -> float:
    """As a share of --rate: a linear warm-up, then down to a twentieth in a line."""
    return min(1.0, (step + 1) / options.warmup) * (1 - 0.95 * step / options.steps)


def train(model: torch.nn.Module, rows: Rows, options: argparse.Namespace) -> List[float]:
    """The losses, one in options.log_every steps."""
    device = torch.device(options.device)
    # Weights of experts, taps, norms and gates do not decay.
    matrices = [one for one in model.parameters() if one.dim() == 2]
    others = [one for one in model.parameters() if one.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=options.rate, betas=(0.9, 0.95), fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, options))
    step_loss = torch.compile(loss_of, dynamic=False) if options.compile else loss_of
    order = torch.Generator().manual_seed(options.seed)
    losses, begin = [], time.perf_counter()
    for step in range(options.steps):
        picked = torch.randint(len(rows.tokens), (options.batch,), generator=order)
        tokens, answers = rows.tokens[picked].to(device).long(), rows.answers[picked].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = step_loss(model, tokens, answers, 0.25)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % options.log_every == 0 or step == 0:
            losses.append(loss.item())
            seconds = time.perf_counter() - begin
            print(f"step {step + 1}: loss {losses[-1]:.4f}, {seconds:.0f} s, "
                  f"{(step + 1) * options.batch * options.length / seconds:.0f} tokens/s",
                  flush=True)
    return losses


def save(model: torch.nn.Module, folder: Path) -> None:
    """Weights in bf16, but A_log, which the delta rule takes the exponential of."""
    for name, one in model.named_parameters():
        one.data = one.data if name.endswith("A_log") else one.data.bfloat16()
    model.config.dtype = torch.bfloat16
    model.config.use_cache = True
    model.save_pretrained(folder)


# ---- Program ----


def arguments(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("problems", type=Path, help="JSON lines, as GSM8K's training problems")
    add("folder", type=Path, help="for the model")
    add("--tiny", action="store_true", help="a tiny model; other options still count")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--compile", action="store_true", help="with torch.compile")
    add("--own-code", action="store_true", help="layers are not fused, for comparison")
    add("--seed", type=int, default=1)
    add("--layers", type=int, default=8)
    add("--features", type=int, default=512)
    add("--vocabulary", type=int, default=4096)
    add("--examples", type=int, default=600_000, help="problems with new numbers to train on")
    add("--held-out", type=int, default=1319, help="other problems with new numbers, for tests")
    add("--sums", type=int, default=1000, help="sums for tests")
    add("--length", type=int, default=256, help="tokens of a row")
    add("--batch", type=int, default=256, help="rows of a step")
    add("--steps", type=int, default=3000)
    add("--warmup", type=int, default=200, help="steps")
    add("--rate", type=float, default=1e-3, help="highest learning rate")
    add("--workers", type=int, default=os.cpu_count(), help="processes that make problems")
    add("--log-every", type=int, default=100)
    if parser.parse_known_args(argv)[0].tiny:
        parser.set_defaults(**TINY)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> List[float]:
    options = arguments(argv)
    begin = time.perf_counter()
    problems = word_problems.read_problems(options.problems)
    held_out = word_problems.variants(problems, 2 * options.seed, options.held_out)
    sums = word_problems.sums(2 * options.seed, options.sums)
    tokenizer = train_tokenizer(problems, options.vocabulary)
    excluded = frozenset(one.question for one in (*held_out, *sums))
    rows = training_rows(problems, tokenizer, excluded, options)
    print(f"{len(problems)} problems, {len(rows.tokens)} rows, tokenizer of "
          f"{tokenizer.get_vocab_size()}, {time.perf_counter() - begin:.0f} s", flush=True)
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    # Other implementations of experts compute in the dtype of the weights, which autocast does not
    # change.
    model = transformers.AutoModelForCausalLM.from_config(
        config_of(options, tokenizer.get_vocab_size()), experts_implementation="eager")
    model = model.to(options.device).train()
    fused = 0 if options.own_code else fuse(model)
    parameters = sum(one.numel() for one in model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {fused} layers fused", flush=True)
    losses = train(model, rows, options)
    unfuse(model)
    options.folder.mkdir(parents=True, exist_ok=True)
    save(model, options.folder)
    tokenizer.save(str(options.folder / "tokenizer.json"))
    with open(options.folder / "problems.json", "w") as file:
        json.dump(problems_file(held_out, sums, tokenizer), file)
    print(f"saved after {time.perf_counter() - begin:.0f} s", flush=True)
    return losses


if __name__ == "__main__":
    main()
