"""examples/word_problems.py: problems with new numbers are problems, and a seed determines them."""

import json
import random
import sys
from fractions import Fraction
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import word_problems  # noqa: E402
from word_problems import Problem, evaluate, parse  # noqa: E402

FENCE = ("A fence needs 14 posts and 3 boards for each post. A board costs $4. What do 14 posts' "
         "boards cost?",
         "It needs 14*3 = <<14*3=42>>42 boards.\nThey cost 42*4 = $<<42*4=168>>168.\n#### 168")


def test_steps_are_computed_again():
    problem = Problem(*FENCE)
    assert problem.free == [3, 4, 14]
    numbers, seen = random.Random(1), set()
    for _ in range(200):
        try:
            question, solution, answer = problem.vary(numbers)
        except ValueError:
            continue
        posts, boards, cost = (int(part) for part in (
            question.split()[3], question.split()[6], question.split("$")[1].split(".")[0]))
        assert question.count(f"{posts} posts") == 2
        assert int(answer) == posts * boards * cost
        assert solution == (f"It needs {posts}*{boards} = {posts * boards} boards.\n"
                            f"They cost {posts * boards}*{cost} = ${answer}.\n#### {answer}")
        seen.add((posts, boards, cost))
    assert len(seen) > 100


@pytest.mark.parametrize("question, solution, reason", [
    ("Has 14.", "#### 14", "there are no steps"),
    ("Has 14 and 3.", "<<14*3=43>>43\n#### 43", "a step is wrong"),
    ("Has 14 and 3.", "<<14*3=42>>42\n#### 41", "the last step is not the answer"),
    ("Has 12 and 2.", "<<12*2=24>>24\n#### 24", "no number can be changed"),
    ("Has 14 and four.", "<<14*4=56>>56\n<<56/56=1>>1\n<<1*56=56>>56\n#### 56",
     "56: has two meanings"),
    ("Has 14.", "<<14=14>>14\n#### 14", "14: has two meanings"),
    ("Has 14.", "<<abs(14)=14>>14\n#### 14", "is not arithmetic"),
    ("Has 14.", "<<14+=14>>14\n#### 14", "invalid syntax"),
])
def test_other_problems_are_refused(question, solution, reason):
    with pytest.raises(ValueError, match=reason):
        Problem(question, solution)


def test_numbers_in_words_stay():
    question = "Four boxes hold 4 pens and 9 pencils each."
    assert Problem(question, "<<4+9=13>>13\n#### 13").free == [9]


def test_values():
    values = {Fraction(3): Fraction(5)}
    assert evaluate(parse("(3 + 1,000) x 2 / 4"), {}) == Fraction(1003, 2)
    assert evaluate(parse("-3 + 3*3"), values) == 20
    assert word_problems.text_of(Fraction(5, 2)) == "2.5"
    with pytest.raises(ValueError, match="more than four decimals"):
        word_problems.text_of(Fraction(1, 3))
    with pytest.raises(ZeroDivisionError):
        evaluate(parse("1/(3-3)"), {})
    assert word_problems.replace_numbers("3 of 33, 3.5 and 3's, a3", values) == (
        "5 of 33, 3.5 and 5's, a3")


def test_files_and_seeds(tmp_path):
    path = tmp_path / "problems.jsonl"
    rows = [FENCE, ("Has 2.", "#### 2")]
    path.write_text("\n".join(
        json.dumps({"question": question, "answer": answer}) for question, answer in rows))
    problems = word_problems.read_problems(path)
    assert [one.question for one in problems] == [FENCE[0]]
    first = word_problems.variants(problems, 3, 40)
    assert len(first) == 40 and first == word_problems.variants(problems, 3, 40)
    excluded = frozenset(one.question for one in first)
    others = word_problems.variants(problems, 3, 40, excluded)
    assert len(others) == 40 and excluded.isdisjoint(one.question for one in others)
    path.write_text(json.dumps({"question": "Has 2.", "answer": "#### 2"}))
    with pytest.raises(ValueError, match="has no problems whose numbers can be changed"):
        word_problems.read_problems(path)


def test_sums():
    found = word_problems.sums(1, 300)
    assert found == word_problems.sums(1, 300)
    for question, solution, answer in found:
        assert evaluate(parse(question), {}) == int(answer) and solution == answer
    assert {question.split()[1] for question, _, _ in found} == {"+", "-", "*", "/"}
