"""The versions of installed packages, each looked up once in a process."""

from __future__ import annotations

import functools


@functools.cache
def installed(package: str) -> str:
    """The version of an installed package; empty where there is none. Looking it up parses the package's metadata."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
