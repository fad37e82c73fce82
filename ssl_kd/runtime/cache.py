"""Where files are kept between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return SSL_KD_CACHE, or `ssl_kd` in the platform's folder for caches."""
    if own := os.environ.get("SSL_KD_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "ssl_kd"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/ssl_kd"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssl_kd"
