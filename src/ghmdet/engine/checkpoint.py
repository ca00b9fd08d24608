"""Checkpoints: one file, written atomically, loaded without running code; and which of them a run goes on from."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ghmdet.data import DetectionData, read_data
from ghmdet.data.fingerprint import count_known, differences, fingerprint, labelled
from ghmdet.engine.run_folder import DIVERGED, data_folder, read_json, read_rows
from ghmdet.engine.settings import TrainConfig
from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.files import hold, write_atomic
from ghmdet.models import RetinaNet, model_from_state
from ghmdet.models.weights import is_model_state, read_state

PREVIOUS = "previous.pt"
"""The `last.pt` before the last one, of which a run that has not ended goes on where that one is damaged."""
REPLACED = (
    *("best.pt", "log.csv", "metrics.csv", "metrics.json", "predictions.json", "spectrum.npz"),
    *("batch.jpg", "curves.png", "report.html", "inspection"),
)
"""Files that a run writes, and others have, too."""


def save_checkpoint(path: Path, state: dict[str, Any], *, keep: bool = False) -> None:
    """Write `state` (tensors and plain values) to `path`; a crash leaves the file that was there.

    keep: whether that file stays, as PREVIOUS beside it.
    """
    write_atomic(path, lambda file: torch.save(state, file), keep=path.with_name(PREVIOUS) if keep else None)


def drop_previous(out: Path) -> None:
    """Remove the save before the last one of a run that has ended, unless `last.pt` cannot be read."""
    with suppress(CheckpointError):
        load_checkpoint(out / "last.pt")
        (out / PREVIOUS).unlink(missing_ok=True)


def load_checkpoint(path: Path | str) -> Mapping[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU: a `model_state`, and what stands beside it.

    Raises:
        CheckpointError: there is no such file, or it holds no detector of ghmdet.
    """
    state = read_state(Path(path))
    if not is_model_state(state):
        raise CheckpointError(
            f"{path}: holds no detector of ghmdet: give a best.pt or last.pt that `ghmdet train` wrote"
            " (bare weights of a backbone go to `ghmdet train --weights`)"
        )
    return state


def load_detector(path: Path | str) -> tuple[RetinaNet, tuple[int, ...] | None]:
    """The detector in a checkpoint, in eval mode on the CPU, and the COCO category id of each of its labels.

    Raises:
        CheckpointError: there is no such file, or its detector cannot be built.
    """
    state = load_checkpoint(path)
    try:
        return model_from_state(state), state.get("category_ids")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


MAY_CHANGE = {"data", "out", "workers", "checkpoint_minutes", "tensorboard", "patience", "val_every"}
"""What a resumed run may have otherwise, since the weights do not depend on it."""


@dataclass
class Progress:
    """How far a run has come: `batch` batches into `epoch`, `step` optimizer steps in all, the best AP so far."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_AP: float = -1.0
    best_epoch: int = 0
    validated_epoch: int = 0
    seconds: float = 0.0
    vflip: float | None = None
    """The chance of an upside-down flip that the run found right, once it has asked."""


def run_arguments(data: Path, out: Path, config: TrainConfig) -> dict[str, Any]:
    """All that a run was asked for, as plain values."""
    return {"data": str(data), "out": str(out)} | asdict(config)


def every_setting(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `asdict` gives of the settings, or a run was asked for, with those of the augmentation among the others."""
    augment: Mapping[str, Any] = arguments["augment"]
    return {name: value for name, value in {**arguments, **augment}.items() if name != "augment"}


def as_saved(config: TrainConfig, saved: Mapping[str, Any]) -> TrainConfig:
    """The settings with those that were left open now (None) as the training state `saved` has them."""

    def filled(settings: Any, arguments: Mapping[str, Any]) -> Any:
        return replace(settings, **{k: arguments.get(k) for k, one in vars(settings).items() if one is None})

    arguments = saved["arguments"]
    found: TrainConfig = filled(config, arguments)
    return replace(found, augment=filled(config.augment, arguments.get("augment", {})))


def saved_run(
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    resume: bool,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """The training state that `last.pt` in `out` keeps, its `network`, `classes` and `file`; None for a new run.

    Where `last.pt` is damaged or gone, that of the save before it, which `say` is told.

    Raises:
        GhmdetError: `out` holds a run and `resume` is off, or the run has other settings; `out` is the data set's
            folder, or holds results of something else.
        CheckpointError: neither can be read.
    """
    # Killed in its first validation, a run has no last.pt yet.
    if not can_resume(out) and len(read_rows(out / "metrics.csv")) > 1 and (best := out / "best.pt").exists():
        raise GhmdetError(
            f"{out}: its last.pt is gone, without which the run cannot go on: train on from what it found best in"
            f" another folder: --weights {best}"
        )
    if not resume and (can_resume(out) or (out / "run.json").exists()):
        raise GhmdetError(f"{out} holds a run already: add --resume to continue it, or give another --out")
    if not can_resume(out):
        if not (out / "run.json").exists():
            _require_free(out, data)
        return None
    checkpoint, last = _last_save(out, say)
    training: dict[str, Any] | None = checkpoint.get("training")
    if training is None:
        raise GhmdetError(
            f"{last}: a detector without its training state cannot be resumed; start it by --weights"
        )
    arguments = every_setting(run_arguments(data, out, config))
    try:  # a setting that has come since is as by default
        saved = every_setting(asdict(TrainConfig())) | every_setting(training["arguments"])
        Progress(**training["place"]), [each[:, 2] for each in training["fingerprints"].values()]
        augment = training["arguments"]["augment"]
        gone = [name for name in augment.keys() - arguments if augment[name]]  # one that was off says nothing
        about = {"network": checkpoint["config"], "classes": checkpoint["classes"], "file": str(last)}
        about["category_ids"] = checkpoint.get("category_ids")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _other_version(out) from error
    if gone:
        raise _other_version(out, f"a run with {gone[0]} {augment[gone[0]]}")
    if changed := [
        f"{name} {value} (the run has {saved[name]})"
        for name, value in arguments.items()
        if name not in MAY_CHANGE and value is not None and value != saved[name]
    ]:
        raise GhmdetError(
            f"cannot resume {out} with other settings: {'; '.join(changed)}: leave them as they were, or train on from"
            f" its weights in another folder: --weights {last}"
        )
    return training | about


def _require_free(out: Path, data: Path) -> None:
    """Raise GhmdetError where a new run would write into the data set, or over files that no run wrote."""
    if out.resolve() in (data_folder(data), data.resolve().parent if data.is_file() else data.resolve()):
        raise GhmdetError(f"--out {out} is the data set's own folder: give another")
    if there := next((name for name in REPLACED if (out / name).exists()), ""):
        raise GhmdetError(f"--out {out} holds {there} but no run, and would replace it: give another")


def can_resume(out: Path) -> bool:
    """Whether a folder holds a save that a run can go on from."""
    return (out / "last.pt").exists() or (out / PREVIOUS).exists()


def _last_save(out: Path, say: Callable[[str], None]) -> tuple[Mapping[str, Any], Path]:
    """The last save of a run, and its file: the one before it, which `say` is told, where `last.pt` cannot be read."""
    last, previous = out / "last.pt", out / PREVIOUS
    try:
        return load_checkpoint(last), last
    except CheckpointError as error:
        told = _reason(error)
    try:
        found = load_checkpoint(previous)
    except CheckpointError as error:
        other = _reason(error) if previous.exists() else "no other save is here"
        best = f", from --weights {out / 'best.pt'}" if (out / "best.pt").exists() else ""
        raise CheckpointError(f"{told}; {other}: begin in another folder{best}") from error
    say(f"Warning: {told}. The run goes on from the save before it, {previous}")
    return found, previous


def _reason(error: CheckpointError) -> str:
    return str(error).removesuffix(": copy it again, or give another")


def interrupted(out: Path) -> int | None:
    """After which step a run was stopped before its end; None for any other folder, and while it runs."""
    if not can_resume(out) or (out / DIVERGED).exists():
        return None
    with suppress(GhmdetError, KeyError, OSError, TypeError), hold(out):
        training = _last_save(out, lambda line: None)[0]["training"]
        place, asked = Progress(**training["place"]), training["arguments"]
        over = place.epoch >= (asked["epochs"] or math.inf) or training["budget"]["share"] >= 1
        gave_up = 0 < asked["patience"] <= place.validated_epoch - place.best_epoch
        judged = not place.batch and place.epoch == place.validated_epoch
        return None if judged and (over or gave_up) else place.step
    return None


def trained_on(out: Path, data: DetectionData) -> str | None:
    """That the run in a folder was trained on pictures of `data` with these very labels, in words; else None.

    By file names, sizes, classes and boxes in its last save, so wherever the data set is now, and in whatever format.
    Pictures without objects, which may be any of that name, do not count. Older versions did not save what it takes.
    """
    with suppress(CheckpointError, KeyError, TypeError):
        training = _last_save(out, lambda line: None)[0]["training"]
        if many := count_known(labelled(data), training["learnt"]):
            return (
                f"{many} of these {len(data.records)} pictures were trained on, with these very labels: AP says what"
                " was learnt by heart, not how it does on other pictures."
            )
    return None


def changed_since(out: Path, where: Path | str, data: DetectionData) -> str | None:
    """What has changed of a part `data` of the data set at `where` since the run in a folder read it, in words.

    None where nothing has, where the run read another place or list, and where its last save does not tell.
    """
    with suppress(KeyError, TypeError, ValueError):
        saved = _last_save(out, lambda line: None)[0]
        training, classes = saved["training"], saved["classes"]
        made = (read_json(out / "run.json") or {})["arguments"]
        if Path(where).resolve() == Path(made["data"]).resolve():
            if list(data.classes) != list(classes):  # labels are numbers, by the order of the classes
                data = read_data(where, data.split, classes=classes)
            then = training["fingerprints"][data.split]
            if changed := differences(data, fingerprint(data), then):
                return (
                    f"The data has changed since the run ({changed}): its metrics.csv is of what was there."
                )
    return None


def restore(parts: Mapping[str, Any], saved: Mapping[str, Any], out: Path) -> None:
    """Give each part of a run in `out` its saved state, and PyTorch's generator its own.

    Raises:
        CheckpointError: a state that this version cannot use.
    """
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _other_version(out) from error


def _other_version(out: Path, what: str = "its training state") -> CheckpointError:
    """The error for a run whose training state this version cannot use, saying which version made it."""
    made = json.loads((out / "run.json").read_text())["versions"] if (out / "run.json").exists() else {}
    return CheckpointError(
        f"{out / 'last.pt'}: {what} cannot be resumed here: it was made by ghmdet"
        f" {made.get('ghmdet', 'of an unknown version')}, this is {version('ghmdet')}: resume it with that version, or"
        f" start anew with --weights {out / 'last.pt'}"
    )
