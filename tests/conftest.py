"""Shared by all tests: one thread per test process on small machines, and where the optional real data lie."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from buckets import bucket, s3_server  # noqa: F401 - fixtures, one server for all

# Tiny tensors: a second thread only waits, and two test processes share two cores.
torch.set_num_threads(1)
SHARED = Path(os.environ.get("SSL_KD_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture
def threads():
    """`with threads(n):` lets torch, faiss and the libraries below numpy use n threads, and then one again."""
    import faiss
    from threadpoolctl import threadpool_limits

    @contextmanager
    def using(count):
        torch.set_num_threads(count)
        faiss.omp_set_num_threads(count)
        try:
            with threadpool_limits(count):
                yield
        finally:
            torch.set_num_threads(1)
            faiss.omp_set_num_threads(1)

    return using


@pytest.fixture(scope="session")
def real_data():
    """Folder with real image sets as zips; the test is skipped, plainly, where there are none."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real image sets in {folder} (set SSL_KD_SHARED to the folder above `data`)")
    return folder
