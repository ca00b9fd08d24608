from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine_cases import TINY, Interrupted
from ghmdet.engine import train as engine
from ghmdet.engine.checkpoint import load_checkpoint, save_checkpoint
from ghmdet.engine.context import begin_run
from ghmdet.engine.loss_log import NonFiniteLoss
from ghmdet.engine.run_folder import default_folder, provenance
from ghmdet.engine.train import Trainer, train
from ghmdet.errors import CheckpointError, DataError, GhmdetError
from ghmdet.spectrum import SpectrumCounts


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_run_folder_says_how_it_was_made(run: Path) -> None:
    names = {
        "best.pt",
        "last.pt",
        "log.csv",
        "metrics.csv",
        "metrics.json",
        "curves.png",
        "batch.jpg",
        "run.json",
        "spectrum.npz",
    }
    assert names == {entry.name for entry in run.iterdir()}
    made = json.loads((run / "run.json").read_text())
    assert made["arguments"]["seed"] == 0
    assert made["arguments"]["cls_loss"] == "ghm-c"
    assert made["training_boxes"] == {"red": 12, "blue": 12}
    assert made["versions"]["torch"] == torch.__version__.split("+")[0] or made["versions"]["torch"]
    assert len(rows(run / "log.csv")) == 9
    assert [row["epoch"] for row in rows(run / "metrics.csv")] == ["3"]


def test_a_power_cut_and_a_kill_before_a_save_leave_each_row_once(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    for number, damage in enumerate((b"\0" * 400, b"99,3,", b"\n\n9,3\n\xff\xfe\n")):
        out = tmp_path / f"{number}"
        shutil.copytree(run, out)
        shutil.copy(
            run.with_name("previous.pt"), out / "last.pt"
        )  # killed after the validation, before its save
        for name in ("log.csv", "metrics.csv"):
            with (out / name).open("ab") as file:
                file.write(damage)
        train(squares, out, TINY, resume=True, say=lambda line: None)
        for name in ("log.csv", "metrics.csv"):
            kept, whole = rows(out / name), rows(run / name)
            for row in (*kept, *whole):
                row.pop("seconds", None), row.pop("memory", None)
            assert kept == whole


@pytest.mark.parametrize("damage", ["no head", "cut", "gone"])
def test_rows_that_a_resumed_run_no_longer_has_are_told(
    run: Path, squares: Path, tmp_path: Path, damage: str
) -> None:
    out, said = tmp_path / "run", list[str]()
    shutil.copytree(run, out)
    for name in ("log.csv", "metrics.csv"):
        lines = (run / name).read_text().splitlines(keepends=True)
        (out / name).write_text("".join(lines[1:] if damage == "no head" else lines[:-1]))
        if damage == "gone":
            (out / name).unlink()
    train(squares, out, TINY, resume=True, say=said.append)
    last = 8 if damage == "cut" else 0
    for file, what in (("log.csv", f"step {last} until step 9"), ("metrics.csv", "epoch 0 until epoch 3")):
        assert any(str(out / file) in line and what in line for line in said), said
    assert len(rows(out / "log.csv")) == last


def test_rows_that_are_gone_from_the_middle_are_told(run: Path, squares: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", list[str]()
    shutil.copytree(run, out)
    train(squares, out, TINY, resume=True, say=said.append)
    assert not any("its rows" in line for line in said)
    lines = (out / "log.csv").read_text().splitlines(keepends=True)
    (out / "log.csv").write_text("".join([*lines[:3], *lines[5:]]))
    train(squares, out, TINY, resume=True, say=said.append)
    assert (
        f"Warning: {out / 'log.csv'}: 2 of its rows until step 9 are missing; the run goes on all the same"
        in said
    )


def test_a_run_without_a_folder_gets_the_next_of_its_data_and_resumes_the_last(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "squares-7").mkdir(parents=True)
    for other in ("squares-8x", "other-9", "squares-big-3"):
        (tmp_path / "runs" / other).mkdir()
    assert default_folder(squares.parent / "new", resume=True) == Path("runs/new-1")
    file = squares / "annotations" / "instances_val.json"
    assert default_folder(file, resume=False) == default_folder(squares, resume=False)
    name, said = squares.name, list[str]()
    for folder, resume in ((f"runs/{name}-1", False), (f"runs/{name}-2", False), (f"runs/{name}-2", True)):
        train(squares, config=replace(TINY, epochs=1), resume=resume, say=said.append)
        assert said.count(f"the run's folder is {folder}") == 1 + resume
        assert (tmp_path / folder / "best.pt").exists()
    assert not (tmp_path / "runs" / f"{name}-3").exists()


def test_the_command_in_the_run_can_be_given_to_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "my data", "--scale", "0.5", "it's"]
    for program, name in (
        ("/usr/bin/ghmdet", "ghmdet"),
        ("/x/ghmdet/__main__.py", "ghmdet"),
        ("a.py", "a.py"),
    ):
        monkeypatch.setattr(sys, "argv", [program, *words])
        assert shlex.split(provenance({})["command"]) == [name, *words]


def test_loss_falls(run: Path) -> None:
    losses = [float(row["loss"]) for row in rows(run / "log.csv")]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_process_can_train_in_one_precision_after_another(squares: Path, run: Path, tmp_path: Path) -> None:
    for precision in ("bf16", "fp32"):
        train(
            squares, tmp_path / precision, replace(TINY, epochs=1, precision=precision), say=lambda line: None
        )
    rounded, exact = (float(rows(tmp_path / name / "log.csv")[0]["loss"]) for name in ("bf16", "fp32"))
    assert exact == float(rows(run / "log.csv")[0]["loss"])
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


def test_a_run_made_before_best_anchors_goes_on_with_its_own_anchors_and_thresholds(
    squares: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    state = load_checkpoint(run / "last.pt")
    assert state["config"].pop("best_anchors") == 9
    state["config"]["anchor_base"] = state["training"]["arguments"]["anchor_base"] = 2.5
    state["training"]["arguments"]["out"] = str(tmp_path / "run")
    save_checkpoint(tmp_path / "run" / "last.pt", state)
    resumed = Trainer(begin_run(squares, tmp_path / "run", TINY, resume=True, say=lambda line: None))
    assert (resumed.model.config.best_anchors, resumed.model.config.anchor_base) == (0, 2.5)
    assert (resumed.average.model.config.best_anchors, resumed.average.model.config.anchor_base) == (0, 2.5)


def test_interrupted_run_continues_to_the_same_numbers(squares: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt, match="--resume continues"):
        Interrupted(begin_run(squares, out, TINY, say=lambda line: None)).fit()
    assert load_checkpoint(out / "last.pt")["training"]["place"]["batch"] == 2
    train(squares, out, TINY, resume=True, say=lambda line: None)
    assert rows(out / "log.csv") == rows(run / "log.csv")
    one, other = (SpectrumCounts.load(folder / "spectrum.npz") for folder in (run, out))
    for name in ("pictures", "examples", "gradient", "boxes", "box_gradient"):
        assert (getattr(one, name) == getattr(other, name)).all(), name
    whole, resumed = (load_checkpoint(folder / "last.pt") for folder in (run, out))
    pairs = [
        (state["training"]["model"], state["training"]["average"]["model"]) for state in (whole, resumed)
    ]
    for before, after in zip(*pairs, strict=True):
        for name, value in before.items():
            assert torch.equal(value, after[name]), name


def test_a_run_stopped_after_its_last_step_is_validated_when_it_is_resumed(
    squares: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupted, "stop_after", 9)
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt, match="in epoch 3 after step 9"):
        Interrupted(begin_run(squares, out, TINY, say=lambda line: None)).fit()
    assert not rows(out / "metrics.csv")
    done = train(squares, out, TINY, resume=True, say=lambda line: None)
    assert (done.step, done.epoch, done.validated_epoch) == (9, 3, 3)
    assert rows(out / "log.csv") == rows(run / "log.csv")
    assert [row["AP"] for row in rows(out / "metrics.csv")] == [
        row["AP"] for row in rows(run / "metrics.csv")
    ]
    assert len(SpectrumCounts.load(out / "spectrum.npz").pictures) == 3
    assert (out / "best.pt").exists()


def test_resume_refuses_other_settings_and_a_new_run_refuses_an_old_folder(squares: Path, run: Path) -> None:
    with pytest.raises(GhmdetError, match=r"lr 0\.5 \(the run has 0\.001\)"):
        train(squares, run, replace(TINY, lr=0.5), resume=True)
    with pytest.raises(GhmdetError, match="holds a run already: add --resume"):
        train(squares, run, TINY)


@pytest.mark.parametrize("resume", [True, False])
def test_a_new_run_does_not_write_over_what_no_run_wrote_nor_into_the_data(
    squares: Path, run: Path, tmp_path: Path, resume: bool
) -> None:
    shutil.copy(run / "best.pt", tmp_path / "best.pt")
    start = replace(TINY, weights=str(tmp_path / "best.pt"))
    with pytest.raises(GhmdetError, match=r"holds best\.pt but no run, and would replace it: give another"):
        train(squares, tmp_path, start, resume=resume)
    (tmp_path / "best.pt").rename(tmp_path / "metrics.json")
    with pytest.raises(GhmdetError, match=r"holds metrics\.json but no run"):
        train(squares, tmp_path, TINY, resume=resume)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.json"]
    part = squares / "annotations" / "instances_train.json"
    assert part.is_file()
    for data in (squares, squares / "annotations" / "..", part):
        with pytest.raises(GhmdetError, match="is the data set's own folder: give another"):
            train(data, squares, TINY, resume=resume)


@pytest.mark.parametrize("part", ["place", "optimizer", "average", "rng"])
def test_a_training_state_of_another_version_is_named_with_the_version_that_made_it(
    squares: Path, run: Path, tmp_path: Path, part: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    made = json.loads((run / "run.json").read_text())
    made["versions"]["ghmdet"] = "0.0.7"
    (tmp_path / "run" / "run.json").write_text(json.dumps(made))
    state = load_checkpoint(run / "last.pt")
    for value in ({"another": 1}, None):
        training = {name: kept for name, kept in state["training"].items() if name != part}
        training |= {part: value} if value else {}
        save_checkpoint(tmp_path / "run" / "last.pt", {**state, "training": training})
        with pytest.raises(CheckpointError, match=r"last\.pt: .* made by ghmdet 0\.0\.7, this is "):
            train(squares, tmp_path / "run", TINY, resume=True, say=lambda line: None)


@pytest.mark.parametrize(("precision", "mend"), [("fp32", ""), ("bf16", " or --precision fp32,")])
def test_non_finite_loss_names_the_pictures_and_what_may_help_and_keeps_the_checkpoint(
    squares: Path, tmp_path: Path, precision: str, mend: str
) -> None:
    class Diverging(Trainer):
        def _step(self, *batch: object) -> bool:  # type: ignore[override]
            if self.progress.step == 4:
                with torch.no_grad():
                    next(self.model.head.parameters()).fill_(float("nan"))
            return super()._step(*batch)  # type: ignore[arg-type]

    config = replace(TINY, precision=precision)
    with pytest.raises(
        NonFiniteLoss,
        match=r"step 5 .*pictures of the batch: train_\d+\.png, .*last good checkpoint, --weights .*last\.pt, with a "
        rf"lower --lr, --cls-weight or --box-weight,{mend} and another --out$",
    ):
        Diverging(begin_run(squares, tmp_path / "x", config, say=lambda line: None)).fit()
    state = load_checkpoint(tmp_path / "x" / "last.pt")
    assert state["training"]["place"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["model"].values() if value.is_floating_point())


@pytest.mark.parametrize(("val_every", "epochs"), [(1, 3), (2, 4)])
def test_training_stops_early_when_nothing_improves_and_stays_stopped(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_every: int, epochs: int
) -> None:
    monkeypatch.setattr(engine, "detect", lambda *_, **__: [])
    config = replace(TINY, epochs=9, val_every=val_every, patience=2, lr=1e-9)
    for resume in (False, True):
        progress = train(squares, tmp_path / "x", config, resume=resume, say=lambda line: None)
        assert progress.epoch == epochs
        assert (tmp_path / "x" / "best.pt").exists()


def test_stop_is_granted_at_the_end_of_an_epoch_when_losses_are_read_rarely(
    squares: Path, tmp_path: Path
) -> None:
    class Rarely(Trainer):
        def _step(self, *batch: object) -> bool:  # type: ignore[override]
            self.budget.interval = 20
            if self.progress.step == 1:
                os.kill(os.getpid(), 15)
            return super()._step(*batch)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt, match="after step 3"):
        Rarely(begin_run(squares, tmp_path / "x", TINY, say=lambda line: None)).fit()
    assert load_checkpoint(tmp_path / "x" / "last.pt")["training"]["place"]["epoch"] == 1
    assert len(rows(tmp_path / "x" / "log.csv")) == 3


def test_resume_refuses_other_data(squares: Path, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "squares"
    shutil.copytree(squares, copy)
    annotations = copy / "annotations" / "instances_train.json"
    annotations.write_text(annotations.read_text().replace('"blue"', '"green"'))
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(
        GhmdetError, match=r"cannot resume on other classes: red, green \(the run has red, blue\)"
    ):
        train(copy, tmp_path / "run", TINY, resume=True, say=lambda line: None)


def test_what_changed_in_the_data_is_named_and_accepted_only_when_asked_for(
    squares: Path, tmp_path: Path
) -> None:
    copy, out = tmp_path / "squares", tmp_path / "run"
    shutil.copytree(squares, copy)
    short = replace(TINY, epochs=1, val_every=1)
    train(copy, out, short, say=lambda line: None)
    train(copy, out, short, resume=True, say=lambda line: None)
    shutil.move(copy, tmp_path / "moved")  # another place is no other data
    train(tmp_path / "moved", out, short, resume=True, say=lambda line: None)
    moved = tmp_path / "moved"
    labels = {part: moved / "annotations" / f"instances_{part}.json" for part in ("train", "val")}
    whole = {part: file.read_text() for part, file in labels.items()}

    def moved_box(truth: dict[str, Any]) -> None:
        truth["annotations"][3]["bbox"][0] += 1

    def fewer_labels(truth: dict[str, Any]) -> None:
        truth["annotations"].pop()

    def renamed(truth: dict[str, Any]) -> None:
        truth["images"][0]["file_name"] = "train_0.png"

    def with_other_ids(truth: dict[str, Any]) -> None:
        for one in (*truth["categories"], *truth["annotations"]):
            one["id" if "name" in one else "category_id"] += 10

    def in_another_order(truth: dict[str, Any]) -> None:
        truth["images"].reverse()

    labelled = "1 with other labels, or the same in another order"
    for part, change, said in (
        ("train", moved_box, rf"pictures of train: {labelled} \(train_1\.png\): put it back"),
        ("val", fewer_labels, rf"pictures of val: {labelled} \(val_3\.png\): put it back"),
        ("train", in_another_order, "pictures of train: listed in another order: put it back"),
        # Whether pictures may be upside down is asked of every so many.
        ("val", in_another_order, "pictures of val: listed in another order: put it back"),
        ("train", with_other_ids, "the category ids of train: put it back"),
        ("val", renamed, r"pictures of val: 1 new \(train_0\.png\), 1 gone: put it back"),
    ):
        truth = json.loads(whole[part])
        change(truth)
        labels[part].write_text(json.dumps(truth))
        with pytest.raises(GhmdetError, match=said):
            train(moved, out, short, resume=True, say=lambda line: None)
        labels[part].write_text(whole[part])
    os.utime(moved / "images" / "val_2.png", (1, 1))  # as another picture under the name
    with pytest.raises(
        GhmdetError, match=r"1 whose file has another size or time \(val_2\.png\): .*--accept-changed"
    ):
        train(moved, out, short, resume=True, say=lambda line: None)
    assert "changed_data" not in json.loads((out / "run.json").read_text())
    train(moved, out, short, resume=True, accept_changed_data=True, say=lambda line: None)
    what = ["pictures of val: 1 whose file has another size or time (val_2.png)"]
    assert json.loads((out / "run.json").read_text())["changed_data"] == [{"step": 3, "what": what}]


@pytest.mark.parametrize("lost", ["fingerprints", "budget", "spectrum"])
def test_a_run_of_an_earlier_version_that_kept_too_little_is_named_with_its_version(
    lost: str, squares: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    state = dict(load_checkpoint(tmp_path / "run" / "last.pt"))
    whole = state["training"]
    without = {name: value for name, value in whole.items() if name != lost}
    told = {name: rows[:, 1:] for name, rows in whole["fingerprints"].items()}  # with another meaning
    for training in (without, whole | {"fingerprints": told}):
        save_checkpoint(tmp_path / "run" / "last.pt", state | {"training": training})
        with pytest.raises(CheckpointError, match=r"cannot be resumed here: it was made by ghmdet \d"):
            train(squares, tmp_path / "run", TINY, resume=True, say=lambda line: None)


def test_a_missing_validation_picture_is_met_before_training(squares: Path, tmp_path: Path) -> None:
    copy = tmp_path / "squares"
    shutil.copytree(squares, copy)
    (copy / "images" / "val_2.png").unlink()
    with pytest.raises(GhmdetError, match=r"val_2\.png"):
        train(copy, tmp_path / "x", TINY, say=lambda line: None)
    assert not (tmp_path / "x").exists()


def test_validation_pictures_that_are_trained_on_are_said_aloud(squares: Path, tmp_path: Path) -> None:
    copy, said = tmp_path / "squares", list[str]()
    shutil.copytree(squares, copy)
    train(copy, tmp_path / "apart", replace(TINY, epochs=1), say=said.append)
    assert not any("Warning" in line for line in said)
    shutil.copy(copy / "images" / "train_3.png", copy / "images" / "val_2.png")
    train(copy, tmp_path / "mixed", replace(TINY, epochs=1), say=said.append)
    (warning,) = (line for line in said if line.startswith("Warning"))
    assert warning.startswith("Warning: 1 of 4 validation pictures are trained on, too (val_2.png):")


@pytest.mark.parametrize("damage", ["cut", "other bytes", "another size"])
def test_a_validation_picture_that_cannot_be_read_is_met_before_training(
    squares: Path, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "squares"
    shutil.copytree(squares, copy)
    picture = copy / "images" / "val_2.png"
    whole = picture.read_bytes()
    if damage == "another size":
        Image.new("RGB", (96, 73)).save(picture)
    else:
        picture.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"no picture")
    with pytest.raises(DataError, match=r"val_2\.png: (unreadable image|size mismatch)"):
        train(copy, tmp_path / "x", TINY, say=lambda line: None)
    assert not (tmp_path / "x").exists()


def test_accumulation_steps_once_for_several_batches(squares: Path, tmp_path: Path) -> None:
    progress = train(
        squares,
        tmp_path / "x",
        replace(TINY, epochs=1, batch_size=2, accumulate=3, val_every=1),
        say=lambda line: None,
    )
    assert progress.step == 2
    log = rows(tmp_path / "x" / "log.csv")
    assert [row["step"] for row in log] == ["1", "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls_loss": "gmh-c"}, "did you mean 'ghm-c'"),
        ({"box_loss": "giuo"}, "did you mean 'giou'"),
        ({"model": "nanno"}, "did you mean 'nano'"),
        ({"val_split": "valdation"}, "val"),
        ({"val_split": "train"}, "training and validation would both be 'train'"),
        ({"accumulate": 9}, "fewer than"),
        ({"weights": "nowhere.pt"}, "nowhere.pt"),
        ({"weights": "atuo"}, "did you mean 'auto'"),
        ({"precision": "bf61"}, "did you mean 'bf16'"),
    ],
)
def test_bad_settings_fail_before_any_work(
    squares: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(GhmdetError, match=message):
        train(squares, tmp_path / "x", replace(TINY, **change), say=lambda line: None)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_two_ranks_follow_one_process(squares: Path, run: Path, tmp_path: Path) -> None:
    # Batch norm is frozen, as from any pretrained start; a small learning rate keeps rounding from growing in Adam.
    config = replace(TINY, weights=str(run / "best.pt"), lr=1e-4)
    train(squares, tmp_path / "one", config, say=lambda line: None)
    arguments = [
        f"--{name.replace('_', '-')}={getattr(config, name)}"
        for name in (
            "size",
            "weights",
            "epochs",
            "batch_size",
            "val_every",
            "precision",
            "device",
            "lr",
            "ema",
        )
    ]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "ghmdet",
    ]
    subprocess.run(
        [*launcher, "train", str(squares), "--out", str(tmp_path / "two"), *arguments],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    one, two = ([float(row["loss"]) for row in rows(tmp_path / name / "log.csv")] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)
    alone, ranks = (SpectrumCounts.load(tmp_path / name / "spectrum.npz") for name in ("one", "two"))
    assert ranks.pictures.tolist() == alone.pictures.tolist() == [12, 12, 12]
    assert (ranks.examples.sum(-1) == alone.examples.sum(-1)).all()  # g itself is rounded otherwise
    assert np.abs(ranks.examples - alone.examples).sum() < 0.01 * alone.examples.sum()
    np.testing.assert_allclose(ranks.gradient.sum(), alone.gradient.sum(), rtol=1e-3)
