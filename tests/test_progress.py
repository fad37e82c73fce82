"""Progress: quiet when asked, plain lines when the output is no terminal, a rate that counts this session only."""

import pytest

from ssl_kd import progress
from ssl_kd.progress import Progress


def test_a_log_gets_plain_lines_with_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    with Progress("distill", total=1000) as bar:
        bar.advance(250, loss="0.5")
        bar.advance(250)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("distill: 250 of 1,000 images")
    assert "s left" in lines[0]
    assert lines[0].endswith("loss 0.5")
    assert lines[-1].startswith("distill: 500 of 1,000")


def test_quiet_is_silent(capsys):
    with Progress("distill", total=10, quiet=True) as bar:
        bar.advance(10)
    assert capsys.readouterr() == ("", "")


def test_work_of_an_earlier_session_does_not_count_in_the_rate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("distill", total=1000, start=800, quiet=True) as bar:
        now[0] += 2
        bar.advance(100)
        assert bar.rate == pytest.approx(50)


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("distill", total=10) as bar:
        bar.advance(10, loss="0.1")
    assert "distill" in capsys.readouterr().err
