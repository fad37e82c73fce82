"""A killed writer loses nothing and doubles nothing: `make test-index-kill`, smaller."""

import pytest

from benchmarks import index_kill


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path):
    index_kill.run(tmp_path, kills=30, seed=1)


def test_the_judge_notices_a_loss_a_double_and_a_wrong_vector(tmp_path):
    import numpy as np

    from ssl_kd.search.store import create

    log = tmp_path / "log"
    index_kill.note(log, '{"step": "add", "version": 0, "names": ["a", "b"]}')
    assert index_kill.possible(log, {}) == [{}, {"a": 0, "b": 0}]
    index_kill.note(log, index_kill.DONE)
    index_kill.note(log, '{"step": "remove", "version": 1, "names": ["a"]}')
    index_kill.note(log, index_kill.DONE)
    assert index_kill.possible(log, {}) == [{"b": 0}]
    store = create(tmp_path / "i", index_kill.WIDTH, {})
    with store.writing() as writer:
        writer.add(["a"], index_kill.vector("a", 3)[None], "photos", "3")
        writer.commit()
        assert index_kill.content(store) == {"a": 3}
        writer.add(["a"], index_kill.vector("a", 3)[None], "photos", "3")
        writer.commit()
    with pytest.raises(SystemExit, match="twice"):
        index_kill.content(store)
    with store.writing() as writer:
        writer.remove([0, 1])
        writer.add(["b"], np.zeros((1, index_kill.WIDTH), np.float32), "photos", "0")
        writer.commit()
    with pytest.raises(SystemExit, match="another's vector"):
        index_kill.content(store)
