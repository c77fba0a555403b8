"""Word problems with new numbers, made from problems whose answers show their steps.

A problem is a line of JSON as in GSM8K: "question", and "answer" with <<48/2=24>> at each step and
"#### 72" at the end. Some integers of the question are replaced by others, the steps are computed
again, and all numbers of question and answer that are such an integer or the result of a step
change with them. A seed determines the problems.
"""

import ast
import itertools
import json
import operator
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import AbstractSet, Callable, Dict, Iterator, List, NamedTuple, Optional, Set

NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)|(?<=[$*/+(-])\d+(?:\.\d+)?")
STEP = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
# Integers that often are something else than an amount: hours of a day, minutes, percentages.
FIXED = frozenset([0, 1, 2, 7, 10, 12, 24, 25, 30, 31, 50, 52, 60, 75, 100, 365, 1000])
# Words that a changed integer would have to change as well.
IN_WORDS = {3: ("three", "third", "triple"), 4: ("four", "quarter"), 5: ("five", "fifth"),
            6: ("six", "half a dozen"), 8: ("eight",), 9: ("nine",), 20: ("twenty", "score")}
LARGEST = 10**6
_OPERATORS: Dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

Values = Dict[Fraction, Fraction]  # old number: new number


class Example(NamedTuple):
    """A problem, its worked solution, which ends with "#### " and the answer, and the answer."""

    question: str
    solution: str
    answer: str


def number_of(text: str) -> Fraction:
    """Raises ValueError: the text is not a number."""
    return Fraction(text.strip().strip("$").replace(",", ""))


def text_of(number: Fraction) -> str:
    """With at most four decimals.

    Raises:
      ValueError: the number needs more.
    """
    if number.denominator == 1:
        return str(number.numerator)
    text = f"{float(number):.4f}".rstrip("0")
    if Fraction(text) != number:
        raise ValueError(f"{number}: has more than four decimals")
    return text


def parse(expression: str) -> ast.expr:
    """Raises ValueError: the expression has something else than numbers, + - * / and brackets."""
    try:
        text = expression.strip().replace(",", "").replace("$", "").replace("x", "*")
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"{expression}: {error}") from None
    for node in ast.walk(tree):
        is_number = isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
        if is_number:
            node.value = Fraction(str(node.value))  # type: ignore[attr-defined]
        if not (is_number or type(node) in _OPERATORS
                or isinstance(node, (ast.BinOp, ast.UnaryOp, ast.USub))):
            raise ValueError(f"{expression}: is not arithmetic")
    return tree


def numbers_in(tree: ast.expr) -> Set[Fraction]:
    return {node.value for node in ast.walk(tree)  # type: ignore[misc]
            if isinstance(node, ast.Constant)}


def evaluate(tree: ast.expr, values: Values) -> Fraction:
    """The value of an expression whose numbers are replaced by new ones.

    Raises:
      ZeroDivisionError: it divides by 0.
    """
    if isinstance(tree, ast.BinOp):
        return _OPERATORS[type(tree.op)](evaluate(tree.left, values), evaluate(tree.right, values))
    if isinstance(tree, ast.UnaryOp):
        return -evaluate(tree.operand, values)
    assert isinstance(tree, ast.Constant) and isinstance(tree.value, Fraction)
    return values.get(tree.value, tree.value)


def replace_numbers(text: str, values: Values) -> str:
    def replaced(match: "re.Match[str]") -> str:
        number = number_of(match.group())
        return text_of(values[number]) if number in values else match.group()

    return NUMBER.sub(replaced, text)


class Problem:
    """A problem whose numbers can be changed.

    Raises:
      ValueError: its steps are not arithmetic, or no number can be changed.
      ZeroDivisionError: a step divides by 0.
    """

    def __init__(self, question: str, solution: str) -> None:
        self.question, self.solution = question.strip(), solution.strip()
        self.steps = [(parse(expression), number_of(result))
                      for expression, result in STEP.findall(self.solution)]
        used: Set[Fraction] = set()
        for tree, result in self.steps:
            used |= numbers_in(tree)
            if evaluate(tree, {}) != result:
                raise ValueError("a step is wrong")
            if result in used:
                raise ValueError(f"{result}: has two meanings")
        if not self.steps:
            raise ValueError("there are no steps")
        self.answer = number_of(self.solution.rsplit("####", 1)[-1])
        if self.answer != self.steps[-1][1]:
            raise ValueError("the last step is not the answer")
        words = self.question.lower()
        self.free = sorted(
            number for number in {number_of(one) for one in NUMBER.findall(self.question)} & used
            if number.denominator == 1 and number not in FIXED
            and not any(word in words for word in IN_WORDS.get(int(number), ())))
        if not self.free:
            raise ValueError("no number can be changed")

    def vary(self, numbers: random.Random) -> Example:
        """The problem with new numbers.

        Raises:
          ValueError: they do not fit, for example because a whole result becomes a fraction.
          ZeroDivisionError: a step divides by 0.
        """
        values: Values = {}
        for old in self.free:
            unit = next(unit for unit in (100, 10, 5, 1) if old % unit == 0)
            units = numbers.randint(int(old) // (3 * unit), 2 * int(old) // unit + 3)
            values[old] = Fraction(unit * max(units, 2 if unit == 1 else 1))
        if len(set(values.values())) < len(values):
            raise ValueError("two numbers are equal")
        for tree, old in self.steps:
            new = evaluate(tree, values)
            if not 0 < new < LARGEST or (new.denominator == 1) != (old.denominator == 1):
                raise ValueError(f"{old}: becomes {new}")
            if values.setdefault(old, new) != new:
                raise ValueError(f"{old}: has two meanings")
        return Example(replace_numbers(self.question, values),
                       replace_numbers(STEP.sub("", self.solution), values),
                       text_of(values[self.answer]))


def read_problems(path: Path) -> List[Problem]:
    """The problems of a file of JSON lines that can be varied.

    Raises:
      ValueError: there are none.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        try:
            problem = Problem(row["question"], row["answer"])
            next(_variants([problem], random.Random(0), tries=20))
            found.append(problem)
        except (ValueError, ZeroDivisionError, StopIteration):
            continue
    if not found:
        raise ValueError(f"{path}: has no problems whose numbers can be changed")
    return found


def _variants(problems: List[Problem], numbers: random.Random,
              tries: Optional[int] = None) -> Iterator[Example]:
    """Endless, or from so many attempts."""
    for _ in itertools.count() if tries is None else range(tries):
        problem = numbers.choice(problems)
        try:
            yield problem.vary(numbers)
        except (ValueError, ZeroDivisionError):
            continue


def variants(problems: List[Problem], seed: int, count: int,
             excluded: AbstractSet[str] = frozenset()) -> List[Example]:
    """Problems with new numbers, none with an excluded question."""
    found: List[Example] = []
    for one in _variants(problems, random.Random(seed)):
        if len(found) == count:
            break
        if one.question not in excluded:
            found.append(one)
    return found


def sums(seed: int, count: int) -> List[Example]:
    """Sums, differences, products and quotients; the solution is the number."""
    numbers = random.Random(seed)
    found = []
    for _ in range(count):
        a, b = (numbers.randrange(1, 10 ** numbers.randint(1, 4)) for _ in "ab")
        small, factor = numbers.randint(1, 99), numbers.randint(2, 30)
        text, value = numbers.choice([
            (f"{a} + {b}", a + b), (f"{max(a, b)} - {min(a, b)}", abs(a - b)),
            (f"{small} * {factor}", small * factor), (f"{small * factor} / {factor}", small)])
        found.append(Example(text, str(value), str(value)))
    return found
