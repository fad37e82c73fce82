"""Fixed pieces come back in order, raise in place, hold no more than they may, and leave torch's threads as they were."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from ssl_kd.eval.solvers.deterministic import fixed_rounding

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 3])
def count(request, threads):
    with threads(request.param):
        yield request.param


def test_results_come_in_order_whoever_is_first(count):
    with fixed_rounding(CPU) as pieces:
        assert list(pieces(lambda i: (time.sleep(0.002 * (5 - i % 5)), i)[1], range(20))) == list(range(20))


def test_every_operation_within_a_piece_has_one_thread_and_afterwards_all_are_back(count):
    with fixed_rounding(CPU) as pieces:
        assert set(pieces(lambda _: torch.get_num_threads(), range(8))) == {1}
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == count


def test_an_error_is_raised_in_its_place_and_threads_are_back(count):
    found = []
    with pytest.raises(ZeroDivisionError), fixed_rounding(CPU) as pieces:
        found.extend(pieces(lambda i: 1 // (3 - i), range(8)))
    assert torch.get_num_threads() == count


def test_no_more_pieces_are_under_way_than_their_results_may_hold(monkeypatch, count):
    monkeypatch.setattr("ssl_kd.eval.solvers.deterministic.HELD", 200)
    lock, under_way, most = threading.Lock(), 0, 0

    def work(_):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)

    with fixed_rounding(CPU) as pieces:
        for _ in pieces(work, range(12), held=100):
            under_way -= 1
    assert most <= 2


def test_other_devices_take_pieces_in_turn_and_keep_the_threads(count):
    with fixed_rounding(torch.device("meta")) as pieces:
        assert torch.get_num_threads() == count
        assert set(pieces(lambda _: threading.current_thread(), range(4))) == {threading.main_thread()}
