"""Ctrl-C in the middle of a step: announced, noted, and the second one stops at once."""

import os
import signal
import subprocess
import sys

import pytest

from ssl_kd.runtime.signals import ANNOUNCEMENT, stop_signals


@pytest.mark.parametrize(("number", "announced"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_the_first_signal_is_noted_and_only_ctrl_c_answered(number, announced, capfd):
    with stop_signals() as caught:
        assert not caught
        os.kill(os.getpid(), number)
        assert caught == [signal.Signals(number).name]
    assert capfd.readouterr().err == (f"\n{ANNOUNCEMENT}\n" if announced else "")


def test_a_second_ctrl_c_stops_at_once_and_handlers_are_put_back():
    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with stop_signals() as caught:
            os.kill(os.getpid(), signal.SIGINT)
            assert caught
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)


def test_of_several_processes_one_answers(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    with stop_signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught
    assert capfd.readouterr().err == ""


def test_a_closed_standard_error_does_not_matter():
    code = (
        "import os, signal; from ssl_kd.runtime.signals import stop_signals\n"
        "os.close(2)\nwith stop_signals() as caught:\n    os.kill(os.getpid(), signal.SIGINT)\nprint(caught)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "['SIGINT']\n"
