#!/usr/bin/env python3
"""Writes the tables of docs/performance.md from the results of scripts/gpu.sh.

    scripts/performance.py bench/results/h200

A table is placed between `<!-- table NAME -->` and `<!-- end -->` and is made by the function of this name. Tables
without a place on the page are omitted.
"""

import json
import pathlib
import re
import statistics
import sys


def rows(results, name):
    return json.loads((results / f"{name}.json").read_text())["rows"]


def drafts(results):
    in_order = by_case(results, "slots-in-order")
    lines = []
    for row in rows(results, "bf16"):
        if row["case"].startswith(("spec", "tree")):
            lines.append([row["case"]] + timing(row) + [f'{in_order[row["case"]]["ratio"]:.3f}'])
    return markdown(["case", "us", "copy us", "ratio", "over the copy, us", "slots in order: ratio"], lines)


def by_case(results, name, schedule="flat"):
    return {row["case"]: row for row in rows(results, name) if row["schedule"] == schedule}


def markdown(header, lines):
    out = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(out + ["| " + " | ".join(line) + " |" for line in lines])


def timing(row):
    return [f'{row["run_us"]:.2f}', f'{row["copy_us"]:.2f}', f'{row["ratio"]:.3f}', f'{row["copy_plus_us"]:+.2f}']


def prefill(results):
    in_order = by_case(results, "slots-in-order")
    lines = []
    for row in rows(results, "bf16"):
        other = row["case"].startswith(("decode", "older", "gated", "spec", "tree", "commit"))
        if not other and "-kept" not in row["case"] and not row["case"].endswith("-check"):
            shape = f'{row["tokens"]} x {row["channels"]} in {row["sequences"]}'
            lines.append([row["case"], shape] + timing(row) + [f'{in_order[row["case"]]["ratio"]:.3f}'])
    header = ["case", "tokens x channels in sequences", "us", "copy us", "ratio", "over the copy, us",
              "slots in order: ratio"]
    return markdown(header, lines)


def decode(results):
    cases = by_case(results, "bf16")
    lines = []
    for case, row in cases.items():
        if not case.startswith("decode-") or case.endswith(("-ds", "-ring", "-check")):
            continue
        windows = cases.get(case + "-ds")
        above = f'{row["run_us"] - row["empty_us"]:.2f}'
        line = [f'{row["sequences"]} x {row["channels"]}'] + timing(row) + [above]
        line += [f'{windows["run_us"]:.2f}', f'{windows["ratio"]:.3f}'] if windows else ["", ""]
        lines.append(line)
    header = ["batch", "us", "copy us", "ratio", "over the copy, us", "over an empty kernel, us",
              "window-innermost states, us", "ratio"]
    return markdown(header, lines)


def short(results):
    found = by_case(results, "short")
    decodes = {case.removeprefix("decode-"): row for case, row in found.items() if case.startswith("decode")}
    lines = []
    for case, row in found.items():
        if not case.startswith("short-"):
            continue
        size = case.removeprefix("short-").split("x")
        decode = decodes.get("x".join([size[0]] + size[2:])) if size[1] == "1" else None
        lines.append([f'{size[0]} x {size[1]} x {row["channels"]}'] + timing(row) +
                     [f'{row["run_us"] / decode["run_us"]:.2f}' if decode else ""])
    return markdown(["sequences x tokens x channels", "us", "copy us", "ratio", "over the copy, us", "/ decode call"], lines)


def states(results):
    cases = by_case(results, "bf16")
    lines = []
    for case, row in cases.items():
        if case.startswith("older-"):
            plain = case.replace("older", "decode")
            without = cases.get(f"{plain}-ds", cases[plain])
        elif case.endswith("-ring") or "-kept" in case:
            without = cases[case.rpartition("-")[0]]
        else:
            continue
        more = f'{row["copy_us"] - without["copy_us"]:+.2f}'
        lines.append([case] + timing(row) + [f'{without["run_us"]:.2f}', f'{row["run_us"] - without["run_us"]:+.2f}', more])
    header = ["case", "us", "copy us", "ratio", "over the copy, us", "without, us", "difference, us", "of the copies, us"]
    return markdown(header, lines)


GENERAL = {"general": "weights of another type, width 4", "general-width-12": "width 12",
           "general-width-64": "width 64"}


def general(results):
    lines = [[label, case] + timing(row) for name, label in GENERAL.items()
             for case, row in by_case(results, name).items()]
    return markdown(["call", "case", "us", "copy us", "ratio", "over the copy, us"], lines)


def gates(results):
    alone = by_case(results, "bf16")
    lines = []
    for name in ("gates", "gates-width-7"):
        for case, row in by_case(results, name).items():
            shape = f'{row["tokens"]} x {row["channels"]} in {row["sequences"]}'
            us, copy = row["run_us"], row["overlapped_copy_us"]
            same = alone[case] if name == "gates" else None
            lines.append([str(row["width"]), case, shape] + timing(row) + [f"{copy:.2f}", f"{us / copy:.3f}"] +
                         ([f'{same["run_us"]:.2f}', f'{same["ratio"]:.3f}'] if same else ["-", "-"]))
    header = ["width", "case", "tokens x channels in sequences", "us", "copy us", "ratio", "over the copy, us",
              "overlapped copy us", "ratio", "width 4 with SiLU, alone: us", "ratio"]
    return markdown(header, lines)


def groups(results):
    alone = by_case(results, "groups")
    lines = []
    for case, row in by_case(results, "groups-overlapped").items():
        shape = f'{row["tokens"]} x {row["channels"]} in {row["sequences"]}'
        lines.append([case, shape] + timing(row) + [f'{alone[case]["run_us"]:.2f}', f'{alone[case]["ratio"]:.3f}'])
    header = ["case", "tokens x channels in sequences", "us", "copy us", "ratio", "over the copy, us", "alone: us", "ratio"]
    return markdown(header, lines)


def commits(results):
    lines = []
    for row in rows(results, "bf16"):
        if row["case"].startswith("commit"):
            shape = f'{row["layers"]} layers, {row["sequences"]} sequences, {row["tokens"] // row["sequences"]} drafts'
            lines.append([shape] + timing(row))
    return markdown(["commit", "us", "copy us", "ratio", "over the copy, us"], lines)


def backward(results):
    others = [by_case(results, f"backward-{name}") for name in ("f16", "f32", "f32-weights")]
    lines = []
    for case, row in by_case(results, "backward").items():
        shape = f'{row["tokens"]} x {row["channels"]} in {row["sequences"]}'
        two_reads = row["two_reads_us"]
        lines.append([case.removeprefix("back-"), shape] + timing(row) +
                     [f"{two_reads:.2f}", f'{row["run_us"] / two_reads:.3f}'] +
                     [f'{other[case]["ratio"]:.3f}' if case in other else "" for other in others])
    header = ["gradients of", "tokens x channels in sequences", "us", "copy us", "ratio", "over the copy, us",
              "two reads, one write, us", "ratio", "f16: ratio", "f32: ratio", "weights of f32, bias: ratio"]
    return markdown(header, lines)


def backward_fronts(results):
    lines = []
    for case, row in by_case(results, "backward-fronts").items():
        shape = f'{row["tokens"]} x {row["channels"]} in {row["sequences"]}'
        lines.append([case.removeprefix("back-"), shape] + timing(row))
    return markdown(["gradients of", "tokens x convolved channels in sequences", "us", "copy us", "ratio",
                     "over the copy, us"], lines)


def front_training(results):
    lines = [[row["case"], f'{row["one call, us"]:.1f}', f'{row["composed, us"]:.1f}',
              f'{row["composed, us"] / row["one call, us"]:.2f}'] for row in rows(results, "front-training")]
    return markdown(["tokens", "one call, us", "composed, us", "composed / one call"], lines)


def backward_variants(results):
    lines = []
    for name in (*(f"width-{width}" for width in (2, 3, 5, 6, 7, 8)), "pitch-1.5", "pitch-2", "gates", "general",
                 *(f"general-width-{width}" for width in (7, 12, 64))):
        for case, row in by_case(results, f"backward-{name}").items():
            named = {"gates": "width 7, no activation", "general": "weights of f16",
                     "general-width-7": "width 7, no activation"}
            what = named.get(name, name.removeprefix("general-").replace("-", " "))
            lines.append([what, case.removeprefix("back-")] + timing(row))
    return markdown(["variant", "gradients of", "us", "copy us", "ratio", "over the copy, us"], lines)


def checked(results):
    cases = by_case(results, "bf16")
    lines = []
    for case, row in cases.items():
        if case.endswith("-check"):
            without = cases[case.removesuffix("-check")]
            lines.append([f'{without["case"]}, {row["sequences"]} sequences', f'{without["run_us"]:.2f}',
                          f'{row["run_us"]:.2f}', f'{row["run_us"] - without["run_us"]:+.2f}',
                          f'{without["launch_us"]:.2f}', f'{row["launch_us"]:.2f}'])
    return markdown(["case", "us", "checked us", "difference, us", "launch on the host, us", "checked, us"], lines)


def overlapped(results):
    plain, overlap = by_case(results, "bf16"), by_case(results, "overlapped")
    lines = []
    for case, row in overlap.items():
        if case.startswith("commit") or case.endswith("-check"):
            continue
        us, copy = row["run_us"], row["overlapped_copy_us"]
        lines.append([case, f'{plain[case]["ratio"]:.3f}'] + timing(row) +
                     [f"{copy:.2f}", f"{us / copy:.3f}", f"{us - copy:+.2f}", f'{us - row["empty_us"]:.2f}'])
    header = ["case", "ratio alone", "overlapped us", "copy us", "ratio", "over the copy, us",
              "overlapped copy us", "ratio", "over it, us", "over an empty kernel, us"]
    return markdown(header, lines)


def schedules(results):
    flat, grid, lists = (by_case(results, "schedules", s) for s in ("flat", "sequence-grid", "block-list"))
    lines = []
    for case, row in flat.items():
        lines.append([case] + [f'{t[case]["run_us"]:.1f}' for t in (flat, grid, lists)] +
                     [f'{grid[case]["run_us"] / row["run_us"]:.1f}', f'{lists[case]["run_us"] / row["run_us"]:.1f}'] +
                     [f'{t[case]["host_us"]:.1f}' for t in (flat, grid, lists)])
    header = ["case", "flat us", "sequence-grid us", "block-list us", "x sequence-grid", "x block-list",
              "host: flat us", "host: sequence-grid us", "host: block-list us"]
    return markdown(header, lines)


def variants(results):
    names = ["bf16", "slots-in-order", "bias", "f16", "f32", "pitch-1.5", "pitch-2"]
    names += [f"width-{w}" for w in (2, 3, 5, 6, 7, 8)] + ["f32-states", "f32-states-weights"]
    tables = {name: by_case(results, name) for name in names}
    cases = ["8192x8192", "8x1024", "64x128", "256x32", "skewed", "decode-256"]
    labels = {"bf16": "bf16, width 4", "bias": "with a bias", "pitch-1.5": "row pitch 1.5 x channels", "pitch-2": "row pitch 2 x channels",
              "f32-states": "states of f32", "f32-states-weights": "states and weights of f32"}
    lines = [[labels.get(n, n.replace("-", " "))] + [f'{tables[n][c]["ratio"]:.3f}' for c in cases] for n in names]
    return markdown(["ratio to the copy"] + cases, lines)


def rivals(results):
    found = {}
    for row in json.loads((results / "rivals.json").read_text())["rows"]:
        found.setdefault(row["case"], {})[row["rival"]] = row
    gpu = ["shortconv", "sglang", "vllm", "causal_conv1d", "fla", "as causal_conv1d", "as fla", "torch"]
    host = ["copy", "shortconv", "as sglang", "as vllm", "as causal_conv1d", "as fla", "sglang", "vllm", "causal_conv1d", "fla"]
    lines = []
    for case, row in found.items():
        def figure(name, key):
            return f'{row[name][key]:.2f}' if name in row and "error" not in row[name] else "-"
        lines.append([case, f'{row["shortconv"]["copy_us"]:.2f}'] + [figure(name, "gpu_us") for name in gpu] +
                     [figure(name, "host_us") for name in host])
    return markdown(["case", "copy"] + gpu + ["host: copy"] + host[1:], lines)


def fronts(results):
    found = {}
    for row in json.loads((results / "rivals-fronts.json").read_text())["rows"]:
        found.setdefault(row["case"], {})[row["rival"]] = row
    others = ["sglang", "vllm", "as sglang", "as vllm"]
    lines = []
    for case, row in found.items():
        def figure(name, key):
            return f'{row[name][key]:.2f}' if name in row and "error" not in row[name] else "-"
        def speedup(name):
            return f'{row[name]["gpu_us"] / row["shortconv"]["gpu_us"]:.2f}' if name in row else "-"
        lines.append([case, f'{row["shortconv"]["copy_us"]:.2f}', figure("shortconv", "gpu_us")] +
                     [figure(name, "gpu_us") for name in others] + [speedup(name) for name in others] +
                     [figure(name, "host_us") for name in ("shortconv", "sglang", "vllm")])
    return markdown(["case", "copy", "shortconv"] + others + [f"{name} / ours" for name in others] +
                    ["host: shortconv", "sglang", "vllm"], lines)


def sweep_by_batch(results, name, others, far):
    """A sweep of bench/rivals/run.py. The times of the others are divided by ours; far is a ratio of large calls to the
    copy."""
    found = {}
    for row in rows(results, name):
        if "gpu_us" in row:
            found.setdefault(row["case"], {})[row["rival"]] = row
    batches = {}
    for case, timed in found.items():
        if "shortconv" in timed:
            batches.setdefault(case.partition("; ")[0], []).append(timed)

    def spread(figures):
        figures = sorted(figures)
        if not figures:
            return ["-"] * 3
        return [f"{figure:.2f}" for figure in (figures[0], statistics.median(figures), figures[-1])]

    lines = []
    for batch, points in batches.items():
        ratios = [point["shortconv"]["gpu_us"] / point["shortconv"]["copy_us"] for point in points]
        large = [one for one, point in zip(ratios, points) if point["shortconv"]["moved_bytes"] > 50e6]
        line = [batch, str(len(points)), *spread(ratios), f"{sum(one > far for one in large)} of {len(large)}"]
        for name in others:
            line += spread([point[name]["gpu_us"] / point["shortconv"]["gpu_us"] for point in points if name in point])
        lines.append(line)
    return markdown(["batch", "shapes", "time / copy: least", "median", "most", f"more than 50 MB, above {far}"] +
                    [title for name in others for title in (f"{name} / ours: least", "median", "most")], lines)


def forward_sweep(results):
    return sweep_by_batch(results, "rivals-sweep", ["sglang", "vllm"], 1.25)


def training_sweep(results):
    return sweep_by_batch(results, "rivals-training-sweep", ["fla", "fla_gluon", "torch"], 1.3)


def warm(results):
    return markdown(["case", "us", "copy us", "ratio", "over the copy, us"],
                    [[row["case"]] + timing(row) for row in rows(results, "warm")])


def host(results):
    row = by_case(results, "bf16")["8192x8192"]
    every = [r for c, r in by_case(results, "bf16").items() if not c.startswith("commit") and not c.endswith("-check")]
    def least(name):
        return f'{min(r[name] for r in every):.2f}'
    def median(name):
        return f'{sorted(r[name] for r in every)[len(every) // 2]:.2f}'
    lines = [["bare launch of an empty kernel", f'{row["bare_launch_us"]:.2f}', ""]]
    for name, what in (("launch_us", "`run` with a ready plan"), ("plan_us", "`make_problem` and `make_plan`"),
                       ("host_us", "all three")):
        lines.append([what, median(name), least(name)])
    return markdown(["host time, us", "median of the cases", "least"], lines)


def replay(results):
    lines = []
    for name, kinds in (("replay-extend", ("extend", "decode")), ("replay-draft", ("draft extend",))):
        runs = {run["schedule"]: run for run in json.loads((results / f"{name}.json").read_text())["runs"]}
        for wanted in kinds:
            for schedule, label in (("block-list", "block-list (before)"), ("sequence-grid", "sequence-grid (after)"),
                                    ("flat", "flat (shortconv)")):
                kind = next(k for k in runs[schedule]["kinds"] if k["kind"] == wanted)
                line = [wanted, label]
                for field in ("host_us", "run_us", "host_and_run_us"):
                    line += [f'{kind[field]["p50"]:.1f}', f'{kind[field]["mean"]:.1f}']
                lines.append(line + [f'{kind["copy_ratio"]:.2f}'])
    header = ["calls", "schedule", "host p50, us", "mean", "device p50, us", "mean", "host + device p50, us", "mean",
              "device / copy"]
    return markdown(header, lines)


TABLES = {f.__name__: f for f in (prefill, decode, short, states, general, gates, groups, drafts, commits, backward, backward_fronts, backward_variants, front_training, checked, overlapped,
                                  schedules, variants, rivals, fronts, forward_sweep, training_sweep, warm, host, replay)}


def main():
    results = pathlib.Path(sys.argv[1])
    page = pathlib.Path(__file__).parent.parent / "docs" / "performance.md"
    text = page.read_text()
    for name in re.findall(r"<!-- table (\w+) -->", text):
        if name not in TABLES:
            sys.exit(f"docs/performance.md has a place for a table {name}, which no function makes")
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.S)
        text = pattern.sub(lambda m: m.group(1) + TABLES[name](results) + "\n" + m.group(2), text)
    page.write_text(text)


if __name__ == "__main__":
    main()
