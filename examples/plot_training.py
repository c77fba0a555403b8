"""Loss curves and a table of several runs of train_language_model.py.

  python examples/plot_training.py torch.json shortconv.json --out training

writes training.png, training.svg and training.md. The runs differ in --conv only; several runs of
one --conv are numbered.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

Run = Dict[str, Any]


def read_runs(paths: Sequence[Path]) -> Dict[str, Run]:
    """The runs by name: their convolution, with a number from the second of a kind on.

    Raises:
      ValueError: two runs cannot be compared.
    """
    runs: Dict[str, Run] = {}
    seen: Counter = Counter()
    for path in paths:
        run = json.loads(path.read_text(encoding="utf-8"))
        run["options"].pop("log_every", None)  # changes nothing
        first = next(iter(runs.values()), run)
        for key in ("device", "options", "text_sha256"):
            if run[key] != first[key]:
                raise ValueError(f"{path}: {key} is {run[key]}; expected that of {paths[0]}, "
                                 f"{first[key]}")
        seen[run["conv"]] += 1
        number = seen[run["conv"]]
        runs[run["conv"] if number == 1 else f"{run['conv']}, run {number}"] = run
    return runs


def table(runs: Dict[str, Run]) -> str:
    """The runs as a table in Markdown, below a line that says what was run."""
    first = next(iter(runs.values()))
    options, (tokens, channels) = first["options"], first["convolution_shape"]
    lines = [
        f"{first['device']}, torch {first['versions']['torch']}: {first['parameters'] / 1e6:.1f} M "
        f"parameters, {options['dtype']}, {tokens} tokens a step, {options['steps']} steps. The "
        f"convolution alone has {tokens} x {channels} values.",
        "",
        "| convolution | version | step, ms | convolution alone, forward and backward, ms | last "
        "loss | validation loss | sha256 of the weights |",
        "|---|---|---|---|---|---|---|"]
    for name, run in runs.items():
        others = [value for key, value in run["versions"].items()
                  if key not in ("python", "torch", "cuda")]
        alone = "-" if run["convolution_ms"] is None else f"{run['convolution_ms']:.3f}"
        cells = [name, others[0] if others else run["versions"]["torch"], f"{run['step_ms']:.2f}",
                 alone, f"{run['losses'][-1]:.4f}", f"{run['validation_loss']:.4f}",
                 f"`{run['weights_sha256'][:12]}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(runs: Dict[str, Run], paths: Sequence[Path]) -> None:
    """The losses of all runs, and below them the differences from the first run."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "shortconv"  # the same file from the same runs
    from matplotlib import pyplot

    figure, (losses, differences) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 6), height_ratios=[2, 1], layout="constrained")
    first, reference = next(iter(runs.items()))
    for number, (name, run) in enumerate(runs.items()):
        steps = range(1, len(run["losses"]) + 1)
        # Later curves are thinner: those below them stay visible where they are equal.
        style = {"color": f"C{number}", "linewidth": max(0.8, 3 - 0.7 * number)}
        losses.plot(steps, run["losses"], label=name, **style)
        if number > 0:
            values = [one - other for one, other in zip(run["losses"], reference["losses"])]
            differences.plot(steps, values, **style)
    losses.set_ylabel("loss, nats per byte")
    losses.legend(title="convolution")
    differences.set_ylabel(f"difference from\n{first}")
    differences.set_xlabel("step")
    for axes in (losses, differences):
        axes.grid(alpha=0.3)
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)
    pyplot.close(figure)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="JSON files of train_language_model.py")
    parser.add_argument("--out", type=Path, default=Path("training"), help="name without suffix")
    options = parser.parse_args(argv)
    try:
        runs = read_runs(options.runs)
    except ValueError as error:
        raise SystemExit(f"plot_training.py: {error}") from error
    written: List[Path] = [options.out.with_name(options.out.name + suffix)
                           for suffix in (".md", ".png", ".svg")]
    written[0].write_text(table(runs), encoding="utf-8")
    print(written[0].read_text(encoding="utf-8"))
    plot(runs, written[1:])


if __name__ == "__main__":
    main()
