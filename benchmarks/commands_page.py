"""Runs each command on a small synthetic set and writes what it printed to docs/commands.md.

python benchmarks/commands_page.py
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
HEAD = """# Commands and what they print

The commands with their real output, on a small synthetic set some of whose labels are wrong on purpose (drawn by
`python benchmarks/commands_page.py`, which runs them in a few minutes); only `demo`, which does several of them in one,
is not among them. `ghmdet COMMAND --help` lists the options of each.
The exit status is 0 where all went well, 1 where the command did its work and has bad news (errors in the data, a
picture that could not be read, a detector that learnt nothing), and 2 where it could not do its work.

"""
ACCEPTED = 5
SESSION = (
    ("This machine", "doctor"),
    ("Data", "data synth scenes --images 200 --wrong-label-share 0.1"),
    ("", "data check scenes"),
    ("", "data split scenes parts --val-share 0.3"),
    ("Training", "train scenes --size 256 --epochs 12 --no-report"),
    ("", "train scenes --size 256 --epochs 12 --cls-loss focal --no-report"),
    ("Judging", "val runs/scenes-1/best.pt scenes"),
    ("", "report runs/scenes-1 runs/scenes-2 --out report.html"),
    ("", "spectrum runs/scenes-1/best.pt scenes --out spectrum"),
    (
        "Detecting",
        "predict runs/scenes-1/best.pt 'scenes/images/val_*.jpg' --annotations VAL --out predictions",
    ),
    ("", "score VAL predictions/predictions.json"),
    ("", "export runs/scenes-1/best.pt --out scenes.onnx"),
    ("Wrong labels", "audit scenes --checkpoint runs/scenes-1/best.pt --split val --out audit"),
    ("", "audit apply audit --out mended"),
    ("Comparing losses", "compare scenes --arms ghm-c,ce --seeds 2 --epochs 4 --out compared --list"),
    ("Made sets", "data thin scenes rare --keep car=0.2"),
    ("", "data spoil scenes spoiled --share 0.2 --kinds class"),
)


def accept(audit: Path) -> None:
    """Write what the page exports where the first suspicions are accepted."""
    told = json.loads((audit / "audit.json").read_text(encoding="utf-8"))
    decisions = [{"id": one["id"], "decision": "accept"} for one in told["items"][:ACCEPTED]]
    (audit / "decisions.json").write_text(json.dumps({"audit": told["audit"], "decisions": decisions}))


def main() -> None:
    """Run the session in a folder of its own and write the page."""
    text = HEAD
    with tempfile.TemporaryDirectory() as home:
        for title, short in SESSION:
            line = short.replace("VAL", "scenes/annotations/instances_val.json")
            if title:
                text += f"## {title}\n\n"
            if "audit apply" in line:
                accept(Path(home, "audit"))
                text += f"The page exports `decisions.json`; here it accepts the first {ACCEPTED}.\n\n"
            words = [sys.executable, "-m", "ghmdet", *shlex.split(line)]
            environment = os.environ | {"COLUMNS": "110", "NO_COLOR": "1"}
            ran = subprocess.run(
                words, cwd=home, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
            )
            shown = re.sub(r"[^\n]*\r(?!\n)", "", ran.stdout).replace(str(Path(home).resolve()) + "/", "")
            shown = shown.replace(sys.prefix, ".venv").strip()
            print(f"{ran.returncode}  ghmdet {line}\n{shown}\n", flush=True)
            status = f"\n(exit status {ran.returncode})" if ran.returncode else ""
            text += f"```text\n$ ghmdet {line}\n{shown}{status}\n```\n\n"
    PAGE.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
