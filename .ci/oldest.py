"""Prints the oldest versions that pyproject.toml allows, one a line as pip takes them: what `make test-oldest` installs.

python .ci/oldest.py [EXTRA ...]
"""

import re
import sys
import tomllib
from pathlib import Path


def oldest(project: dict, extras: list[str]) -> list[str]:
    """`NAME==VERSION` of each requirement with a lower bound, and NAME alone of one without."""
    own = project["optional-dependencies"]
    wanted, todo = list(project["dependencies"]), list(extras)
    while todo:
        for one in own[todo.pop()]:
            if match := re.fullmatch(rf"{project['name']}\[(.*)\]", one):
                todo += match[1].split(",")
            else:
                wanted.append(one)
    return sorted({re.sub(r">=.*", lambda bound: f"=={bound[0][2:]}", one) for one in wanted})


if __name__ == "__main__":
    text = Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(oldest(tomllib.loads(text)["project"], sys.argv[1:])))
