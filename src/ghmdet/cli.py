"""The command line: it only parses and calls."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter

from ghmdet.cli_data import console, data_app
from ghmdet.clock import BEGAN
from ghmdet.engine.settings import TrainConfig
from ghmdet.errors import GhmdetError

app = App(
    name="ghmdet",
    help="Gradient-harmonized one-stage object detection, for badly imbalanced training data.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # what it says, how to go on, is for `main` to print
    default_parameter=Parameter(negative_iterable=()),
)
app.command(data_app)


@app.command
def train(
    data: Path,
    /,
    *,
    out: Path,
    resume: Annotated[bool, Parameter(negative=())] = False,
    report: bool = True,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 - frozen
) -> None:
    """Train a detector on a data set (COCO, Pascal VOC or YOLO).

    Parameters
    ----------
    data
        Folder of the data set, or a COCO annotations file.
    out
        Folder for the run: checkpoints, curves, logs, how it was made.
    resume
        Continue the run in `out` exactly where it stopped.
    report
        End with `report.html`: what the run did, saw and gets wrong.
    """
    from ghmdet.engine.train import train as run

    def report_on(folder: Path) -> None:
        from ghmdet.report.page import write_report

        write_report([folder], device=config.device, say=console.print)

    figures: dict[str, Any] = {}
    if config.tensorboard:
        from ghmdet.report.figures import draw_examples, draw_shares

        figures = {"examples": draw_examples, "shares": draw_shares}
    run(
        data,
        out,
        config,
        resume=resume,
        say=console.print,
        began=BEGAN,
        figures=figures,
        report=report_on if report else None,
    )


@app.command
def val(
    checkpoint: Path,
    data: Path,
    /,
    *,
    split: str = "val",
    out: Path | None = None,
    batch_size: int = 16,
    workers: int = 0,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Score a checkpoint on a part of a data set; writes metrics.json and predictions.json.

    Parameters
    ----------
    checkpoint
        A `best.pt` or `last.pt` of a training run.
    data
        Folder of the data set, or a COCO annotations file.
    split
        Part of the data set to score.
    out
        Folder to write; by default `SPLIT/` beside the checkpoint.
    batch_size
        Pictures at a time.
    workers
        Processes that read pictures.
    device
        auto, cpu or cuda.
    precision
        auto, fp32, bf16 or fp16.
    """
    from ghmdet.engine.evaluate import validate

    validate(
        checkpoint,
        data,
        split,
        out,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        say=console.print,
    )


@app.command
def predict(
    checkpoint: Path,
    pictures: Path,
    /,
    *,
    out: Path,
    annotations: Path | None = None,
    threshold: float = 0.3,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Detect on a picture or a folder; writes predictions.json (COCO results) and drawn pictures.

    Parameters
    ----------
    checkpoint
        A `best.pt` or `last.pt` of a training run.
    pictures
        A picture, or a folder that is searched with its subfolders.
    out
        Folder to write.
    annotations
        COCO annotations whose image ids the results should carry, so that `ghmdet score` can compare them.
    threshold
        The least score of a box that is drawn; predictions.json keeps them all.
    batch_size
        Pictures at a time.
    device
        auto, cpu or cuda.
    precision
        auto, fp32, bf16 or fp16.
    """
    from ghmdet.engine.predict import predict as run

    results = run(
        checkpoint,
        pictures,
        out,
        annotations=annotations,
        threshold=threshold,
        batch_size=batch_size,
        device=device,
        precision=precision,
    )
    drawn = sum(result["score"] >= threshold for result in results)
    console.print(f"{len(results)} boxes, {drawn} of them scored at least {threshold:g} and drawn: {out}")


@app.command
def score(annotations: Path, results: Path, /, *, json: Path | None = None) -> None:
    """Score a COCO results file against COCO annotations.

    Parameters
    ----------
    annotations
        COCO annotations (the truth).
    results
        COCO results (what was detected).
    json
        File to write the figures to, as JSON.
    """
    from ghmdet.evaluation.score import score as run

    metrics = run(annotations, results)
    console.print(metrics.table())
    if json:
        metrics.save_json(json)


@app.command
def spectrum(
    checkpoint: Path,
    data: Path,
    /,
    *,
    out: Path,
    split: str = "val",
    workers: int = 0,
    device: str = "auto",
) -> None:
    """Show which examples pull at a detector: gradient-norm spectra, figures, and what they say (docs/spectrum.md).

    Parameters
    ----------
    checkpoint
        A `best.pt` or `last.pt` of a training run.
    data
        Folder of the data set, or a COCO annotations file.
    out
        Folder to write: spectrum.npz, spectrum.json, and each figure as SVG and PNG.
    split
        Part of the data set to measure on.
    workers
        Processes that read pictures.
    device
        auto, cpu or cuda.
    """
    from ghmdet.report.spectrum import write_spectrum

    write_spectrum(checkpoint, data, split, out, device=device, workers=workers, say=console.print)


@app.command
def report(
    runs: list[Path],
    /,
    *,
    out: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
) -> None:
    """Write what runs did, saw and get wrong as one HTML page that opens anywhere (docs/report.md).

    Parameters
    ----------
    runs
        Folders of training runs, finished or not; several are put side by side.
    out
        The file; by default report.html in the run's folder, or in the current one for several runs.
    data
        Data set to inspect the best checkpoint on; by default the one it was trained on.
    split
        Part of the data set; by default the one it was validated on.
    device
        auto, cpu or cuda.
    """
    from ghmdet.report.page import write_report

    write_report(runs, out, data=data, split=split, device=device, say=console.print)


@app.command
def compare(
    data: Path,
    /,
    *,
    out: Path,
    arms: str = "ce,ohem,focal,ghm",
    seeds: int = 3,
    split: str = "val",
    weights_grid: str = "0.025,0.05,0.1,0.2,0.4",
    tune_epochs: int | None = None,
    tune_seeds: int = 1,
    list_commands: Annotated[bool, Parameter(name="--list", negative=())] = False,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008 - frozen
) -> None:
    """Train several losses alike on your data and say which are better beyond chance.

    Interrupted, the same command continues; finished runs are never repeated. docs/compare.md says how it judges.

    Parameters
    ----------
    data
        Folder of the data set, or a COCO annotations file.
    out
        Folder for the comparison: its runs, comparison.json, comparison.md and pictures.
    arms
        Class losses with commas between them (ghm is ghm-c), or a YAML file of settings by arm. Differences are taken
        from the first.
    seeds
        Runs of each arm, with seeds from `--seed` on; the same for every arm.
    split
        Part of the data set that the arms are judged on.
    weights_grid
        Weights of the class loss among which each arm chooses on held-out training pictures; none takes each
        loss's own weight.
    tune_epochs
        Epochs of a run of the grid; by default as many as of the others.
    tune_seeds
        Runs of each weight of the grid.
    list_commands
        Only print the training commands that can be run now, one a line, for other hosts; nothing when all are done.
    """
    from ghmdet.compare.run import compare as run
    from ghmdet.compare.run import missing_commands, plan_comparison

    plan = plan_comparison(
        data,
        out,
        config,
        arms=arms,
        seeds=seeds,
        weights_grid=weights_grid,
        tune_epochs=tune_epochs,
        tune_seeds=tune_seeds,
    )
    if list_commands:
        for command in missing_commands(plan):
            console.print(command)
    else:
        run(plan, split, say=console.print)


@app.command
def demo(*, out: Path, seed: int = 0) -> None:
    """Do the main job on a synthetic set, in one to two minutes: data, training with GHM, AP, pictures, report.

    Parameters
    ----------
    out
        Folder for everything it makes; interrupted, the same command goes on there.
    seed
        Seed of the pictures and the training.
    """
    from ghmdet.demo import demo as run

    run(out, seed=seed, say=console.print)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 2."""
    try:
        result: Any = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (GhmdetError, CycloptsError) as error:
        _fail(" ".join(str(error).split()), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(0)
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}", 2)
    except KeyboardInterrupt as stopped:
        _fail(str(stopped) or "stopped", 130)
    _exit(result if isinstance(result, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    print(f"ghmdet: {message}", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> NoReturn:
    if "RANK" in os.environ and "torch" in sys.modules:
        # A rank of torchrun whose process group is taken down by the interpreter aborts now and then
        # ("terminate called without an active exception"); everything is written, so leave without that.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
