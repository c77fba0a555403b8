"""The training sweep beside other libraries in a given time: order of the shapes, file of results.

fla's Triton kernels are tuned once for each tuning key: channels, width, and packed or not. That
takes 32 measurements and compilations, a shape of a known key takes about a second. Shapes that
share a key therefore follow each other, the one with most tokens first: its times tell
configurations apart best. Keys come in a fixed random order in which channels, widths and packed
shapes are spread evenly, so that a sweep cut off anywhere leaves a fair sample.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple

from cases import Case

OURS = "shortconv"
SEED = 4
ALONE_SECONDS = 0.6  # of a shape without rivals, until some have been measured
NO_CALL, NO_TIME = "no call for it", "no time left"

Row = Dict[str, Any]
Key = Tuple[int, int, bool]


def tuning_key(case: Case) -> Key:
    """Channels, width, packed or not: what the autotuner of fla keeps configurations for."""
    return case.channels, case.width, len(case.lengths) > 1


def in_order(cases: Sequence[Case], seed: int = SEED) -> List[List[Case]]:
    """Lists of the cases that share a tuning key, in the order of the sweep."""
    def kinds(key: Key) -> List[Tuple[Any, ...]]:
        channels, width, packed = key
        return [("channels", channels), ("width", width), ("packed", packed),
                ("channels", channels, packed), ("width", width, packed)]

    sharing: Dict[Key, List[Case]] = {}
    for case in cases:
        sharing.setdefault(tuning_key(case), []).append(case)
    draw, seen, found = Random(seed), Counter(), []
    left = draw.sample(list(sharing), len(sharing))
    while left:
        key = min(left, key=lambda one: sum(seen[kind] for kind in kinds(one)))
        left.remove(key)
        seen.update(kinds(key))
        first = max(sharing[key], key=lambda case: sum(case.lengths))
        rest = [case for case in sharing[key] if case is not first]
        found.append([first, *draw.sample(rest, len(rest))])
    return found


class Results:
    """The rows of each shape, in a file that is replaced after each shape.

    A rival without a time has a row with "missing" (NO_CALL or NO_TIME) or "error". "pending" has
    the names of the shapes that were not reached.
    """

    def __init__(self, path: str, cases: Sequence[Case], rivals: Sequence[str],
                 about: Dict[str, Any], resume: bool = False):
        self.path, self.rivals, self.about = Path(path), list(rivals), about
        self.found: Dict[str, List[Row]] = {case.name: [] for case in cases}
        if resume and self.path.exists():
            for row in json.loads(self.path.read_text())["rows"]:
                if row["case"] in self.found:
                    self.found[row["case"]].append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write()  # fails now rather than after the first shape

    def rows(self) -> List[Row]:
        return [row for rows in self.found.values() for row in rows]

    def has_ours(self, case: Case) -> bool:
        return any(row["rival"] == OURS and "gpu_us" in row for row in self.found[case.name])

    def is_complete(self, case: Case) -> bool:
        """Whether nothing would be gained by measuring the shape beside the rivals."""
        tried = {row["rival"] for row in self.found[case.name] if row.get("missing") != NO_TIME}
        return tried.issuperset(self.rivals)

    def put(self, case: Case, rows: List[Row], beside: bool) -> None:
        """Keeps the rows of a shape and writes the file. beside: the rivals were measured too."""
        timed = {row["rival"] for row in rows}
        missing = NO_CALL if beside else NO_TIME
        self.found[case.name] = rows + [
            {"case": case.name, "rival": rival, "missing": missing}
            for rival in self.rivals if rival not in timed]
        self.write()

    def write(self) -> None:
        pending = [name for name, rows in self.found.items() if not rows]
        text = json.dumps({**self.about, "pending": pending, "rows": self.rows()}, indent=1)
        whole = self.path.with_name(self.path.name + ".part")
        whole.write_text(text)
        os.replace(whole, self.path)


def run(order: List[List[Case]], results: Results, measure: Callable[[Case, bool], List[Row]],
        deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Measures the shapes until the deadline: beside the rivals while time for this library on all
    others remains, then alone.

    measure(case, beside) returns the rows of a shape; the deadline is checked between shapes. A
    shape beside rivals is expected to take as long as the longest one before it, of those that came
    first of their tuning key or of the others.
    """
    longest, alone = {True: 0.0, False: 0.0}, []
    tuned: Set[Key] = set()
    begun = clock()
    for place, cases in enumerate(order, 1):
        before, count = clock(), 0
        for case in cases:
            begin = clock()
            if begin >= deadline:
                return
            if results.is_complete(case):
                continue
            key = tuning_key(case)
            without_ours = sum(not results.has_ours(one) for those in order for one in those)
            reserve = without_ours * (sum(alone) / len(alone) if alone else ALONE_SECONDS)
            is_first = key not in tuned
            beside = begin + longest[is_first] + reserve < deadline
            if not beside and results.has_ours(case):
                continue
            results.put(case, measure(case, beside), beside)
            taken, count = clock() - begin, count + 1
            if beside:
                longest[is_first] = max(longest[is_first], taken)
                tuned.add(key)
            else:
                alone.append(taken)
        if count:
            print(f"{place:3} of {len(order)} keys, {clock() - before:5.1f} s, "
                  f"{clock() - begun:5.1f} s in all: {cases[0].channels} channels, "
                  f"width {cases[0].width}, {count} shapes", flush=True)
