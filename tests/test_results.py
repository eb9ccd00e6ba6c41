"""The results page shows the figures of docs/results.json, and no table of figures but those."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", DOCS / "tools" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = load_tool()
PAGE = (DOCS / "results.md").read_text("utf-8")
TABLES = json.loads((DOCS / "results.json").read_text("utf-8"))


def test_page_shows_the_figures_on_record() -> None:
    assert results.render(PAGE, TABLES) == PAGE  # if not: python docs/tools/results.py render
    assert results.dump(TABLES) == (DOCS / "results.json").read_text("utf-8")


def test_every_table_is_on_record_and_every_record_is_shown() -> None:
    declared = {match[2] for match in results.TABLE.finditer(PAGE)}
    assert declared == set(TABLES)
    outside = results.TABLE.sub("", PAGE)
    assert not re.findall(r"^\|.*\|$", outside, re.MULTILINE)


def test_a_row_replaces_the_one_of_its_key() -> None:
    tables = {"speed": [{"model": "a", "ms": 1}, {"model": "b", "ms": 2}]}
    results.record(tables, "speed", [{"model": "b", "ms": 3}, {"model": "c", "ms": 4}], ["model"])
    assert [row["ms"] for row in tables["speed"]] == [1, 3, 4]
    results.record(tables, "speed", [{"model": "d"}], [])
    assert tables["speed"] == [{"model": "d"}]


def test_runtimes_are_side_by_side() -> None:
    def row(runtime: str, us: float | None, agrees: bool | None = True) -> dict[str, object]:
        name = {"preset": "tcn", "runtime": runtime, "dtype": "int8"}
        return {**name, "us_per_step": us, "ms_per_s_audio": 2.0, "bytes": 9} | {
            "agrees_with_reference": agrees
        }

    rows = [row("litert", 1.5), row("native", 3.0, False), row("old", None), row("x", 1.0, None)]
    (found,) = results.runtime_rows({"rows": rows})
    assert found["us"] == {"litert int8": 1.5, "native int8": 3.0, "x int8": 1.0}
    assert found["wrong"] == ["native int8"]
    cells = "{us[litert int8]} {ms[litert int8]} {bytes[native int8]}[[ {us[old int8]}]]"
    assert results.cell(cells, found) == "1.5 2.0 9"


def test_cells() -> None:
    row = {"p": 0.5, "low": 0.25, "high": None, "ms": {"torch ctc": 1.5}}
    assert results.cell("{p:.0%}[[ ({low:.0%} to {high:.0%})]]", row) == "50%"
    assert results.cell("{p:.0%}[[, from {low:.0%}]]", row) == "50%, from 25%"
    assert results.cell("{ms[torch ctc]:.2f}", row) == "1.50"
    with pytest.raises(KeyError):
        results.cell("{absent}", row)


def test_only_chosen_rows_are_shown() -> None:
    page = "<!-- table t where kind=real\nname | {name}\nn | {n}\n-->\n<!-- end -->\n"
    rows = [{"name": "a", "n": 1, "kind": "real"}, {"name": "b", "n": 2, "kind": "other"}]
    shown = results.render(page, {"t": rows})
    assert "| a | 1 |" in shown
    assert "| b |" not in shown
    assert results.render(shown, {"t": rows}) == shown


CONDITION = {
    "data": "words",
    "split": "test",
    "kind": "synthetic",
    "snr_db": None,
    "by": None,
    "group": None,
}


def test_an_evaluation_becomes_rows(tmp_path) -> None:
    rate = {"value": 0.25, "low": 0.1, "high": 0.4, "n": 40}
    alarms = {"count": 3, "hours": 2.0, "per_hour": 1.5, "low": 0.3, "high": 4.4, "upper": 3.9}
    noisy = {**CONDITION, "snr_db": 5.0, "by": "engine", "group": "flite"}
    misses = [
        {"condition": where, "frr": rate, "negatives": "talk", "false_alarms": found}
        for where, found in ((CONDITION, alarms), (noisy, None))  # none of that kind
    ]
    first, second = results.miss_rows({"misses": misses})
    assert first["data"] == "words test (synthetic)"
    assert first["condition"] == "clean"
    wanted = {"frr": 0.25, "fa_per_hour": 1.5, "hours": 2.0, "ci_low": 0.1, "ci_high": 0.4}
    assert wanted.items() <= first.items()
    assert second["data"] == "words test (synthetic), engine flite"
    assert second["condition"] == "5 dB"
    assert (second["frr"], second["fa_per_hour"]) == (0.25, None)
    points = [
        {"frr": {**rate, "value": frr}, "false_alarms": {**alarms, "per_hour": per_hour}}
        for frr, per_hour in ((0.1, 300.0), (0.3, 58.0), (0.5, 19.0), (1.0, 0.0))
    ]
    (row,) = results.det_rows({"curves": [{"condition": CONDITION, "points": points}]})
    assert (row["frr_20"], row["frr_60"], row["n"]) == (0.5, 0.3, 40)
    rows = [
        {"condition": where, "n_clips": 40, "wer": rate, "cer": rate}
        for where in (CONDITION, noisy)
    ]
    compared = [{"condition": CONDITION, "other": "b", "difference": rate, "p_value": 0.01}]
    first, second = results.transcript_rows({"rows": rows, "comparisons": compared})
    assert (first["wer"], first["wer_high"], first["difference"], first["p"]) == (
        0.25,
        0.4,
        0.25,
        0.01,
    )
    assert "difference" not in second
    scores = {"precision": rate, "recall": rate, "f1": None}
    counts = {"right": 3, "wrong": 1, "missing": 2, "spurious": 0}
    rows = [
        {
            "condition": CONDITION,
            "n_clips": 40,
            "right": rate,
            "refused": rate,
            "accepted_right": None,
            "slots": {**scores, **counts},
        }
    ]
    (row,) = results.slot_rows(
        {"rows": rows, "refusal": {"threshold": 0.5}, "comparisons": compared}
    )
    wanted = {"right": 0.25, "precision_low": 0.1, "missing": 2, "threshold": 0.5, "p": 0.01}
    assert wanted.items() <= row.items()
    assert not {"f1", "accepted_right"} & set(row)
