"""The figures of docs/results.md: kept in docs/results.json, shown in the page's tables.

::

    python docs/tools/results.py record loss build/bench/loss.json --rows rows
    python docs/tools/results.py render

`record` puts what a command measured into a table of the JSON file; with ``--of misses``,
``--of transcripts`` or ``--of slots`` the file is an ``evaluation.json`` of `edge-imputer
evaluate`, with ``--of runtimes`` a ``runtimes.json`` of `edge-imputer bench`. `render` writes the
page's tables from it. A table of the page is declared in a comment, one column a line, ``header |
format`` with the keys of the rows; what stands between it and the closing comment is rendered. A
part of a format in double square brackets is left out where its
value is missing::

    <!-- table loss
    frames open | {open:.0%}
    ms | {ours_ms:.2f}
    -->
    <!-- end -->
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent
TABLE = re.compile(
    r"(<!-- table (\S+)(?: where ([^\n]+))?\n(.*?)-->\n)(.*?)(<!-- end -->)", re.DOTALL
)

Row = dict[str, Any]
RATES = (20, 60)  # false alarms an hour at which curves are compared


def record(tables: dict[str, list[Row]], name: str, rows: list[Row], key: list[str]) -> None:
    """Put rows into a table: in place of those with the same values under `key`, or of all."""
    if not key:
        tables[name] = rows
        return
    places = {tuple(row.get(k) for k in key): i for i, row in enumerate(tables.get(name, []))}
    kept = tables.setdefault(name, [])
    for row in rows:
        place = places.get(tuple(row.get(k) for k in key))
        if place is None:
            kept.append(row)
        else:
            kept[place] = row


def cell(template: str, row: Row) -> str:
    """One formatted cell; a part in double square brackets is left out where a value is missing."""

    def optional(match: re.Match[str]) -> str:
        try:
            return match[1].format(**row)
        except (KeyError, TypeError):  # no such key, or null
            return ""

    return re.sub(r"\[\[(.*?)\]\]", optional, template).format(**row)


def render(page: str, tables: dict[str, list[Row]]) -> str:
    """The page with every declared table written anew from the figures."""

    def one(match: re.Match[str]) -> str:
        start, name, where, declared, _, end = match.groups()
        columns = [line.split("|", 1) for line in declared.strip().splitlines()]
        rows = [row for row in tables[name] if not where or chosen(row, where)]
        lines = [" | ".join(header.strip() for header, _ in columns)]
        lines += ["|".join(["---"] + ["---:"] * (len(columns) - 1))]
        lines += [" | ".join(cell(form.strip(), row) for _, form in columns) for row in rows]
        shown = "".join(f"|{line}|\n" if "---" in line[:4] else f"| {line} |\n" for line in lines)
        return f"{start}{shown}{end}"

    return TABLE.sub(one, page)


def chosen(row: Row, where: str) -> bool:
    """Whether a row has the values of ``key=value, key=value``."""
    pairs = (pair.split("=", 1) for pair in where.split(","))
    return all(str(row.get(key.strip())) == value.strip() for key, value in pairs)


def rows_of(path: Path, inside: str | None) -> list[Row]:
    """Rows of a command's JSON: the list at the dotted key `inside`; or all of it but lists."""
    found: Any = json.loads(path.read_text("utf-8"))
    for part in inside.split(".") if inside else []:
        found = found[part]
    if isinstance(found, list):
        return found
    return [{key: value for key, value in found.items() if not isinstance(value, list)}]


def miss_rows(evaluation: Row) -> list[Row]:
    """Misses by condition beside the false alarms in the same noise, of an evaluation of keywords.

    ``ci_low`` and ``ci_high`` are of the misses.
    """
    return [
        {
            "data": _data(one["condition"]),
            "condition": _condition(one["condition"]),
            "frr": one["frr"]["value"],
            "fa_per_hour": alarms.get("per_hour"),
            "hours": alarms.get("hours"),
            "ci_low": one["frr"]["low"],
            "ci_high": one["frr"]["high"],
            "n": one["frr"]["n"],
            "fa_low": alarms.get("low"),
            "fa_high": alarms.get("high"),
            "negatives": one["negatives"],
        }
        for one in evaluation["misses"]
        if one["condition"]["group"] != "(none)"
        for alarms in (one["false_alarms"] or {},)
    ]


def det_rows(evaluation: Row) -> list[Row]:
    """Misses where the false alarms of the same data are at most `RATES` an hour.

    The threshold is of the very data: this compares models, and is no operating point.
    """
    rows = []
    for curve in evaluation["curves"]:
        if curve["condition"]["by"]:
            continue
        row = {"data": _data(curve["condition"]), "condition": _condition(curve["condition"])}
        for rate in RATES:
            allowed = [p for p in curve["points"] if p["false_alarms"]["per_hour"] <= rate]
            best = min(allowed, key=lambda point: point["frr"]["value"])["frr"]
            row |= {f"frr_{rate}": best["value"], "n": best["n"]}
            row |= {f"low_{rate}": best["low"], f"high_{rate}": best["high"]}
        rows.append(row)
    return rows


def transcript_rows(evaluation: Row) -> list[Row]:
    """Error rates by condition, and less those of another model where they were compared."""
    return [
        {**_clips(one), **_rates(one, ("wer", "cer")), **_difference(evaluation, one)}
        for one in evaluation["rows"]
    ]


def slot_rows(evaluation: Row) -> list[Row]:
    """Commands understood and refused, and rates of all slots, by condition."""
    return [
        {
            **_clips(one),
            **_rates(one, ("right", "refused", "accepted_right")),
            **_rates(one["slots"], ("precision", "recall", "f1")),
            **{kind: one["slots"][kind] for kind in ("wrong", "missing", "spurious")},
            "threshold": evaluation["refusal"]["threshold"],
            **_difference(evaluation, one),
        }
        for one in evaluation["rows"]
    ]


def _clips(one: Row) -> Row:
    where = one["condition"]
    return {"data": _data(where), "condition": _condition(where), "n": one["n_clips"]}


def _rates(one: Row, names: Sequence[str]) -> Row:
    """Rates with their limits, but for those that there are not."""
    row: Row = {}
    for name in names:
        if one[name] is not None:
            row |= {name: one[name]["value"]}
            row |= {f"{name}_low": one[name]["low"], f"{name}_high": one[name]["high"]}
    return row


def _difference(evaluation: Row, one: Row) -> Row:
    """What another model was compared with in the row's condition, if one was."""
    for other in evaluation["comparisons"]:
        if other["condition"] == one["condition"]:
            found = other["difference"]
            return {
                "difference": found["value"],
                "difference_low": found["low"],
                "difference_high": found["high"],
                "p": other["p_value"],
            }
    return {}


def runtime_rows(figures: Row) -> list[Row]:
    """A row a preset, each figure by runtime and type; `wrong` are those off the reference."""
    presets: dict[str, Row] = {}
    for one in figures["rows"]:
        empty: Row = {"preset": one["preset"], "us": {}, "ms": {}, "bytes": {}, "wrong": []}
        row = presets.setdefault(one["preset"], empty)
        name = f"{one['runtime']} {one['dtype']}"
        if one["us_per_step"] is not None:
            row["us"][name] = one["us_per_step"]
            row["ms"][name] = one["ms_per_s_audio"]
            row["bytes"][name] = one["bytes"]
        if one["agrees_with_reference"] is False:
            row["wrong"].append(name)
    return list(presets.values())


def _data(condition: Row) -> str:
    group = f", {condition['by']} {condition['group']}" if condition["by"] else ""
    return f"{condition['data']} {condition['split']} ({condition['kind']}){group}"


def _condition(condition: Row) -> str:
    snr = condition["snr_db"]
    return "clean" if snr is None else f"{snr:g} dB"


REPORTS = {
    "misses": miss_rows,
    "det": det_rows,
    "transcripts": transcript_rows,
    "slots": slot_rows,
    "runtimes": runtime_rows,
}


def dump(tables: dict[str, list[Row]]) -> str:
    """JSON with a row a line, so that a change of figures is easy to read."""
    parts = []
    for name, rows in sorted(tables.items()):
        lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
        parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    draft = path.with_suffix(path.suffix + ".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def main() -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("record", help="put what a command measured into a table, and render")
    add.add_argument("table")
    add.add_argument("file", type=Path)
    add.add_argument(
        "--rows", help="dotted key of the rows in the file; the whole file if not given"
    )
    add.add_argument(
        "--of", choices=sorted(REPORTS), help="what the file is, if it is no list of rows"
    )
    add.add_argument("--key", default="", help="keys, with commas, that tell a row to replace")
    add.add_argument("--set", nargs="*", default=[], help="key=value pairs to add to every row")
    commands.add_parser("render", help="write the page's tables from the figures")
    options = parser.parse_args()
    tables = json.loads((DOCS / "results.json").read_text("utf-8"))
    if options.command == "record":
        extra = dict(pair.split("=", 1) for pair in options.set)
        if options.of:
            found = REPORTS[options.of](json.loads(options.file.read_text("utf-8")))
        else:
            found = rows_of(options.file, options.rows)
        rows = [{**extra, **row} for row in found]
        record(tables, options.table, rows, [k for k in options.key.split(",") if k])
    write(DOCS / "results.json", dump(tables))
    page = DOCS / "results.md"
    write(page, render(page.read_text("utf-8"), tables))


if __name__ == "__main__":
    main()
