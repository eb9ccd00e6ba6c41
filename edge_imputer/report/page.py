"""One HTML page: style, tables and pictures inline, for the screen and for paper."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2733; background: #fff; }
img { width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
td, th { padding: .25rem .9rem; border-bottom: 1px solid #d5dde5; text-align: right; }
td:first-child, th:first-child { text-align: left; }
pre { background: #f4f6f8; padding: .6rem .9rem; overflow-x: auto; white-space: pre-wrap; }
.said { font-size: 1.25rem; }
.supported, .unsupported, .refuted { padding: .5rem .9rem; border-left: .4rem solid #2f855a;
       background: #edf7f1; }
.unsupported { border-color: #c05621; background: #fdf1e7; }
.refuted { border-color: #9b2c2c; background: #fbeaea; }
@media print {
  body { font-size: 10pt; max-width: none; margin: 0; }
  table, img, pre, .claim { break-inside: avoid; }
  h2, caption { break-after: avoid; }
}
"""


def escape(text: object) -> str:
    """Text for a page: what corpora and models say is no markup."""
    return html.escape(str(text))


def html_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = ""
) -> str:
    """Lay out a table; the first column is text, the others are numbers."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def picture(figure: Figure, alt: str, *, form: Literal["png", "svg"] = "png") -> str:
    """A matplotlib figure as an image inside the page; SVG stays sharp on paper."""
    buffer = io.BytesIO()
    if form == "svg":
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(buffer, format="png", dpi=110)
    kind = "svg+xml" if form == "svg" else "png"
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'


def write_page(path: Path, title: str, body: Iterable[str]) -> Path:
    """Write a page whole or not at all, and return its path."""
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.encode())
    return path
