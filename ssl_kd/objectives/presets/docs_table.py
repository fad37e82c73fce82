"""The catalogue as tables: `python -m ssl_kd.objectives.presets.docs_table docs/objectives_catalogue.md` renews them."""

from __future__ import annotations

import sys
from pathlib import Path

from ssl_kd.objectives.presets.classics import CLASSICS, SYSTEMS
from ssl_kd.objectives.presets.newest import NEWEST
from ssl_kd.objectives.presets.on_prototypes import ON_PROTOTYPES
from ssl_kd.objectives.presets.ours import OURS
from ssl_kd.objectives.presets.papers import SELF_SUPERVISED
from ssl_kd.objectives.presets.preset import EVIDENCE, Preset

BEGIN, END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"

SECTIONS: dict[str, dict[str, Preset]] = {
    "Ours": OURS,
    "Self-supervised distillation": SELF_SUPERVISED,
    "The newest, from 2022 on": NEWEST,
    "Prototypes in place of classes": ON_PROTOTYPES,
    "Classics in their representation form": CLASSICS,
    "Systems, in a form without labels": SYSTEMS,
}


def page() -> str:
    """Markdown: one table per section, one row per preset."""
    parts = []
    for title, rows in SECTIONS.items():
        parts.append(
            f"## {title}\n\n| preset | published | here, without labels | what differs | source, evidence | views |"
        )
        parts.append("| --- | --- | --- | --- | --- | --- |")
        parts += [_row(name, preset) for name, preset in rows.items()]
        parts.append("")
    return "\n".join(parts)


def _row(name: str, preset: Preset) -> str:
    cells = (
        f"`{name}`",
        preset.published,
        preset.here or ("as published, but for what differs" if preset.differs else "as published"),
        preset.differs or "-",
        f"{preset.source}: {EVIDENCE[preset.evidence]}",
        f"`{preset.views}`" + (f", `mix: {preset.mix}`" if preset.mix != "none" else ""),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def renew(path: Path) -> None:
    """Put the tables between the marks of a page."""
    text = path.read_text()
    before, rest = text.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{page()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
