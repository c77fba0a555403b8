"""scripts/costs.py on a few rows that nobody measured."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import costs  # noqa: E402


def row(operation, width, types, feature, ratio, kernel="tiles"):
    case = f"{operation}-{width}-{types}" + ("" if feature == "none" else f"-{feature}")
    return {"case": case, "operation": operation, "width": width, "types": types,
            "feature": feature, "kernel": kernel, "bytes": 8, "run_us": 10 * ratio, "copy_us": 10,
            "ratio": ratio}


def results(**ratios):
    """A ratio by name replaces that of the sample."""
    rows = [row("prefill", 4, "bf16", "none", ratios.get("main", 1.05)),
            row("prefill", 12, "bf16", "none", ratios.get("wide", 4.2), "general"),
            row("decode", 4, "bf16", "bias", ratios.get("bias", 1.2), "decode"),
            row("decode", 4, "bf16", "dilation", ratios.get("dilation", 2.25), "general decode"),
            row("decode", 7, "f16", "gates", ratios.get("gates", 1.1), "small decode, gated")]
    return {"host": {"gpu": {"name": "NVIDIA H200", "driver": "1.2"}}, "rows": rows}


@pytest.mark.parametrize("arguments, expected", [
    (("ragged", 4, "f16", "none"), 1.10),
    (("trees", 3, "bf16-ws32", "none"), 1.25),
    (("drafts", 2, "bf16-w32", "none"), 1.25),
    (("drafts", 2, "bf16-s32", "none"), 2.5),
    (("prefill", 5, "bf16", "none"), 2.5),
    (("decode", 64, "f32", "none"), 2.0),
    (("decode", 7, "bf16", "gates"), 1.25),
    (("decode", 4, "bf16", "gates"), 2.0),
    (("ragged", 3, "bf16-s32", "gates"), 2.5),
    (("decode", 4, "bf16-s32", "in-place"), 1.25),
    (("prefill", 4, "bf16", "in-place"), 2.5),
    (("drafts", 4, "bf16", "checked"), 2.5)])
def test_bounds(arguments, expected):
    assert costs.bound(row(*arguments, 1)) == expected


def test_the_page_lists_cliffs_first_and_marks_them():
    page = costs.page_of(results())
    assert costs.known_cliffs(page) == {"prefill-12-bf16", "decode-4-bf16-dilation"}
    cliffs, decode = page.index("## Cliffs"), page.index("## Decode: widths and types")
    assert cliffs < decode
    assert "| `prefill-12-bf16` | general | 42.00 | 4.20 | 2.50 |" in page
    assert page.index("`prefill-12-bf16`") < page.index("`decode-4-bf16-dilation`")  # the worst first
    assert "| all bf16 | 1.05 tiles | **4.20** general |" in page
    assert "| bias |  |  | 1.20 decode |  |  |" in page
    assert "| 7 | all f16 |  |  | 1.10 small decode, gated |  |  |" in page
    assert "NVIDIA H200, driver 1.2" in page


def test_every_row_has_a_cell():
    measured = results()["rows"]
    page = costs.page_of(results())
    tables = page.partition("## Prefill")[2]
    for one in measured:
        assert costs.cell(one) in tables


def test_a_new_cliff_is_an_error_and_an_old_one_is_not():
    page = costs.page_of(results())
    assert not list(costs.errors(results(), page))
    assert not list(costs.errors(results(main=1.2), None))  # the first page accepts all
    found, = costs.errors(results(main=1.2), page)
    assert found == ("prefill-4-bf16: takes 1.200 times the copy, but may take 1.10; expected no cliff "
                     "that docs/costs.md does not list")
    accepted = page.replace("| `prefill-12", "| `prefill-4-bf16` |\n| `prefill-12")
    assert not list(costs.errors(results(main=1.2), accepted))


def test_an_old_page_and_other_kernels_are_errors():
    page = costs.page_of(results())
    today = results()["rows"]
    assert not list(costs.errors(results(), page, today))
    found, = costs.errors(results(bias=1.1), page, today)
    assert found.startswith("docs/costs.md: is not what scripts/costs.py writes")
    today[0]["kernel"] = "general"
    new = today.pop()["case"]
    today.append(row("trees", 4, "bf16", "none", 1))
    changed, missing, added = costs.errors(results(), page, today)
    assert changed.startswith("prefill-4-bf16: was measured with kernel 'tiles', but 'general' runs")
    assert missing.startswith(f"{new}: was measured with kernel 'small decode, gated', but None")
    assert added.startswith("trees-4-bf16: was measured with kernel None, but 'tiles' runs")


def test_names_without_a_text():
    assert not list(costs.nameless(results()["rows"]))
    found, = costs.nameless([row("decode", 4, "bf16", "magic", 1)])
    assert found == "decode-4-bf16-magic: feature is 'magic', for which scripts/costs.py has no text"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["costs.py", *arguments])
    costs.main()


def test_pages_in_a_tree(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "ROOT", tmp_path)
    monkeypatch.setattr(costs, "rows_today", lambda shortconv: results()["rows"])
    page, measured = tmp_path / costs.PAGE, tmp_path / costs.RESULTS
    page.parent.mkdir()
    measured.parent.mkdir(parents=True)
    for arguments in ((), ("--check", "shortconv")):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, *arguments)
        assert stopped.value.code == 77

    measured.write_text(json.dumps(results()))
    with pytest.raises(SystemExit, match="^docs/costs.md: is not what"):  # it does not exist
        run(monkeypatch, "--check", "shortconv")
    run(monkeypatch)
    run(monkeypatch, "--check", "shortconv")

    measured.write_text(json.dumps(results(dilation=1.9)))
    run(monkeypatch)  # the list shrinks
    assert costs.known_cliffs(page.read_text()) == {"prefill-12-bf16"}
    before = page.read_text()
    measured.write_text(json.dumps(results()))
    with pytest.raises(SystemExit, match="^decode-4-bf16-dilation: takes 2.250 times the copy"):
        run(monkeypatch)
    assert page.read_text() == before
