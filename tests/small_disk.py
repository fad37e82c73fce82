"""A disk that is full, for the tests of what writes."""

import resource
from contextlib import contextmanager


@contextmanager
def files_end_at(size):
    """No file of this process can grow beyond `size` bytes: the write that would is cut short, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
