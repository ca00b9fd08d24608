"""Commands that call more than one function: training with its report, and those of `ghmdet data`."""

import os
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ghmdet import STARTED_AT
from ghmdet.data import check_data, make
from ghmdet.data.check import format_problems, has_errors
from ghmdet.engine import train as engine
from ghmdet.engine.checkpoint import can_resume, interrupted
from ghmdet.engine.run_folder import default_folder, default_folders
from ghmdet.engine.settings import TrainConfig
from ghmdet.recipes import recipe_text
from ghmdet.report.advice import failure
from ghmdet.report.figures import draw_examples, draw_shares
from ghmdet.report.page import write_report


def train(
    data: Path,
    /,
    *,
    out: Path | None = None,
    recipe: str | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    accept_changed_data: Annotated[bool, Parameter(negative=())] = False,
    report: bool = True,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
) -> int:
    """Train a detector on a data set (COCO, Pascal VOC, YOLO or LabelMe); exits with 1 if it learnt nothing.

    Args:
        data: Folder of the data set, or its COCO .json or YOLO data.yaml.
        out: Folder for the run: checkpoints, curves, logs, how it was made; by default runs/NAME-1 for a data set
            NAME, runs/NAME-2 and so on.
        recipe: Settings that go together, printed: small_data, long_tail, noisy_labels, coco_r50_ghm or coco_r50_focal;
            options given beside it override them.
        resume: Continue the run in `out`, by default the last one of this data set, exactly where it stopped.
        accept_changed_data: With `--resume`: go on although pictures or labels are not as they were when the run was
            interrupted; `run.json` says so then.
        report: End with `report.html`: what the run did, saw and gets wrong. Without it the exit status says nothing of
            what was learnt, as suits one of many runs.
    """
    config = config or TrainConfig()
    main = os.environ.get("RANK", "0") == "0"
    if main and out is None and not resume:
        for line in unfinished_runs(data):
            print(line)
    out = default_folder(data, resume=resume) if out is None else out
    if main and recipe:
        print(recipe_text(recipe))
    if main and resume and not can_resume(out) and not (out / "best.pt").exists():
        print(f"nothing to resume in {out}: a new run begins")
    if main and config.ohem_ratio != TrainConfig.ohem_ratio and not config.cls_loss.startswith("ohem"):
        print(f"--ohem-ratio {config.ohem_ratio:g} does nothing with --cls-loss {config.cls_loss}")
    reported = []
    engine.train(
        data,
        out,
        config,
        resume=resume,
        accept_changed_data=accept_changed_data,
        started_at=STARTED_AT,
        figures={"examples": draw_examples, "shares": draw_shares},
        make_report=(lambda folder: reported.append(write_report([folder], device=config.device)))
        if report
        else None,
    )
    failed = failure(out) if main else None
    if failed and not reported:  # a report says it too
        print(f"{out}: {failed}")
    return int(failed is not None and report)


def unfinished_runs(data: Path) -> list[str]:
    """A line for each run of a data set that was interrupted since the last finished one: how to go on with it."""
    stopped = (
        (folder, interrupted(folder)) for folder in reversed(default_folders(data)) if can_resume(folder)
    )
    return [
        f"{folder} is unfinished, stopped after step {step}: to go on with it, give the same command with --out"
        f" {shlex.quote(str(folder))} --resume"
        for folder, step in takewhile(lambda one: one[1] is not None, stopped)
    ]


def synth(out: Path, /, *, config: Annotated[make.SynthConfig | None, Parameter(name="*")] = None) -> None:
    """Draw a deterministic set of scenes, with dials for imbalance, hard examples and wrong labels.

    Args:
        out: Folder of the new data set; one that `synth` made before is replaced.
    """
    print(make.synthesize(out, config))


def check(data: Path, /, *, split: str | None = None, each: bool = False) -> int:
    """List the problems of a data set; exits with 1 if any is an error.

    Args:
        data: Folder of the data set, or its COCO .json or YOLO data.yaml.
        split: The one part to check; all parts by default.
        each: A line for each record that is wrong, not one for all of a file that are wrong alike.
    """
    problems = check_data(data, split, say=print)
    print(format_problems(problems, each=each))
    return int(has_errors(problems))
