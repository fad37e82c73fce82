"""What one image costs: on one thread and on all, and the same for networks that differ in their weights only."""

import torch

from ssl_kd.eval.extraction.latency import latencies
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing


def network(seed, width=8, size=32):
    torch.manual_seed(seed)
    return build("resnet18", preprocessing=Preprocessing(size=size, resize=size), channels=[8, 8, width, width])


def test_networks_that_differ_in_weights_only_are_measured_as_one():
    asked = {"one": network(0), "two": network(1), "wider": network(0, width=16), "larger": network(0, size=64)}
    found = latencies(asked)
    assert found["one"] == found["two"]
    assert len({str(found[name]) for name in ("one", "wider", "larger")}) == 3


def test_one_thread_and_all_are_measured_and_the_setting_is_as_before():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = latencies({"one": network(0)})["one"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert list(found.by_threads) == [1, 2]
    assert all(0 < one.low <= one.median <= one.high for one in found.by_threads.values())
    assert "one thread" in str(found)
    assert "2 threads" in str(found)
