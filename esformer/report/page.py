"""A page that is one file: its text, its data and the script that draws them, and nothing that data can run.

Whatever comes from data is escaped, in HTML and in the embedded JSON. A content security policy allows the page's own
two scripts, by their digests, and nothing else: no other script, no handler of an event, no address.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from esformer.files import FileError, open_file
from esformer.report.vega import PACKAGE, javascript
from esformer.text import printable

ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
LARGEST_PICTURE = 1_000_000
"""Bytes of a picture that is embedded; a larger one is named."""
Spec = dict[str, Any]


def text(value: object) -> str:
    """Anything as HTML that shows it."""
    return html.escape(printable(str(value)))


def table(head: Sequence[object], body: Iterable[Sequence[object]]) -> str:
    """Rows of values below a head; without a head the first of each row is what the row is about."""

    def line(values: Sequence[object], heads: int) -> str:
        kinds = ["th" if place < heads else "td" for place in range(len(values))]
        return "".join(f"<{kind}>{text(value)}</{kind}>" for kind, value in zip(kinds, values, strict=True))

    top = f"<thead><tr>{line(head, len(head))}</tr></thead>" if head else ""
    rows = "".join(f"<tr>{line(row, 0 if head else 1)}</tr>" for row in body)
    return f'<div class="scroll"><table>{top}<tbody>{rows}</tbody></table></div>'


def folded(title: str, inside: str) -> str:
    """What is shown when somebody asks for it."""
    return f"<details><summary>{text(title)}</summary>{inside}</details>"


def picture(path: Path, about: str) -> str:
    """A PNG in the page itself."""
    try:
        with open_file(path) as file:
            content = file.read(LARGEST_PICTURE + 1)
    except (FileError, OSError):
        return ""
    if len(content) > LARGEST_PICTURE:
        return f'<p class="quiet">{text(about)}: {text(path)} is too large for this page.</p>'
    data = base64.b64encode(content).decode()
    return f'<p><img alt="{text(about)}" src="data:image/png;base64,{data}"></p>'


@dataclass
class Data:
    """The rows of some charts, by columns.

    Args:
        columns: a value for each row; what is not finite is none.
        coded: columns of texts which are made of few different words: for each row the places of its words.
        words: those words.
    """

    columns: Mapping[str, Sequence[Any]]
    coded: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    words: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        columns = {name: [_finite(value) for value in c] for name, c in self.columns.items()}
        return {"columns": columns, "coded": dict(self.coded), "words": list(self.words)}


class Page:
    """A page that grows section by section.

    Args:
        title: stands above.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.interactive = javascript() is not None
        """Whether charts can be drawn; otherwise pictures stand in their places."""
        self._body: list[str] = []
        self._datasets: dict[str, dict[str, Any]] = {}
        self._charts: list[dict[str, Any]] = []

    def add(self, *parts: str) -> None:
        """Add HTML."""
        self._body += parts

    def charts(self, name: str, data: Data, charts: Mapping[str, Spec], instead: Sequence[Path] = ()) -> str:
        """The HTML of charts side by side.

        Args:
            name: of the data, one of its own in the page.
            data: what they show.
            charts: Vega-Lite specifications without data and size, by what is said above each.
            instead: the pictures that are shown where charts cannot be drawn.
        """
        if not self.interactive:
            return "".join(picture(path, path.stem) for path in instead)
        self._datasets[name] = data.to_dict()
        figures = []
        for caption, spec in charts.items():
            place = f"chart-{len(self._charts)}"
            self._charts.append({"id": place, "data": name, "spec": spec})
            caption = f"<figcaption>{text(caption)}</figcaption>"
            figures.append(f'<figure>{caption}<div class="chart" id="{place}"></div></figure>')
        return f'<div class="charts">{"".join(figures)}</div>'

    def html(self) -> str:
        """The whole page."""
        folder = files("esformer.report")
        scripts = [javascript() or "", (folder / "page.js").read_text()] if self._charts else []
        digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts) or "'none'"
        policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {digests}"
        policy += "; base-uri 'none'; form-action 'none'"
        style = (folder / "page.css").read_text()
        data = json.dumps({"datasets": self._datasets, "charts": self._charts}, allow_nan=False, separators=(",", ":"))
        missing = f'<p class="quiet">With pip install {PACKAGE} this page has charts that answer to the pointer.</p>'
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{text(self.title)}</title>\n<style>{style}</style>\n</head>\n<body>",
                f"<h1>{text(self.title)}</h1>",
                *([] if self.interactive else [missing]),
                *self._body,
                f'<script type="application/json" id="data">{data.translate(ESCAPES)}</script>',
                *(f"<script>{script}</script>" for script in scripts),
                "</body>\n</html>\n",
            ]
        )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _finite(value: Any) -> Any:
    """A value as JSON holds it: nothing in place of a number that is none, or infinite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
