"""Progress: quiet when asked, plain lines when the output is no terminal, a rate that counts this session only."""

import re

import pytest

from ssl_kd.runtime import progress
from ssl_kd.runtime.progress import Progress, duration


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


def test_kept_notes_stay_behind_every_line(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    with Progress("distill", total=100) as bar:
        bar.advance(10, loss="0.5")
        bar.keep(neighbours="0.41")
        bar.advance(10, loss="0.4")
        bar.advance(10, loss="0.3")
    lines = capsys.readouterr().err.splitlines()
    assert "neighbours" not in lines[0]
    assert all(
        line.endswith(f"loss {loss}  neighbours 0.41") for line, loss in zip(lines[1:3], ("0.4", "0.3"), strict=True)
    )


def test_a_bar_shows_names_as_they_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("t[/x]", total=10) as bar:
        bar.advance(10, best="a[v2]")
    shown = capsys.readouterr().err
    assert "t[/x]" in shown
    assert "a[v2]" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warning_is_said_at_once_even_when_quiet(terminal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with Progress("distill", total=10) as bar:
        bar.warn("the student [is] ill")
        assert "distill: the student [is] ill" in capsys.readouterr().err
    capsys.readouterr()
    with Progress("distill", total=10, quiet=True) as bar:
        bar.warn("the student is ill")
    assert capsys.readouterr().err == "distill: the student is ill\n"


def test_a_log_is_not_flooded(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("distill", total=10_000) as bar:
        for _ in range(600):  # ten minutes
            now[0] += 1
            bar.advance(1)
    assert len(capsys.readouterr().err.splitlines()) <= 11


def test_times_are_in_hours_and_minutes():
    assert duration(61.4) == "61 s"
    assert duration(312) == "5 min 12 s"
    assert duration(3599.6) == "1 h 0 min"
    assert duration(149_080) == "41 h 24 min"


def test_time_left_is_never_below_nothing(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("distill", total=381) as bar:
        now[0] += 116
        bar.advance(384)
    assert capsys.readouterr().err.endswith("116 s gone, 0 s left\n")


def test_what_is_said_is_said_at_once_unless_quiet(capsys):
    for quiet in (False, True):
        with Progress("distill", total=10, quiet=quiet) as bar:
            bar.say("400 epochs")
            assert ("distill: 400 epochs\n" in capsys.readouterr().err) == (not quiet)


def test_time_left_is_not_guessed_from_nothing(capsys):
    with Progress("distill", total=10):
        pass
    assert "? s left" in capsys.readouterr().err


def test_what_is_done_already_claims_neither_a_rate_nor_a_time(capsys):
    with Progress("pretrain", 100, start=100):
        pass
    assert capsys.readouterr().err == "pretrain: 100 of 100 images, nothing left to do\n"


@pytest.mark.parametrize("title", ["distill", "nearest neighbours", "the first encoder on flowers, train", "x" * 200])
@pytest.mark.parametrize("width", [60, 80, 110])
def test_count_rate_and_time_left_stay_whatever_the_terms_and_the_title(width, title, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    terms = {f"correlation_queue_{i}": "0.123" for i in range(8)}
    with Progress(title, total=1_281_167, start=1000) as bar:
        now[0] += 100
        bar.advance(99_000, loss="0.1234", **terms)
    shown = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", capsys.readouterr().err)
    first, second = shown.rstrip().splitlines()[-2:]
    assert first.startswith(title[:7])
    assert re.search(r" 100000/1281167 images 990/s \d+:\d\d:\d\d left [\d:-]+ *$", first)
    assert second.startswith("loss 0.1234  correlation_queue_0 0.123")
    assert max(len(first.rstrip()), len(second)) <= width
