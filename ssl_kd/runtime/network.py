"""Whether the network may be used."""

from __future__ import annotations

import os


def offline() -> bool:
    """Whether the environment forbids the network, by SSL_KD_OFFLINE: asked by whatever would go there."""
    return os.environ.get("SSL_KD_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")
