"""The report: one HTML file that needs no network and no other file.

`sections.py` says what is in it, `report.html.j2` in which words and elements (jinja2, which escapes every text),
`charts.py` draws, and `report.css` and `report.js` go into the file. What can be folded is a `<details>` element and
tables are sorted by buttons, so that a keyboard does it all; colours follow the reader's light or dark setting, or a
button; wide tables scroll by themselves on a phone.
"""

from __future__ import annotations

from importlib.resources import files

from ..results import Results
from .charts import colour
from .sections import plain_class, sections, summary


def page(results: Results, settings: str = "", title: str = "Evaluation") -> str:
    """Return the whole report; `settings` is the configuration to print."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": plain_class, "colour": colour, "drawing": Markup}
    text = environment.from_string(_file("report.html.j2")).render(
        title=title,
        summary=summary(results),
        sections=list(sections(results)),
        settings=settings,
        style=Markup(_file("report.css")),
        script=Markup(_file("report.js")),
    )
    return text.lstrip() + "\n"


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
