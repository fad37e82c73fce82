"""The report: one HTML file that needs no network and no other file.

`sections.py` says what is in it, `report.html.j2` in which words and elements (jinja2, which escapes every text),
`charts.py` draws, and `report.css` and `report.js` go into the file. The page around the sections and its tables are in
`frame.html.j2` and `macros.html.j2`, which other reports use as well. What can be folded is a `<details>` element and
tables are sorted by buttons, so that a keyboard does it all; colours follow the reader's light or dark setting, or a
button; wide tables scroll by themselves on a phone.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ssl_kd.runtime.files import atomically

from ..results import Results
from .charts import colour, dash, mark
from .sections import plain_class, sections, summary


def page(results: Results, settings: str = "", title: str = "Evaluation") -> str:
    """Return the whole report; `settings` is the configuration to print."""
    return rendered(
        _file("report.html.j2"),
        title=title,
        summary=summary(results),
        sections=list(sections(results)),
        settings=settings,
    )


def write_page(path: Path, results: Results, settings: str = "", title: str = "Evaluation") -> None:
    """Write the whole report into a file, atomically."""
    content = page(results, settings, title).encode(
        errors="backslashreplace"
    )  # a class folder's name need not be UTF-8
    atomically(path, lambda file: file.write(content))


def is_page(path: Path) -> bool:
    """Return whether a file is a report that we wrote."""
    with open(path, "rb") as file:
        return b'<meta name="generator" content="ssl-kd">' in file.read(1000)


def rendered(template: str, **values: object) -> str:
    """Return a page: a template's text that extends `frame.html.j2`, with the looks that all reports share."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"plain": plain_class, "colour": colour, "mark": mark, "dash": dash, "drawing": Markup}
    looks = {"style": Markup(_file("report.css")), "script": Markup(_file("report.js"))}
    return environment.from_string(template).render(**values, **looks).lstrip() + "\n"


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
