"""examples/train_qwen3_next.py: a tiny model learns, and its folder is what bench/engines reads."""

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors")
tokenizers = pytest.importorskip("tokenizers")

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "bench" / "engines")]

import accuracy  # noqa: E402
import train_qwen3_next as program  # noqa: E402
from train_qwen3_next import BEGIN, END, PADDING, Rows  # noqa: E402


@pytest.fixture
def problems(tmp_path):
    """Of two kinds, with new numbers in each line."""
    path = tmp_path / "problems.jsonl"
    with open(path, "w") as file:
        for n in range(13, 23):
            for question, solution in (
                (f"A box has {n} pens. How many have 8 boxes?",
                 f"They have {n}*8 = <<{n}*8={8 * n}>>{8 * n} pens.\n#### {8 * n}"),
                (f"Ann had ${n + 70} and spent ${n}. How much is left?",
                 f"She has {n + 70}-{n} = $<<{n + 70}-{n}=70>>70.\n#### 70"),
            ):
                file.write(json.dumps({"question": question, "answer": solution}) + "\n")
    return path


def run(problems, folder, *options):
    return program.main([str(problems), str(folder), "--tiny", "--device", "cpu", "--log-every",
                         "1", *options])


def test_a_tiny_model_learns_and_is_saved(problems, tmp_path):
    losses = run(problems, tmp_path / "model", "--steps", "12", "--rate", "0.01")
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.5
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    with safetensors.safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        f"model.layers.{layer}.linear_attn.A_log" for layer in range(3)}
    sets = accuracy.read_sets(str(tmp_path / "model" / "problems.json"))
    assert {name: len(one["prompts"]) for name, one in sets.items()} == {
        "word problems": 16, "sums": 8}
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    prompt = sets["word problems"]["prompts"][0]
    text = tokenizer.decode(prompt["ids"][1:])
    assert prompt["ids"][0] == BEGIN and text.startswith("Question: ") and text.endswith("Answer:")
    # The right answers are right.
    for name, solution in (("word problems", "So it is.\n#### {}"), ("sums", " {}\n1 + 1 = 2")):
        prompt = sets[name]["prompts"][0]
        tokens = tokenizer.encode(solution.format(prompt["answer"])).ids
        assert accuracy.is_right(tokens, prompt["answer"], sets[name]["pattern"], tokenizer.decode)


def test_fused_layers_train_like_their_own_code(problems, tmp_path):
    ours, own = (run(problems, tmp_path / name, "--steps", "3", *options)
                 for name, options in (("ours", ()), ("own", ("--own-code",))))
    assert ours == pytest.approx(own, rel=2e-3)  # bf16


def test_rows():
    tokenizer = program.train_tokenizer(
        [program.word_problems.Problem("Has 14 and 3.", "<<14*3=42>>42\n#### 42")], 300)
    texts = [("a 12", " b"), ("a" * 30, " b")]
    rows = Rows.of(tokenizer, texts, length=12)
    assert len(rows.tokens) == 1  # the other text is too long
    begin, end = rows.answers[0].tolist()
    ids = rows.tokens[0].tolist()
    assert ids[0] == BEGIN and ids[end - 1] == END and set(ids[end:]) == {PADDING}
    assert tokenizer.decode(ids[1:begin]) == "a 12" and tokenizer.decode(ids[begin:end - 1]) == " b"
    assert tokenizer.encode("12").tokens == ["1", "2"]
