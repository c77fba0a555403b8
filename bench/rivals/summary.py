"""What the sweeps print about their rows."""

from collections import Counter
from statistics import median
from typing import Any, Dict, List

Row = Dict[str, Any]
LARGE_BYTES = 50e6
FAR_RATIO = 1.25  # of a large forward pass, against the copy
FAR_TRAINING_RATIO = 1.3


def by_case(rows: List[Row]) -> Dict[str, Dict[str, Row]]:
    """The rows with a time of each case in which this library has one, by rival."""
    found: Dict[str, Dict[str, Row]] = {}
    for row in rows:
        if row.get("gpu_us") is not None:
            found.setdefault(row["case"], {})[row["rival"]] = row
    return {case: timed for case, timed in found.items() if "shortconv" in timed}


def ratio(row: Row) -> float:
    return row["gpu_us"] / row["copy_us"]


def large_shapes_and_speedups(rows: List[Row], count: int = 12) -> List[str]:
    """The large shapes that are slowest against the copy, and the speedup over each rival."""
    ours = [timed["shortconv"] for timed in by_case(rows).values()]
    large = [row for row in ours if row["moved_bytes"] > LARGE_BYTES]
    large.sort(key=ratio, reverse=True)
    return [f"{len(ours)} shapes, {len(large)} of them large; slowest against the copy:",
            *(f"  {row['case']:<58} {row['gpu_us']:9.2f} us  x {ratio(row):.3f}"
              for row in large[:count]), *speedups(rows)]


def speedups(rows: List[Row]) -> List[str]:
    """How many times as fast as each rival this library is."""
    cases, lines = by_case(rows), []
    for name in dict.fromkeys(row["rival"] for row in rows):
        if name in ("copy", "shortconv"):
            continue
        factors = sorted((timed[name]["gpu_us"] / timed["shortconv"]["gpu_us"], case)
                         for case, timed in cases.items() if name in timed)
        if factors:
            middle = median(factor for factor, _ in factors)
            lines.append(
                f"{name}: speedup on {len(factors)} shapes: least {factors[0][0]:.2f} "
                f"({factors[0][1]}), median {middle:.2f}, most {factors[-1][0]:.2f}")
    return lines


def beside(rows: List[Row], far_ratio: float = FAR_RATIO) -> List[str]:
    """Shapes on which a rival is faster, the ratio to the copy by batch, large shapes far from it,
    and the results of the rivals."""
    cases = by_case(rows)
    lost, batches, large = [], {}, []
    for case, timed in cases.items():
        ours = timed["shortconv"]
        batches.setdefault(case.partition("; ")[0], []).append(ratio(ours))
        if ours["moved_bytes"] > LARGE_BYTES:
            large.append(ours)
        if any(row["gpu_us"] < ours["gpu_us"] for name, row in timed.items() if name != "copy"):
            times = "  ".join(f"{name} {row['gpu_us']:.2f}" for name, row in timed.items())
            lost.append(f"  {case:<58} {times} us")
    far = sorted((row for row in large if ratio(row) > far_ratio), key=ratio, reverse=True)
    lines = [f"{len(cases)} points; another library is faster on {len(lost)}:", *lost,
             "ratio to the copy, by batch:",
             *(f"  {batch:<23} {spread(ratios)}" for batch, ratios in batches.items())]
    if large:
        lines.append(f"  more than 50 MB         {spread([ratio(row) for row in large])}")
    lines += [f"{len(large)} points of more than 50 MB, {len(far)} of them above {far_ratio}:",
              *(f"  {row['case']:<58} {row['gpu_us']:9.2f} us  x {ratio(row):.3f}" for row in far)]
    return lines + speedups(rows) + differences(rows) + missing(rows)


def spread(ratios: List[float]) -> str:
    return (f"{len(ratios):3} points: least {min(ratios):.3f}, median {median(ratios):.3f}, "
            f"most {max(ratios):.3f}")


def missing(rows: List[Row]) -> List[str]:
    """How many points have no time of each rival, by reason."""
    lacking: Dict[str, Counter] = {}
    for row in rows:
        if "missing" in row:
            lacking.setdefault(row["rival"], Counter())[row["missing"]] += 1
    return [f"{name}: " + ", ".join(f"{reason} on {count} points"
                                    for reason, count in reasons.items())
            for name, reasons in lacking.items()]


def differences(rows: List[Row]) -> List[str]:
    """The largest difference of each rival's results from ours, and calls without a time."""
    lines = []
    for name in dict.fromkeys(row["rival"] for row in rows):
        found = [row for row in rows if row["rival"] == name]
        differing = [row["difference"] for row in found if row.get("difference") is not None]
        if differing:
            states = [row["states_equal"] for row in found if "states_equal" in row]
            lines.append(f"{name}: results differ from ours by {max(differing):.1e} at most"
                         + (f", states on {states.count(False)} points" if states else ""))
        failed = [row["case"] for row in found if "error" in row]
        if failed:
            lines.append(f"{name}: no time for {len(failed)} points: {', '.join(failed[:5])}")
    return lines
