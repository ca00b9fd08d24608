"""What a run leaves behind: how it was made, and its numbers as CSV."""

import csv
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np

from ghmdet.data.annotations import load_json
from ghmdet.data.coco import split_name
from ghmdet.data.layout import SPLITS, split_called
from ghmdet.data.tree import ending
from ghmdet.errors import GhmdetError
from ghmdet.files import write_atomic

PACKAGES = ("ghmdet", "torch", "torchvision", "timm", "accelerate", "hotcoco", "numpy", "pillow")

UNFINISHED, FAILED = "unfinished.jsonl", "failed.json"
"""The files in which `ghmdet predict` keeps what is done until all is, and says what could not be read."""
DIVERGED = "diverged.txt"
"""The file that says so of a run whose loss did not stay finite."""


def provenance(arguments: dict[str, Any]) -> dict[str, Any]:
    """How a run is made: command, arguments, versions, machine, git state of the folder it was started in, time."""
    return {
        "command": _command(),
        "arguments": arguments,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "gpus": _gpus()},
        "git": _git_state(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _gpus() -> list[str]:
    import torch  # not above: an exported detector writes its results without it

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def data_name(data: Path) -> str:
    """What a data set is called: its folder's name."""
    return data_folder(data).name


def data_folder(data: Path) -> Path:
    """The folder of a data set that is named by it, or by a file in it, in `annotations` or in the folder of a part."""
    path = data.resolve()
    if not path.is_file():
        return path
    inside = path.parent.name == "annotations" or split_called(path.parent.name) in SPLITS
    return path.parents[1] if inside else path.parent


def default_folders(data: Path, parent: Path = Path("runs")) -> list[Path]:
    """The runs of a data set NAME that named no folder, runs/NAME-N, from the first to the last."""
    pattern = re.compile(rf"{re.escape(data_name(data))}-(\d+)")
    there = {int(match[1]): path for path in parent.glob("*") if (match := pattern.fullmatch(path.name))}
    return [there[number] for number in sorted(there)]


def default_folder(data: Path, *, resume: bool) -> Path:
    """Where a run goes that names no folder: runs/NAME-N, N one above those there; to resume, the last one there."""
    there = default_folders(data)
    if resume and there:
        return there[-1]
    number = int(there[-1].name.rpartition("-")[2]) if there else 0
    return Path("runs") / f"{data_name(data)}-{number + 1}"


def results_folder(run: Path, data: Path, split: str) -> Path:
    """Where a detector's results go that name no folder, `run` being the folder of its checkpoint.

    RUN/SPLIT for the data that the run was trained on. Else RUN/SPLIT-NAME for a data set NAME, RUN/SPLIT-NAME-2 where
    `metrics.json` there is of another data set of that name, and so on.
    """
    arguments = (read_json(run / "run.json") or {}).get("arguments")
    if isinstance(arguments, dict) and same_data(data, arguments.get("data")):
        return run / split
    folder = first = run / f"{split}-{data_name(data)}"
    number = 1
    while not same_data(data, (read_json(folder / "metrics.json") or {}).get("data", data)):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


def same_data(one: Path | str, other: object) -> bool:
    """Whether both name one data set: `other` is what a file says of it, maybe nothing.

    A file that is of one part (train.json), or names the parts (data.yaml), stands for its folder.
    """

    def home(data: Path) -> Path:
        whole = ending(str(data)) != ".json" or split_name(data) in SPLITS
        return data_folder(data) if whole else data.resolve()

    return isinstance(other, str | Path) and home(Path(one)) == home(Path(other))


def require_no_run(out: Path) -> None:
    """Raise GhmdetError where the results of another command would go into the folder of a training."""
    run = out.parent if out.name == "inspection" else out
    if (run / "run.json").is_file():
        raise GhmdetError(
            f"--out {out} is the folder of a training, whose files it could replace: give another"
        )


def require_own(out: Path, command: str) -> None:
    """Raise GhmdetError where the results of `val` or `predict` would replace what is of no such command."""
    require_no_run(out)
    predictions, metrics, unfinished = (
        out / name for name in ("predictions.json", "metrics.json", UNFINISHED)
    )
    try:
        is_val = {"checkpoint", "data", "split"} <= (read_json(metrics) or {}).keys()
    except GhmdetError:
        is_val = _begins(metrics, rb'(\{\n  "checkpoint".*|\0*)')  # damaged
    if command == "predict" and is_val:
        raise GhmdetError(f"--out {out} holds results of `ghmdet val`, which would be replaced: give another")
    own = rb'\[\n(\{"file_name"|\n\]).*', rb"(\[\d.*|\0*)"
    for file, head in zip((predictions, unfinished), own, strict=True):
        if file.is_file() and not _begins(file, head):
            raise GhmdetError(
                f"{file} is of another tool, and would be replaced: move it, or give another --out"
            )
    if command == "val" and not is_val:
        if predictions.is_file() or unfinished.is_file():
            raise GhmdetError(
                f"--out {out} holds results of `ghmdet predict`, which would be replaced: give another"
            )
        if metrics.is_file():
            raise GhmdetError(
                f"{metrics} is not of `ghmdet val`, and would be replaced: move it, or give another --out"
            )
    if command == "predict" and (failed := out / FAILED).is_file() and not _is_failed(failed):
        raise GhmdetError(
            f"{failed} is of another tool, and would be replaced: move it, or give another --out"
        )


def _is_failed(file: Path) -> bool:
    """Whether a file is as `ghmdet predict` says what it could not read: a reason by each picture's name."""
    with suppress(GhmdetError):
        return any(isinstance(reason, str) for reason in (read_json(file) or {}).values())
    return False


def _begins(file: Path, head: bytes) -> bool:
    """Whether the first bytes of a file match a pattern; not where it cannot be read."""
    with suppress(OSError), file.open("rb") as content:
        return bool(re.fullmatch(head, content.read(64), re.DOTALL))
    return False


def note_changed_data(folder: Path, step: int, what: list[str]) -> None:
    """Write into a run's run.json what had changed of its data when it went on after a step, once."""
    made, note = read_json(folder / "run.json") or {}, {"step": step, "what": what}
    made["changed_data"] = [*(one for one in made.get("changed_data", []) if one != note), note]
    write_json(folder / "run.json", made)


def _command() -> str:
    """The words that started this process, as a shell takes them."""
    program = Path(sys.argv[0]).name
    return shlex.join(["ghmdet" if program == "__main__.py" else program, *sys.argv[1:]])


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        return subprocess.check_output(["git", *arguments], text=True, stderr=subprocess.DEVNULL, timeout=10)

    with suppress(OSError, subprocess.SubprocessError):
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain"))}
    return None


class CsvLog:
    """A CSV that grows by rows and can be cut back to a step, so that a resumed run repeats no row."""

    every_step = False
    """Whether each step has a row."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        self.path = path
        self.columns = list(columns)
        self.also: Callable[[dict[str, Any]], None] = lambda row: None
        """Takes each row that is added."""

    def cut_back(self, until: int = 0, column: str = "step") -> str:
        """Begin the file anew, or keep its rows up to and including a value of a column; in words what is missing."""
        kept = [row for row in read_rows(self.path) if int(row[column]) <= until] if until else []
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_atomic(self.path, text.getvalue())
        last, lost = int(kept[-1][column]) if kept else 0, ""
        if last < until:
            came = f"what came after {column} {last} until {column} {until}"
            lost = f"it was damaged or removed, and has nothing of {came}"
        elif self.every_step and (missing := until - len({row[column] for row in kept})):
            lost = f"{missing} of its rows until {column} {until} are missing"
        return f"{self.path}: {lost}; the run goes on all the same" if lost else ""

    def append(self, *rows: dict[str, Any]) -> None:
        """Add rows, which a power cut leaves there; columns that they lack stay empty."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerows(rows)
            file.flush()
            os.fsync(file.fileno())
        for row in rows:
            self.also(row)


def each_row(path: Path) -> Iterator[dict[str, str]]:
    """The whole rows of a run's CSV one by one, by their columns, as text; none where there is no file.

    A power cut can leave half a row, or zeros, at the end. Of a file whose head is damaged no row is whole.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = csv.DictReader(line for line in lines if line.endswith("\n") and "\0" not in line)
        if not {"step", "epoch"} <= {*(rows.fieldnames or ())}:
            return
        for row in rows:
            whole = None not in (*row, *row.values())
            if whole and row["step"].isdecimal() and row["epoch"].isdecimal():
                yield row


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows that `each_row` gives."""
    return list(each_row(path))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """An object from a JSON file, None where there is no file; raises GhmdetError where it is something else."""
    if not path.is_file():
        return None
    value = load_json(path)
    if not isinstance(value, dict):
        raise GhmdetError(f"{path}: not a JSON object: remove it and make it again")
    return value


def coco_results(
    detections: Mapping[str, Any], image_id: int, category_ids: tuple[int, ...]
) -> list[dict[str, Any]]:
    """One picture's detections (boxes [n, 4] xyxy pixels, scores [n], labels [n]) as COCO results (xywh boxes)."""
    boxes, scores, labels = (np.asarray(detections[name]) for name in ("boxes", "scores", "labels"))
    boxes = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 3) for value in box],
            "score": round(certainty, 6),
        }
        for box, label, certainty in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True)
    ]


def write_predictions(path: Path, results: Iterable[Mapping[str, Any]], truth: Mapping[str, Any]) -> int:
    """Write COCO results as JSON, a detection a line, with the names of its picture and class; how many those were.

    truth: COCO annotations, of which only the images and the categories are read.
    """
    images = {
        image["id"]: {key: image[key] for key in ("file_name", "frame") if key in image}
        for image in truth["images"]
    }
    classes = {category["id"]: category["name"] for category in truth["categories"]}
    count = 0

    def write(file: IO[bytes]) -> None:
        nonlocal count
        for one in results:
            names = images[one["image_id"]] | {"category_name": classes[one["category_id"]]}
            line = json.dumps({**names, **one}, ensure_ascii=False)
            # A file's name that is no UTF-8 cannot be written as it is.
            file.write((",\n" if count else "[\n").encode() + line.encode(errors="backslashreplace"))
            count += 1
        file.write(b"\n]\n" if count else b"[\n\n]\n")

    write_atomic(path, write)
    return count
