"""Medians of repeated measurements, and how sure they are."""

from typing import Dict, List, NamedTuple, Sequence

import numpy as np

Rounds = Sequence[Sequence[float]]  # the repetitions of each round


class Ratio(NamedTuple):
    """The median of the ratios of the rounds, with its 95% confidence interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4f} ({self.low:.4f} to {self.high:.4f})"


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def ratio(ours: Rounds, theirs: Rounds, draws: int = 10000) -> Ratio:
    """How much larger values of `ours` are, from rounds in which both were measured.

    The ratio of a round is that of the medians of its repetitions, so that what changes the speed
    of the host over minutes is in both. The confidence interval is from rounds that are drawn anew
    with replacement.

    Raises:
      ValueError: the numbers of rounds differ, or there are none.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"ours: has {len(ours)} rounds, theirs has {len(theirs)}; expected the "
                         "same number, and at least one")
    ratios = np.array([median(one) / median(other) for one, other in zip(ours, theirs)])
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (draws, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Ratio(median(ratios), float(low), float(high))


class Noise(NamedTuple):
    """How values of the same kernels differ, as parts of the median.

    repetitions: the median over rounds of the largest distance within a round.
    rounds: the largest distance of the medians of rounds.
    """

    repetitions: float
    rounds: float

    def __str__(self) -> str:
        return f"{self.repetitions:.1%} in a round, {self.rounds:.1%} between rounds"


def noise(rounds: Rounds) -> Noise:
    """The spread of a variant's own values."""
    medians = [median(one) for one in rounds]
    within = [(max(one) - min(one)) / median(one) for one in rounds]
    return Noise(median(within), (max(medians) - min(medians)) / median(medians))


def summary(rounds: Dict[str, Dict[int, List[float]]]) -> Dict[str, object]:
    """Medians, ratios and noise of one workload.

    Args:
      rounds: {variant: {number of the round: repetitions}}; the variants are "vllm", "shortconv"
        and, in some of the rounds, "control", which is vllm again.
    """
    def compared(variant: str) -> Ratio:
        common = sorted(set(rounds[variant]) & set(rounds["vllm"]))
        return ratio([rounds[variant][i] for i in common], [rounds["vllm"][i] for i in common])

    theirs = list(rounds["vllm"].values())
    result: Dict[str, object] = {
        "rounds": len(theirs), "noise": noise(theirs)._asdict(),
        "median": {variant: median([one for part in of.values() for one in part])
                   for variant, of in rounds.items() if of}}
    for variant in ("shortconv", "control"):
        if rounds.get(variant):
            result[f"{variant} / vllm"] = compared(variant)._asdict()
    return result
