"""Output that nobody takes: full, closed, left by its reader, or in an encoding that lacks a letter. One line, or silence."""

import os
import subprocess
import sys

import pytest

from ssl_kd.errors import UserError
from ssl_kd.runtime.command_line import guarded

COMMANDS = ("--help", "--version", "zoo list", "zoo list --json", "zoo show dino_vits16", "distill --help", "nonsense")
# Where standard output goes, and which exit codes a command that is right may end with.
OUTPUTS = {
    "> /dev/full": (2,),
    "| (exec 0<&-; sleep 0.2)": (0, 1),
    "| head -n 1": (0, 1),
    ">&-": (0,),
    "> /dev/null": (0,),
}


@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("output", OUTPUTS)
def test_output_that_is_not_taken_is_one_line_or_silence(output, unbuffered):
    script = "".join(
        f'{sys.executable} -m ssl_kd {words} {output}; echo "${{PIPESTATUS[0]}}" >&2\n' for words in COMMANDS
    )
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    codes = [int(line) for line in done.stderr.split("\n") if line.isdigit()]
    said = [line for line in done.stderr.splitlines() if not line.isdigit() and not line.startswith("Next: ")]
    assert len(codes) == len(COMMANDS)
    assert codes.pop() == 2  # nonsense, which says so on standard error
    assert set(codes) <= set(OUTPUTS[output])
    assert "no command 'nonsense'" in said.pop()
    full = "standard output could not be written (No space left on device)"
    assert all(line.startswith("ssl-kd") and full in line for line in said)
    assert len(said) == (len(codes) if output == "> /dev/full" else 0)


@pytest.mark.parametrize("closed", ["2> /dev/full", "2>&-", ">&- 2>&-", "0<&- >&- 2>&-"])
def test_errors_that_nobody_hears_keep_their_exit_code(closed):
    script = f"{sys.executable} -m ssl_kd nonsense {closed}; echo $?; {sys.executable} -m ssl_kd zoo show x {closed}; echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2\n2\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16"])
def test_letters_that_an_encoding_lacks_are_spelt_out(encoding):
    code = (
        "import sys; from ssl_kd.runtime.command_line import guarded\n"
        "sys.exit(guarded(lambda words: print('caf\\u00e9 \\u2713 \\udcff') or 0, [], 'x'))"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "caf" in done.stdout.decode(encoding)


def test_a_progress_that_nobody_hears_does_not_end_the_work():
    code = (
        "import sys; from ssl_kd.runtime import progress; from ssl_kd.runtime.command_line import guarded\n"
        "progress.LINE_EVERY = 0\n"
        "def work(words):\n"
        "    with progress.Progress('x', 3) as bar:\n"
        "        for _ in range(3): bar.advance(1); bar.warn('hot')\n"
        "    print('done'); return 0\n"
        "sys.exit(guarded(work, [], 'x'))"
    )
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$0" 2> /dev/full', code], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("done\n", 0)


def test_the_streams_are_as_before_when_the_command_is_over(capsys):
    before = sys.stdout, sys.stderr

    def wrong(words):
        print("half")
        raise UserError("two\nlines")

    assert guarded(wrong, [], "x") == 2
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("half\n", "x: two lines\n")


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda words: 1 // 0, [], "x")
