"""Under which licence a teacher's weights are, in words that travel with every student, export and report.

The zoo knows its rows; a folder says it in its README's front matter or its config; timm says it of its tags. A plain file
says nothing. Nothing here is legal advice: the words are the publishers'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ssl_kd.errors import one_line

UNSTATED = "not stated in the file"
# Words of publishers under which weights may not be used, or not freely used, to earn money.
NON_COMMERCIAL = re.compile(r"\bnc\b|non-?\s?commercial|research[- ]only", re.IGNORECASE)


def stated(licence: object) -> str:
    """A licence as somebody wrote it, on one line; nothing where nobody did."""
    if isinstance(licence, list | tuple):
        licence = ", ".join(str(one) for one in licence)
    return one_line(licence, 120).strip() if isinstance(licence, str) and licence.strip() else ""


def non_commercial(licence: str) -> bool:
    """Whether its words say so."""
    return bool(NON_COMMERCIAL.search(licence.replace("_", "-")))


def warning(licences: Mapping[str, str] | Iterable[str]) -> str:
    """One sentence where any of the teachers' licences is non-commercial; nothing otherwise."""
    words = licences.values() if isinstance(licences, Mapping) else licences
    bound = list(dict.fromkeys(licence for licence in words if non_commercial(licence)))
    if not bound:
        return ""
    return (
        f"The teacher's weights are licensed for non-commercial use ({', '.join(bound)}). Whether a student of it is bound "
        "as well is for its publisher to say: ask before commercial use."
    )
