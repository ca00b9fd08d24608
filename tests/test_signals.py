"""A command that is asked to end says one line, whatever it was doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = ("--size=96", "--batch-size=4", "--device=cpu", "--weights=none", "--lr=0.001")


def _hear() -> None:
    """Under nohup one is ignored, in a shell's background the other."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def start(*words: object, before: str = "", start_new_session: bool = False) -> subprocess.Popen[str]:
    program = ["-c", f"{before}\nfrom ghmdet.__main__ import main; main()"] if before else ["-m", "ghmdet"]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
        preexec_fn=_hear,
    )


@pytest.mark.parametrize(
    ("name", "after"), [("SIGINT", 0.1), ("SIGINT", 0.6), ("SIGTERM", 0.3), ("SIGHUP", 1.0)]
)
def test_an_early_signal_leaves_no_traceback(name: str, after: float, tmp_path: Path) -> None:
    process = start(
        "train", tmp_path / "nothing", before="import os, ghmdet.signals; os.write(1, b'begun\\n')"
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    # It may have ended before, with the mistake that it was asked for.
    assert error in ("ghmdet: stopped\n", "") or error.startswith(f"ghmdet: {tmp_path / 'nothing'}")
    assert error.count("\n") <= 1


SLOW = {
    "validation": "import ghmdet.engine.train as at; real = at.detect\n"
    "def detect(*a, **k):\n print('now', flush=True); time.sleep(1); return real(*a, **k)\nat.detect = detect",
    "report": "import ghmdet.commands as at\n"
    "def write_report(*a, **k):\n print('now', flush=True); time.sleep(60)\nat.write_report = write_report",
    "reading": "import ghmdet.engine.training_data as at\n"
    "def read_data(*a, **k):\n print('now', flush=True); time.sleep(60)\nat.read_data = read_data",
}
SAID = {
    "validation": "stopped in the validation of epoch 1; the same command with --resume continues",
    "report": "stopped in the report; to make it: ghmdet report ",
    "reading": "stopped",
}


@pytest.mark.parametrize(
    ("place", "name"), [("validation", "SIGHUP"), ("report", "SIGTERM"), ("reading", "SIGHUP")]
)
def test_a_signal_at_any_place_ends_the_training_with_a_line_and_resume_goes_on(
    place: str, name: str, squares: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("train", squares, "--out", out, *WORDS, "--epochs=1")
    process = start(*words, before=f"import time\n{SLOW[place]}")
    assert process.stdout is not None
    while "now" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(getattr(signal, name))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.startswith(f"ghmdet: {SAID[place]}") and error.count("\n") == 1
    assert (out / "last.pt").exists() == (place != "reading")
    assert not list(tmp_path.rglob("*lock")) and not list(tmp_path.rglob("*.tmp"))
    if place == "validation":
        done = start(*words, "--resume", "--no-report")
        _, error = done.communicate(timeout=100)
        assert done.returncode == 0, error
        assert (out / "metrics.csv").read_text().count("\n") == 2


STEPS = """
import time
import ghmdet.engine.train as at
real = at.Trainer._step
def step(*given):
    done = real(*given)
    print('now', flush=True)
    time.sleep(0.2)
    return done
at.Trainer._step = step
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_to_all_processes_ends_the_training_alike(
    epoch: int, name: str, squares: Path, tmp_path: Path
) -> None:
    """Ctrl-C, `timeout`, a closed terminal and SLURM send it to the processes that read pictures too."""
    out = tmp_path / "run"
    words = ("train", squares, "--out", out, *WORDS, "--epochs=20", "--workers=2", "--val-every=1")
    process = start(*words, before=STEPS, start_new_session=True)
    assert process.stdout is not None
    steps = 0  # of which an epoch has three
    while steps < 3 * epoch - 1:
        line = process.stdout.readline()
        assert line
        steps += "now" in line
    for _ in range(2):  # `timeout` sends it to the command, then to its group
        os.killpg(process.pid, getattr(signal, name))
        time.sleep(0.05)
    _, error = process.communicate(timeout=60)
    *warnings, last = error.splitlines()
    assert last.startswith(f"ghmdet: stopped in epoch {epoch} after step "), error
    assert process.returncode == 130 and not any("Error" in line for line in warnings)
    assert (out / "last.pt").exists()
    with pytest.raises(ProcessLookupError):  # none of the group is left
        os.killpg(process.pid, 0)
