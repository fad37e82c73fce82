"""The demo's picture and figures are of one embedding of its images."""

import numpy as np
import pytest
from small_runs import small_teacher

from ssl_kd.eval import demo
from ssl_kd.eval.datasets.tasks import ArrayTask


def task(name):
    random = np.random.default_rng(len(name))
    images = random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(24) % 2
    return ArrayTask(name, images[:16], labels[:16], images[16:], labels[16:])


@pytest.mark.slow
def test_the_picture_needs_no_second_embedding(tmp_path, monkeypatch):
    encoder, tasks = small_teacher(), [task("digits"), task("temple-regions")]
    alone = demo.picture(encoder, encoder, tasks, tmp_path / "alone.png", rows=1)
    demo.measure(encoder, encoder, tasks, 0, True, tmp_path / "out", tmp_path / "features")
    monkeypatch.setattr("ssl_kd.eval.extraction.feature_cache.embed", lambda *_, **__: pytest.fail("embedded again"))
    monkeypatch.setattr(demo, "extract", lambda *_, **__: pytest.fail("embedded again"))
    beside = demo.picture(encoder, encoder, tasks, tmp_path / "beside.png", rows=1, features=tmp_path / "features")
    assert beside.read_bytes() == alone.read_bytes()
