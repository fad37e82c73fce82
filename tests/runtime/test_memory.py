"""Freed memory is met again without new pages."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, numpy
from ssl_kd.runtime.memory import keep_freed_blocks
print(keep_freed_blocks())
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(8_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(touch(), touch())
"""


def answer(**environ):
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environ)
    kept, faults = done.stdout.splitlines()
    return kept == "True", [int(n) for n in faults.split()]


@pytest.fixture(scope="module")
def environ():
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}


def test_a_block_that_was_freed_is_taken_again_without_page_faults(environ):
    kept, (first, second) = answer(**environ)
    if not kept:
        pytest.skip("this system's C library has no such setting")
    assert second < first / 4


def test_what_the_user_has_set_stays(environ):
    assert answer(**environ, MALLOC_ARENA_MAX="4")[0] is False
