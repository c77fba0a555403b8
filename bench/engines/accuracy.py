#!/usr/bin/env python3
"""Greedy answers of a model in vLLM with its own kernels and with ours: are they the same, are they
right?

    bench/engines/accuracy.py FOLDER RESULTS.json PROMPTS.json [--tokenizer tokenizer.json]
                              [--dtype float32] [--seqs 256] [--control-seqs 48]

Three runs in one process: vLLM's kernels; ours; and the control, vLLM's kernels with at most
--control-seqs requests at a time. Batches of another size change the rounding of matrix products,
and with it tokens whose probabilities are nearly equal: what the control changes as well, the
convolution is not needed to explain. In f32 such tokens are rare.

PROMPTS.json:
  {"sets": {NAME: {"max_tokens": 220,       tokens of an answer
                   "stop": [2],             ids of tokens that end it
                   "pattern": "#### (.+)",  where the answer is in the text; optional
                   "prompts": [{"ids": [1, 17, 4], "answer": "42"}, ...]}}}
An answer that is a text is right if the pattern's first group in the decoded tokens is the same
text, or the same number; without a pattern, the text has to begin with it. This needs --tokenizer.
An answer that is a list of ids is right if the tokens begin with it.
"""

import argparse
import json
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import engine

Decoder = Optional[Callable[[List[int]], str]]


def read_sets(path: str) -> Dict[str, Any]:
    """Reads the file of prompts.

    Raises:
      ValueError: it does not have the form above.
    """
    with open(path) as file:
        content = json.load(file)
    sets = content.get("sets") if isinstance(content, dict) else None
    if not isinstance(sets, dict) or not sets:
        raise ValueError(f"{path}: has no sets; expected {{\"sets\": {{NAME: ...}}}}")
    for name, one in sets.items():
        for number, prompt in enumerate(one.get("prompts", [])):
            ids = prompt.get("ids")
            if not ids or not all(isinstance(token, int) for token in ids):
                raise ValueError(f"{path}: ids of prompt {number} of {name} are {ids!r}; expected "
                                 "token ids")
            if not isinstance(prompt.get("answer"), (str, list)):
                raise ValueError(f"{path}: answer of prompt {number} of {name} is "
                                 f"{prompt.get('answer')!r}; expected a text or a list of ids")
        if not one.get("prompts"):
            raise ValueError(f"{path}: {name} has no prompts")
        if not isinstance(one.get("max_tokens"), int):
            raise ValueError(f"{path}: max_tokens of {name} is {one.get('max_tokens')!r}; expected "
                             "an integer")
    return sets


def _number(text: str) -> Union[float, str]:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def is_right(tokens: List[int], answer: Union[str, List[int]], pattern: Optional[str],
             decode: Decoder) -> bool:
    """Whether the tokens are the answer, as described above."""
    if isinstance(answer, list):
        return tokens[: len(answer)] == answer
    assert decode is not None
    text = decode(tokens)
    if pattern is None:
        return text.strip().startswith(answer.strip())
    found = re.search(pattern, text)
    return found is not None and _number(found.group(1).strip()) == _number(answer.strip())


def compare(answers: Dict[str, List[List[int]]], right: Dict[str, List[bool]]) -> Dict[str, Any]:
    """How the answers of "shortconv" and of "control" differ from those of "vllm".

    Returns:
      Counts, and the prompts whose answers differ: with the first token that does, and whether the
      control's answer differs as well.
    """
    def differing(variant: str) -> List[int]:
        return [i for i, (one, other) in enumerate(zip(answers[variant], answers["vllm"]))
                if one != other]

    def first_of(i: int) -> int:
        one, other = answers["shortconv"][i], answers["vllm"][i]
        same = (a == b for a, b in zip(one, other))
        return next((at for at, equal in enumerate(same) if not equal), min(len(one), len(other)))

    in_control = differing("control")
    differences = [{"prompt": i, "token": first_of(i), "control_differs": i in set(in_control)}
                   for i in differing("shortconv")]
    return {
        "prompts": len(answers["vllm"]),
        "right": {variant: sum(of) for variant, of in right.items()},
        "identical": len(answers["vllm"]) - len(differences),
        "identical_in_control": len(answers["vllm"]) - len(in_control),
        "differing_in_control_too": sum(one["control_differs"] for one in differences),
        "right_with_vllm_only": sum(a and not b for a, b in zip(right["vllm"], right["shortconv"])),
        "right_with_shortconv_only": sum(
            b and not a for a, b in zip(right["vllm"], right["shortconv"])),
        "differences": differences}


def answers_of(running: engine.Engine, one: Dict[str, Any], at_a_time: int) -> List[List[int]]:
    """The answers to a set, at most so many requests at a time."""
    prompts: Sequence[List[int]] = [prompt["ids"] for prompt in one["prompts"]]
    answers: List[List[int]] = []
    for begin in range(0, len(prompts), at_a_time):
        answers += running.generate(prompts[begin: begin + at_a_time], one["max_tokens"],
                                    one.get("stop", ()))
    return answers


def print_comparison(name: str, one: Dict[str, Any]) -> None:
    count = one["prompts"]
    print(f"\n{name}: {count} prompts")
    for variant, right in one["right"].items():
        print(f"  {variant:<10} {right} right, {right / count:.2%}")
    print(f"  same tokens as vllm: shortconv {one['identical']}, control "
          f"{one['identical_in_control']}")
    print(f"  of {len(one['differences'])} that differ with shortconv, the control differs in "
          f"{one['differing_in_control_too']}; right with vllm only {one['right_with_vllm_only']}, "
          f"with shortconv only {one['right_with_shortconv_only']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    engine.add_arguments(parser)
    parser.add_argument("prompts", help="file with prompts and answers")
    parser.add_argument("--tokenizer", help="tokenizer.json, for answers that are texts")
    parser.add_argument("--seqs", type=int, default=256, help="requests at a time")
    parser.add_argument("--control-seqs", type=int, default=48)
    parser.set_defaults(weights="folder")
    options = parser.parse_args()
    try:
        sets = read_sets(options.prompts)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    decode: Decoder = None
    if options.tokenizer:
        from tokenizers import Tokenizer
        decode = Tokenizer.from_file(options.tokenizer).decode
    elif any(isinstance(prompt["answer"], str) for one in sets.values()
             for prompt in one["prompts"]):
        parser.error("--tokenizer: is not given, but answers are texts")
    running = engine.Engine(options, [options.seqs])
    answers: Dict[str, Dict[str, List[List[int]]]] = {name: {} for name in sets}
    for variant in ("vllm", "shortconv", "control"):
        running.switch(variant)
        limit = options.control_seqs if variant == "control" else 1 << 30
        for name, one in sets.items():
            answers[name][variant] = answers_of(running, one, limit)
            print(f"{variant} {name}: {sum(map(len, answers[name][variant]))} tokens", flush=True)
    comparisons = {}
    for name, one in sets.items():
        right = {variant: [is_right(tokens, prompt["answer"], one.get("pattern"), decode)
                           for tokens, prompt in zip(of, one["prompts"])]
                 for variant, of in answers[name].items()}
        comparisons[name] = compare(answers[name], right)
        print_comparison(name, comparisons[name])
    with open(options.json, "w") as file:
        json.dump({"about": running.about(), "comparisons": comparisons, "answers": answers}, file)


if __name__ == "__main__":
    main()
