#!/usr/bin/env python3
"""Writes docs/costs.md from bench/results/h200/costs.json, which `shortconv costs` writes on a GPU.

    scripts/costs.py                     writes the page
    scripts/costs.py --check SHORTCONV   fails where the page is not what this writes, where the command would run
                                         other kernels today, and where a row exceeds its bound

Rows that exceed their bound are the page's list of known cliffs. It only shrinks: a row that no longer exceeds its bound
leaves it, and the page is not written if a row does that is not in it. To accept one all the same, add a line `| CASE |`
with its name in backticks to the table by hand. Without a page all are accepted. Exit 77 (skipped) without results.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = pathlib.Path("bench", "results", "h200", "costs.json")
PAGE = pathlib.Path("docs", "costs.md")
SKIPPED = 77

OPERATIONS = {
    "prefill": "8192 tokens of one sequence",
    "ragged": "prefill of 64 sequences of 128 tokens, of which every second is resumed",
    "decode": "one token of 256 sequences",
    "drafts": "verification of 64 chains of 4 draft tokens, with the state after each",
    "trees": "verification of 64 trees of 7 draft tokens, with the state after each",
}
TYPES = {
    "bf16": "all bf16",
    "f16": "all f16",
    "f32": "all f32",
    "bf16-w32": "bf16, weights of f32",
    "bf16-s32": "bf16, states of f32",
    "bf16-ws32": "bf16, weights and states of f32",
}
FEATURES = {
    "none": "nothing else",
    "bias": "bias",
    "gates": "both gates, no activation; x and gates are thirds of each row",
    "residual": "residual",
    "window-innermost": "states with the window innermost",
    "circular": "circular buffers (`cache_seqlens`)",
    "shift-full-state": "`shift_full_state`, one column before the history, window innermost",
    "snapshots": "a snapshot every 64 tokens, of a decode after its token",
    "window-slots": "intermediate states in slots (`intermediate_slots`)",
    "long-chains": "chains of 16 tokens",
    "seq-idx": "`seq_idx` in place of bounds, no states",
    "in-place": "in place",
    "dilation": "dilation 2",
    "checked": "checked mode",
    "pitch": "rows 1.5 times as far apart as they are long",
    "odd-pitch": "rows an odd number of elements apart",
    "odd-address": "x and out at an odd element",
    "channels-first": "channels-first rows",
}

MAIN = 1.10  # width 4 of 16 bits, as most models have it
MODEL = 1.25  # other calls that a model or an engine makes
PREFILL, DECODE = 2.5, 2.0  # all else: prefill and verification, decode
FORWARDS = ("prefill", "ragged", "decode")
# The features that README.md, docs/semantics.md and docs/switching.md name a model or an engine for, and its calls.
MODEL_FEATURES = {
    "bias": tuple(OPERATIONS),  # Mamba-2
    "residual": tuple(OPERATIONS),  # Canon
    "window-innermost": tuple(OPERATIONS),  # causal-conv1d, SGLang, vLLM
    "circular": FORWARDS,  # causal-conv1d
    "shift-full-state": ("decode",),  # flash-linear-attention
    "snapshots": FORWARDS,  # prefix caches of SGLang and vLLM
    "window-slots": ("drafts", "trees"),  # SGLang
    "seq-idx": ("prefill", "ragged"),  # causal-conv1d
    "in-place": ("decode",),  # SGLang, vLLM
    "pitch": tuple(OPERATIONS),  # columns of a projection
}


def bound(row):
    operation, width, types, feature = (row[key] for key in ("operation", "width", "types", "feature"))
    other = DECODE if operation == "decode" else PREFILL
    if feature == "none":
        if width == 4 and types in ("bf16", "f16"):
            return MAIN
        listed = width in (3, 4) or (width == 2 and "s32" not in types)  # states of f32: widths 3 and 4
        return MODEL if listed else other
    if feature == "gates":  # LFM2 and LFM3
        return MODEL if width in (3, 7) and types in ("bf16", "f16") and operation != "trees" else other
    return MODEL if types in ("bf16", "bf16-s32") and operation in MODEL_FEATURES.get(feature, ()) else other


def exceeds(row):
    return row["ratio"] > bound(row)


def known_cliffs(page):
    """The cases of the first table of a page."""
    lines = page.partition("\n## Cliffs\n")[2].partition("\n## ")[0].splitlines()
    return {line.split("`")[1] for line in lines if line.startswith("| `")}


def markdown(header, lines):
    out = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(out + ["| " + " | ".join(line) + " |" for line in lines]) + "\n"


def cell(row):
    if row is None:
        return ""
    ratio = f'{row["ratio"]:.2f}'
    return (f"**{ratio}**" if exceeds(row) else ratio) + f' {row["kernel"]}'


def cliffs(rows):
    worst = sorted(filter(exceeds, rows), key=lambda row: row["ratio"] / bound(row), reverse=True)
    return markdown(["case", "kernel", "us", "ratio", "bound"],
                    [[f'`{row["case"]}`', row["kernel"], f'{row["run_us"]:.2f}', f'{row["ratio"]:.2f}', f"{bound(row):.2f}"]
                     for row in worst])


def widths(rows, operation):
    """Columns are widths, lines types."""
    found = {(row["types"], row["width"]): row for row in rows
             if row["operation"] == operation and row["feature"] == "none"}
    columns = list(dict.fromkeys(width for _, width in found))
    lines = [[text] + [cell(found.get((types, width))) for width in columns] for types, text in TYPES.items()]
    return markdown(["types"] + [f"width {width}" for width in columns], lines)


def features(rows):
    """Columns are operations, lines features. A table for width 4 and types with many, one for the others."""
    found = {}
    for row in rows:
        found.setdefault((row["width"], row["types"]), {}).setdefault(row["feature"], {})[row["operation"]] = row

    def cells(calls):
        return [cell(calls.get(operation)) for operation in OPERATIONS]

    text, others = "", []
    for (width, types), calls in found.items():
        if width == 4 and len(calls) > 1:
            lines = [[FEATURES[feature]] + cells(calls[feature]) for feature in FEATURES if feature in calls]
            text += f"\n## Width 4, {TYPES[types]}: layouts and features\n\n" + markdown(["with", *OPERATIONS], lines)
        else:
            others += [[FEATURES[feature], str(width), TYPES[types]] + cells(calls[feature])
                       for feature in FEATURES if feature in calls and feature != "none"]
    others.sort(key=lambda line: line[:2])
    return text + "\n## Other pairs\n\n" + markdown(["with", "width", "types", *OPERATIONS], others)


def page_of(results):
    rows, gpu = results["rows"], results["host"]["gpu"]
    count = sum(map(exceeds, rows))
    text = f"""# Costs

What a combination of width, types, layouts and features costs on a GPU, and which kernel runs it: {len(rows)} calls,
each beside a copy of the same bytes. `scripts/costs.py` writes this page from `bench/results/h200/costs.json`, which
`shortconv costs` measured on one {gpu["name"]}, driver {gpu["driver"]}; `shortconv costs --kernels-only` prints the
kernels without a GPU. The names of kernels and variants are those of `src/cuda/kernel_table.hpp`.

All calls have 8192 channels, schedule flat, SiLU (none with gates), permuted slots, programmatic dependent launch and a
cold cache. A figure is the time of the call divided by that of the copy, which is launched without overlap:
[performance.md](performance.md) has the method. Figures of small calls differ by some percent from run to run.

"""
    text += markdown(["operation", "call"], [[name, call] for name, call in OPERATIONS.items()])
    text += f"""
A figure in bold exceeds its bound: {MAIN:.2f} for width 4 in 16 bits without features, {MODEL:.2f} for other calls that a
model or an engine makes, {DECODE:.1f} for all other decodes and {PREFILL:.1f} for all else.

## Cliffs

The {count} calls that exceed their bound, the worst first. `scripts/costs.py` lets this list only shrink.

"""
    text += cliffs(rows)
    for operation, call in OPERATIONS.items():
        text += f"\n## {operation.capitalize()}: widths and types\n\n{call.capitalize()}.\n\n{widths(rows, operation)}"
    return text + features(rows)


def nameless(rows):
    """The page would omit them."""
    for row in rows:
        for key, texts in (("operation", OPERATIONS), ("types", TYPES), ("feature", FEATURES)):
            if row[key] not in texts:
                yield f'{row["case"]}: {key} is {row[key]!r}, for which scripts/costs.py has no text'


def errors(results, page, today=None):
    """What is wrong with results, for a page that may be None. `today`: rows with the kernels of today, if known."""
    known = None if page is None else known_cliffs(page)
    for row in results["rows"]:
        if exceeds(row) and known is not None and row["case"] not in known:
            yield (f'{row["case"]}: takes {row["ratio"]:.3f} times the copy, but may take {bound(row):.2f}; '
                   f"expected no cliff that {PAGE} does not list")
    if today is None:
        return
    if page != page_of(results):
        yield f"{PAGE}: is not what scripts/costs.py writes from {RESULTS}; run it"
    measured = {row["case"]: row["kernel"] for row in results["rows"]}
    kernels = {row["case"]: row["kernel"] for row in today}
    for case in dict.fromkeys([*measured, *kernels]):
        if measured.get(case) != kernels.get(case):
            yield (f"{case}: was measured with kernel {measured.get(case)!r}, but {kernels.get(case)!r} runs it today; "
                   f"measure again: shortconv costs --json {RESULTS}")


def rows_today(shortconv):
    command = [shortconv, "costs", "--kernels-only", "--json", "-"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rows"]


def stop_at(found):
    if found:
        sys.exit("\n".join(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", metavar="SHORTCONV")
    options = parser.parse_args()
    today = rows_today(options.check) if options.check else None
    stop_at(list(nameless(today or [])))
    if not (ROOT / RESULTS).exists():
        print(f"{RESULTS}: does not exist; shortconv costs --json {RESULTS} writes it on a GPU")
        sys.exit(SKIPPED)
    results = json.loads((ROOT / RESULTS).read_text())
    page = (ROOT / PAGE).read_text() if (ROOT / PAGE).exists() else None
    stop_at(list(errors(results, page, today)))
    if not options.check:
        (ROOT / PAGE).write_text(page_of(results))


if __name__ == "__main__":
    main()
