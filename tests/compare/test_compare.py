from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine_cases import TINY
from ghmdet.cli import app, main
from ghmdet.compare import run as engine
from ghmdet.compare.arms import REFUSED, read_arms
from ghmdet.compare.plan import Plan, Run, tuning_parts
from ghmdet.compare.result import spectrum_file
from ghmdet.compare.run import compare, read_grid
from ghmdet.data import AugmentConfig, read_data
from ghmdet.data.fingerprint import scored
from ghmdet.engine.checkpoint import load_checkpoint, save_checkpoint
from ghmdet.engine.context import begin_run
from ghmdet.engine.run_folder import DIVERGED, write_json
from ghmdet.engine.settings import SharedConfig, TrainConfig
from ghmdet.engine.train import Trainer, train
from ghmdet.errors import GhmdetError, PartlyDone
from ghmdet.signals import StopSignal
from ghmdet.spectrum import SpectrumCounts
from small_sets import Picture, write_coco

SHORT = replace(TINY, epochs=1, val_every=None, augment=AugmentConfig(vflip=0.0))


def quiet(line: str) -> None:
    pass


def make_plan(
    data: Path,
    out: Path,
    arms: str = "ce,ghm",
    seeds: int = 2,
    grid: str = "none",
    tune_epochs: int | None = None,
    **other: Any,
) -> Plan:
    """The plan of a comparison, kept in `out`."""
    config = replace(SHORT, **other)
    plan = Plan(
        data=data,
        out=out,
        base=config,
        arms=read_arms(arms, config),
        seeds=range(seeds),
        grid=read_grid(grid),
        tune_epochs=tune_epochs,
    )
    plan.keep(read_data(data, "train"))
    return plan


def judged(plan: Plan, arms: str = "ce,ghm", grid: str = "none", **other: Any) -> dict[str, Any]:
    """What the comparison of a plan comes to."""
    with contextlib.suppress(PartlyDone):
        compare(
            plan.data,
            out=plan.out,
            arms=arms,
            seeds=len(plan.seeds),
            weights_grid=grid,
            config=plan.base,
            **{"say": quiet, **other},
        )
    content: dict[str, Any] = json.loads((plan.out / "comparison.json").read_text())
    return content


def final_runs(plan: Plan, arm: str, weight: float) -> list[Run]:
    return [plan.run(arm, weight, seed) for seed in plan.seeds]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs are trained in this process, which is faster; the list of those trained."""
    trained = []

    def train_here(
        run: Run, stop: StopSignal, show: Callable[[str], None], heard: Callable[[str], None]
    ) -> str:
        trained.append(run)
        show(str(run))
        try:
            train(run.data, run.out, run.config, resume=True, say=heard)
        except GhmdetError as error:
            return str(error)
        return ""

    monkeypatch.setattr(engine, "train_run", train_here)
    return trained


# ---- arms and commands


def test_arms_by_short_names_and_from_a_file(tmp_path: Path) -> None:
    arms = read_arms("ce, ghm,focal-per-class", TINY)
    assert {name: config.cls_loss for name, config in arms.items()} == {
        "ce": "ce",
        "ghm": "ghm-c",
        "focal-per-class": "focal-per-class",
    }
    assert arms["ghm"] == replace(TINY, cls_loss="ghm")  # the same name for `ghmdet train`
    file = tmp_path / "arms.yaml"
    file.write_text(
        "plain: {cls_loss: ce, cls_weight: 0.2}\nflips: {cls_loss: ghm, hflip: 0, scale: [1, 1.5], epochs: 2}\n"
    )
    augment = replace(TINY.augment, hflip=0, scale=(1, 1.5))
    assert read_arms(str(file), TINY) == {
        "plain": replace(TINY, cls_loss="ce", cls_weight=0.2),
        "flips": replace(TINY, cls_loss="ghm-c", epochs=2, augment=augment),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: {cls_loss: ce}\na: {cls_loss: ghm}", "line 2, column 1"),
        ("a: {cls_loss: ce, cls_loss: ghm}", "'cls_loss' is given twice"),
        ("a: {cls_los: ce}", "arm 'a': Unknown option: --cls-los. Did you mean --cls-loss?"),
        ("a: {hflp: 0}", "Did you mean --hflip?"),
        ("a: {cls_loss: gmh}", "did you mean 'ghm-c'?"),
        ("a: {epochs: ten}", '--epochs: unable to convert "ten" into int'),
        ("a: {lr: fast}", '--lr: unable to convert "fast" into float'),
        ("a: {scale: 2}", "--scale requires 2 positional arguments"),
        ("a: {scale: [1, 2, 3]}", "Unused Tokens: ['3']"),
        ("a: {size: 96.5}", '--size: unable to convert "96.5" into int'),
        ("a: {model: nanno}", "arm 'a': unknown model 'nanno': did you mean 'nano'?"),
        ("a: {lr: -1}", "arm 'a': --lr -1"),
        ("a: {lr: {b: 1}}", "--lr: unable to convert"),
        ("a: {seed: 1}", "arm 'a': 'seed' must be the same for all arms"),
        ("a: {cls_weight: 0}", "give one above 0"),
        ("../a: {cls_loss: ce}", "arm '../a'"),
        ("- ce", "write each arm as"),
        ("a: [", "not YAML"),
        ("{}", "names no arm"),
    ],
)
def test_a_mistake_in_an_arm_is_named(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "arms.yaml"
    file.write_text(content)
    with pytest.raises(GhmdetError, match=re.escape(said)):
        read_arms(str(file), TINY)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ("ce,gmh", "--arms 'gmh': unknown class loss 'gmh': did you mean 'ghm-c'?"),
        ("ce,ce", "there twice"),
        (",", "no arm"),
        ("no.yaml", "cannot be read"),
    ],
)
def test_a_mistake_in_the_names_is_named(arms: str, said: str) -> None:
    with pytest.raises(GhmdetError, match=re.escape(said)):
        read_arms(arms, TINY)


def test_a_command_gives_the_settings_back() -> None:
    config = TrainConfig(
        size=96,
        cls_weight=0.1 / 3,
        weights="a folder/x.pt",
        lr=1e-5,
        augment=replace(TINY.augment, hflip=0.0, scale=(1.0, 1.5)),
        workers=0,
        epochs=14,
        drops=(8, 11),
        tensorboard=True,
    )
    run = Run("arm", Path("my data"), Path("x"), config, tuning=False)
    command = shlex.split(shlex.join(run.command))
    _, bound, _ = app.parse_args(command, exit_on_error=False, print_error=False)
    assert bound.arguments["config"] == config
    assert bound.arguments["resume"] is True
    assert bound.args == (Path("my data"),)


# ---- pairing and tuning


def test_arms_of_one_seed_start_from_the_same_weights_and_see_the_same_batches(
    squares: Path, tmp_path: Path
) -> None:
    plan = make_plan(squares, tmp_path / "c", arms="ce,ghm,ohem-per-class")
    starts, batches = [], []
    for arm in plan.arms:
        run = final_runs(plan, arm, 0.1)[1]
        trainer = Trainer(begin_run(run.data, run.out, run.config, say=quiet))
        starts.append({name: value.clone() for name, value in trainer.model.named_parameters()})
        batches.append(list(trainer.data.loader)[:2])
    for weights, seen in zip(starts[1:], batches[1:], strict=True):
        assert weights.keys() == starts[0].keys()
        assert all(torch.equal(value, weights[name]) for name, value in starts[0].items())
        for (images, targets), (first_images, first_targets) in zip(seen, batches[0], strict=True):
            assert all(map(torch.equal, images, first_images))
            assert [one["image_id"] for one in targets] == [one["image_id"] for one in first_targets]


def test_tuning_holds_out_a_quarter_of_every_class(squares: Path, tmp_path: Path) -> None:
    plan = make_plan(squares, tmp_path, grid="0.1,0.2")
    train_part = read_data(squares, "train")
    fit, held_out = read_data(plan.tuning_file, "train"), read_data(plan.tuning_file, "val")
    assert (len(fit.records), len(held_out.records)) == (9, 3)
    assert fit.classes == held_out.classes == train_part.classes
    names = [{record.path for record in part.records} for part in (fit, held_out)]
    assert not names[0] & names[1]
    assert all(path.is_file() for path in names[0] | names[1])
    for record in fit.records:
        (same,) = (one for one in train_part.records if one.image_id == record.image_id)
        assert np.array_equal(record.boxes, same.boxes)
        assert record.path.samefile(same.path)
    again = [part.records.image_ids.tolist() for part in tuning_parts(train_part)]
    assert again == [[record.image_id for record in part.records] for part in (fit, held_out)]


def test_pictures_that_look_alike_are_not_both_trained_on_and_held_out(tmp_path: Path) -> None:
    pictures = [
        Picture(f"{scene}_{frame}.png", boxes=[(scene % 3, 5, 5, 25, 35)])
        for scene in range(8)
        for frame in range(3)
    ]
    write_coco(tmp_path, pictures)
    for one in pictures:  # the frames of a scene are one picture
        first = tmp_path / "images" / f"{one.name[0]}_0.png"
        (tmp_path / "images" / one.name).write_bytes(first.read_bytes())
    parts = tuning_parts(read_data(tmp_path, "train"))
    scenes = [{record.path.name[0] for record in part.records} for part in parts]
    assert not scenes[0] & scenes[1] and len(scenes[0]) + len(scenes[1]) == 8
    for part in parts:
        assert set(part.records.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("boxes", [[[(0, 5, 5, 25, 35)]], [[(0, 5, 5, 25, 35)], [], [], []]])
def test_too_few_pictures_to_hold_some_out_are_named_with_the_mend(
    tmp_path: Path, boxes: list[list[tuple[int, float, float, float, float]]]
) -> None:
    write_coco(tmp_path, [Picture(f"{i}.png", boxes=own) for i, own in enumerate(boxes)])
    with pytest.raises(GhmdetError, match="give --weights-grid none"):
        tuning_parts(read_data(tmp_path, "train"))


@pytest.mark.parametrize("change", ["a box", "a class", "a picture", "none", "an older plan"])
def test_arms_that_are_added_see_the_labels_that_the_others_saw(
    squares: Path, tmp_path: Path, change: str
) -> None:
    copy, out = tmp_path / "set", tmp_path / "c"
    shutil.copytree(squares, copy)
    make_plan(copy, out, arms="ce")
    file = copy / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    if change == "a box":
        first["bbox"][0] += 1
    elif change == "a class":
        first["category_id"] = 3 - first["category_id"]
    file.write_text(json.dumps(content))
    if change == "a picture":
        Image.new("RGB", (96, 72)).save(copy / "images" / "train_0.png")
    if change == "an older plan":
        plan = json.loads((out / "plan.json").read_text())
        del plan["digest of the training pictures"]
        (out / "plan.json").write_text(json.dumps(plan))
    if change in ("none", "an older plan"):
        make_plan(copy, out, arms="ce,ghm")
        return
    with pytest.raises(
        GhmdetError, match="the training pictures or labels have changed since: give another --out"
    ):
        make_plan(copy, out, arms="ce,ghm")


def test_the_number_of_runs_and_their_length_are_said_before_they_begin(
    squares: Path, tmp_path: Path, in_process: list[Run]
) -> None:
    (tmp_path / "arms.yaml").write_text(
        "free: {cls_loss: ce}\nfixed: {cls_loss: ce, cls_weight: 0.3, epochs: 9}\n"
    )
    plan = make_plan(squares, tmp_path / "c", arms=str(tmp_path / "arms.yaml"), grid="0.1,0.2", seeds=3)
    assert plan.describe(1000) == (
        "runs to make: 2 to choose weights, epochs: 1, or about 187 steps each; 6 to judge, epochs: 1 to 9, or about"
        " 250 to 2250 steps each; more where a best weight lies at the edge of the grid; the time they take is"
        " said after the first steps"
    )
    said: list[str] = []
    plan = make_plan(squares, tmp_path / "d", arms="ce", seeds=1)
    judged(plan, "ce", say=said.append)
    runs = [i for i, line in enumerate(said) if line.startswith("[1/1]")]
    assert said.index(
        "runs to make: 1 to judge, epochs: 1, or about 3 steps each; the time they take is said after the first steps"
    ) < min(runs)


def test_the_first_run_says_how_long_all_will_take(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(squares, tmp_path / "c", grid="0.1,0.2,0.4", tune_epochs=2, epochs=60)
    ended = plan.stand("ce").missing[0]
    end(ended, 0.1)
    assert "; of these 1 is done" in plan.describe(100)
    shutil.rmtree(ended.out)
    said, trained = list[str](), list[Run]()

    def trains(run: Run, stop: StopSignal, show: Any, heard: Callable[[str], None]) -> str:
        end(run, 0.5 if run.config.cls_weight == 0.2 else 0.1)
        heard(f"about {('1 min 15 s', '8.2 s', '121 min')[len(trained) % 3]} to go: 9 steps of 8 s, AP after")
        trained.append(run)
        return ""

    monkeypatch.setattr(engine, "train_run", trains)
    assert engine._make_runs(plan, said.append) == {} and len(trained) == 10
    assert "; of these 10 are done" in plan.describe(100)
    line, again = (line for line in said if " to go: " in line)
    # Six of 2 epochs on three quarters of the pictures, and four of 60 on all: 166 times the first.
    assert line == f"{trained[0]}: about 1 min 15 s to go: 9 steps of 8 s; all 10 runs to go about 207 min"
    first, *others = sorted(trained, key=lambda run: run.tuning)
    assert again.startswith(f"{first}: about ") and "; all 7 runs to go about " in again
    for words, whole in (("8.2 s", "34 s"), ("121 min", "502 min")):
        said.clear()
        engine.foretell(first, said.append, f"about {words} to go: 9 steps", others=others)
        assert said[-1].endswith(f"; all 10 runs to go about {whole}")
    assert said


def test_what_is_chosen_for_one_arm_alone_is_said_with_its_name(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enough(plan: Plan, pictures: int) -> str:
        raise GhmdetError("enough")

    monkeypatch.setattr(Plan, "describe", enough)
    (tmp_path / "arms.yaml").write_text("own: {batch_size: 12}\nsame: {cls_loss: ce}\n")
    said: list[str] = []
    with pytest.raises(GhmdetError, match="enough"):
        compare(
            squares,
            out=tmp_path / "c",
            arms=str(tmp_path / "arms.yaml"),
            config=SharedConfig(batch_size=1),
            say=said.append,
        )
    assert said == [
        "134 epochs, for 12 training pictures (--epochs gives another)",
        "own: 300 epochs, for 12 training pictures (--epochs gives another)",
    ]


def test_help_lists_what_a_comparison_takes_and_nothing_that_it_refuses() -> None:
    shown = {
        name: {
            one.name
            for one in app[name].assemble_argument_collection(parse_docstring=True).filter_by(show=True)
        }
        for name in ("train", "compare")
    }
    refused = {f"--{name.replace('_', '-')}" for name in REFUSED}
    assert refused < shown["train"]
    of_one_run = {"--resume", "--report", "--recipe", "--accept-changed-data"}
    assert shown["train"] - shown["compare"] == refused | of_one_run


def end(run: Run, AP: float | None) -> None:
    """Leave in a run's folder what a run that is over leaves there."""
    run.out.mkdir(parents=True)
    write_json(run.out / "run.json", {})
    if AP is None:
        (run.out / DIVERGED).write_text("the loss is not finite\n")
    else:
        (run.out / "metrics.csv").write_text(
            f"step,epoch,seconds,memory,AP,AP50,AP75,APs,APm,APl\n3,{run.config.epochs},60,500,{AP},,,,,\n"
        )


@pytest.mark.parametrize(
    ("best_weight", "settled", "tried", "at_edge"),
    [
        (0.1, 0.1, [0.05, 0.1, 0.2], False),
        (0.3, 0.4, [0.05, 0.1, 0.2, 0.4, 0.8], False),
        (0.03, 0.025, [0.0125, 0.025, 0.05, 0.1, 0.2], False),
        (100.0, 1.6, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6], True),
    ],
)
def test_a_grid_grows_until_its_best_weight_is_bracketed(
    squares: Path, tmp_path: Path, best_weight: float, settled: float, tried: list[float], at_edge: bool
) -> None:
    plan = make_plan(squares, tmp_path, grid="0.05,0.1,0.2")
    while plan.stand("ce").weight is None:
        for run in plan.stand("ce").missing:
            assert run.tuning
            assert run.config.cls_weight is not None
            end(run, 0.5 - 0.1 * abs(np.log10(run.config.cls_weight / best_weight)))
    standing = plan.stand("ce")
    assert standing.weight == pytest.approx(settled)
    assert list(standing.grid) == pytest.approx(tried)
    assert standing.at_edge is at_edge
    assert standing.missing == standing.runs == tuple(final_runs(plan, "ce", standing.weight))
    assert [run.config.seed for run in standing.runs] == [0, 1]


def test_a_weight_that_diverges_is_worse_than_any_and_equal_ones_leave_the_middle(
    squares: Path, tmp_path: Path
) -> None:
    plan = make_plan(squares, tmp_path, arms="ce,ghm", grid="0.1,0.2,0.4")
    for run, AP in zip(plan.stand("ce").missing, (0.0, 0.0, 0.0), strict=True):
        end(run, AP)
    assert plan.stand("ce").weight == 0.2
    for run, diverged_AP in zip(plan.stand("ghm").missing, (0.1, 0.2, None), strict=True):
        end(run, diverged_AP)
    assert plan.stand("ghm").grid == {0.1: 0.1, 0.2: 0.2, 0.4: None}
    assert plan.stand("ghm").weight == 0.2


def test_an_arm_fails_where_every_weight_diverges_and_a_fixed_weight_is_not_tuned(
    squares: Path, tmp_path: Path
) -> None:
    (tmp_path / "arms.yml").write_text("free: {cls_loss: ce}\nfixed: {cls_loss: ce, cls_weight: 0.3}\n")
    plan = make_plan(squares, tmp_path / "c", arms=str(tmp_path / "arms.yml"), grid="0.1,0.2")
    assert plan.stand("fixed").weight == 0.3
    assert plan.stand("fixed").missing == tuple(final_runs(plan, "fixed", 0.3))
    for run in plan.stand("free").missing:
        end(run, None)
    assert plan.stand("free").failed == "every weight of the grid diverged, first: the loss is not finite"
    assert plan.stand("free").missing == ()


def test_more_seeds_and_arms_may_join_but_other_settings_may_not(squares: Path, tmp_path: Path) -> None:
    make_plan(squares, tmp_path / "c", arms="ce", seeds=1)
    make_plan(squares, tmp_path / "c", arms="ghm,ce", seeds=3, workers=1)
    with pytest.raises(GhmdetError, match=r"lr 0\.01 \(there 0\.001\): give another --out"):
        make_plan(squares, tmp_path / "c", arms="ce", lr=0.01)
    with pytest.raises(GhmdetError, match=r"weights grid \[0\.1\] \(there None\)"):
        make_plan(squares, tmp_path / "c", arms="ce", grid="0.1")
    (tmp_path / "arms.yaml").write_text("ce: {cls_loss: ce, box_loss: asl1}")
    with pytest.raises(GhmdetError, match=r"arm 'ce': box_loss asl1 \(there giou\)"):
        make_plan(squares, tmp_path / "c", arms=str(tmp_path / "arms.yaml"))
    plan = json.loads((tmp_path / "c" / "plan.json").read_text())
    others = {name: value for name, value in plan["settings"].items() if name != "weight_decay"}
    (tmp_path / "c" / "plan.json").write_text(json.dumps(plan | {"settings": others | {"weight_decay": 0.5}}))
    with pytest.raises(GhmdetError, match=r"\(there 0\.5\)"):
        make_plan(squares, tmp_path / "c", arms="ce")
    (tmp_path / "c" / "plan.json").write_text(json.dumps(plan | {"settings": others}))  # it has come since
    make_plan(squares, tmp_path / "c", arms="ce")
    with pytest.raises(GhmdetError, match=r"weight_decay 0\.5 \(there 0\.02\)"):
        make_plan(squares, tmp_path / "c", arms="ce", weight_decay=0.5)
    with pytest.raises(GhmdetError, match="holds something else"):
        make_plan(squares, squares)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 0}, "--seeds 0"),
        ({"grid": "0,1"}, "weights above 0"),
        ({"grid": "low"}, "weights above 0"),
        ({"grid": "0.1,nan"}, "weights above 0"),
        ({"tune_epochs": 0}, "--tune-epochs 0"),
        ({"split": "train"}, "--split train: the arms are trained on it"),
        ({"cls_loss": "ce"}, "--cls-loss ce: the arms are the losses: give --arms"),
        ({"val_every": 1}, "--val-every 1: a comparison judges the last epoch"),
        ({"patience": 2}, "--patience 2: a comparison judges the last epoch"),
        ({"epochs": None, "budget": "1m"}, "--budget 1m: as many epochs as fit"),
        ({"model": "nanno"}, "did you mean 'nano'?"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_before_any_work(
    squares: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    given = {name: options.pop(name) for name in ("seeds", "split", "tune_epochs") if name in options}
    given["weights_grid"] = options.pop("grid", "none")
    with pytest.raises(GhmdetError, match=re.escape(said)):
        compare(squares, out=tmp_path / "c", config=replace(SHORT, **options), **given)
    assert not (tmp_path / "c").exists()


# ---- the whole


def test_a_comparison_from_grid_to_result(
    squares: Path, tmp_path: Path, in_process: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arms.yaml").write_text(
        "ghm: {cls_loss: ghm}\nce: {cls_loss: ce, cls_weight: 0.2}\n"
        "wild: {cls_loss: ce, cls_weight: 1.0e+9, lr: 1000, warmup: 0, clip_norm: 1.0e+9}\n"
    )
    out = tmp_path / "c"
    plan = make_plan(squares, out, arms=str(tmp_path / "arms.yaml"), grid="0.1,0.2,0.4")
    result = judged(plan, str(tmp_path / "arms.yaml"), "0.1,0.2,0.4")

    ghm, ce, wild = (result["arms"][name] for name in ("ghm", "ce", "wild"))
    assert ghm["weight"] in (0.1, 0.2, 0.4) or len(ghm["grid"]) > 3
    assert ghm["grid"].keys() >= {"0.1", "0.2", "0.4"}
    assert (ce["weight"], ce["grid"]) == (0.2, None)
    assert "not finite" in wild["failed"]
    for name, arm in (("ghm", ghm), ("ce", ce)):
        assert len(arm["AP"]["values"]) == 2
        for seed, value in enumerate(arm["AP"]["values"]):
            folder = out / f"runs/final/{name}/weight{arm['weight']:g}-seed{seed}/val"
            scored = json.loads((folder / "metrics.json").read_text())
            assert value == pytest.approx(scored["AP"], abs=1e-6)
            for one in ("red", "blue"):
                by_class = arm["per_class"][one]["AP"]["values"][seed]
                assert by_class == pytest.approx(scored["per_class"][one]["AP"], abs=1e-6)
        assert arm["AP"]["mean"] == pytest.approx(np.mean(arm["AP"]["values"]))
        assert arm["cost"]["minutes"] > 0
        assert arm["cost"]["memory"] > 100
        assert sum(arm["spectrum"]["objects"]) > 0
    difference = ce["difference"]
    assert ghm["difference"] is None
    assert difference["mean"] == pytest.approx(ce["AP"]["mean"] - ghm["AP"]["mean"])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert 0 <= difference["probability_better"] <= 1
    assert result["made"]["versions"]["torch"]
    page = (out / "comparison.md").read_text()
    assert re.search(r"^\| ce +\| 0\.2 +\| 0\.", page, re.MULTILINE)
    assert "'wild' failed" in page
    assert (out / "comparison_ap.png").stat().st_size > 5000
    assert (out / "comparison_spectra.png").stat().st_size > 5000

    # The tuning never saw the judged part, and the judged weights are the last.
    tuned, final = (
        [run for run in in_process if run.tuning is tuning and run.arm == "ghm"] for tuning in (True, False)
    )
    assert {run.data for run in tuned} == {plan.tuning_file}
    assert all(run.config.val_every == run.config.epochs for run in final)
    # Again: nothing is trained or detected twice; the failed arm's other seed is not tried.
    made = len(in_process)
    predictions = out / "runs/final/ce/weight0.2-seed0/val/predictions.json"
    before = predictions.stat().st_mtime_ns
    assert plan.commands() == []
    assert judged(plan, str(tmp_path / "arms.yaml"), "0.1,0.2,0.4")["arms"] == result["arms"]
    assert len(in_process) == made
    assert [run.arm for run in in_process].count("wild") == 1
    assert predictions.stat().st_mtime_ns == before
    monkeypatch.chdir(tmp_path)  # another spelling of the paths is no other data
    other = replace(plan, data=Path(os.path.relpath(squares)), out=Path(os.path.relpath(out)))
    assert judged(other, str(tmp_path / "arms.yaml"), "0.1,0.2,0.4")["arms"] == result["arms"]
    assert predictions.stat().st_mtime_ns == before
    said: list[str] = []
    (tmp_path / "one.yaml").write_text("ce: {cls_loss: ce, cls_weight: 0.2}")
    one = judged(plan, str(tmp_path / "one.yaml"), "0.1,0.2,0.4", say=said.append)
    assert one["arms"].keys() == {"ce"}
    assert "not in this result, though trained here: ghm, wild (name them in --arms, too)" in said
    # What `ghmdet val` left there of another checkpoint is not taken for the judged one's.
    write_json(predictions, [])
    kept = predictions.with_name("metrics.json")
    write_json(kept, json.loads(kept.read_text()) | {"checkpoint": str(predictions.parents[1] / "best.pt")})
    assert judged(plan, str(tmp_path / "arms.yaml"), "0.1,0.2,0.4")["arms"] == result["arms"]
    # What is damaged of it is made anew.
    (spectrum,) = (out / "runs/final/ghm").glob("*-seed0/val/spectrum-*.npz")
    for file in (kept, predictions, spectrum):
        for content in ("[]", "{", "x"):
            file.write_text(content)
            assert judged(plan, str(tmp_path / "arms.yaml"), "0.1,0.2,0.4")["arms"] == result["arms"]


@pytest.mark.parametrize("change", ["nothing", "a box", "a picture", "one more", "ids", "weights"])
def test_an_arm_is_judged_anew_where_the_pictures_or_labels_are_others(
    squares: Path, tmp_path: Path, in_process: list[Run], change: str
) -> None:
    data = tmp_path / "set"
    shutil.copytree(squares, data)
    plan = make_plan(data, tmp_path / "c", arms="ce", seeds=1)
    judged(plan, "ce")
    (run,) = final_runs(plan, "ce", 0.1)
    kept = run.out / "val" / "predictions.json"
    before, (spectrum,) = kept.stat().st_mtime_ns, kept.parent.glob("spectrum*.npz")
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    if change == "a box":
        content["annotations"][0]["bbox"][0] += 1
    elif change == "one more":
        content["images"].insert(0, {"id": 99, "file_name": "train_0.png", "width": 96, "height": 72})
    elif change == "ids":
        for image in content["images"]:
            image["id"] += 100
        for one in content["annotations"]:
            one["image_id"] += 100
    file.write_text(json.dumps(content))
    if change == "a picture":
        Image.new("RGB", (96, 72)).save(data / "images" / content["images"][0]["file_name"])
    if change == "weights":
        state = dict(load_checkpoint(run.out / "last.pt"))
        state["model"] = {name: value * 1.01 for name, value in state["model"].items()}
        save_checkpoint(run.out / "last.pt", state)
    said: list[str] = []
    judged(plan, "ce", say=said.append)
    assert (kept.stat().st_mtime_ns == before) is (change == "nothing")
    assert [spectrum] == [*kept.parent.glob("spectrum*.npz")] or change != "nothing"
    assert spectrum.exists() is (change == "nothing")
    assert any("judged anew: what" in line for line in said) is (change != "nothing")
    ids = {one["id"] for one in content["images"]}
    assert {one["image_id"] for one in json.loads(kept.read_text())} <= ids


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_finished_run_that_lost_its_last_save_is_named_with_the_mend(
    squares: Path, tmp_path: Path, in_process: list[Run], damage: str
) -> None:
    plan = make_plan(squares, tmp_path / "c", arms="ce", seeds=1)
    judged(plan, "ce")
    (run,) = final_runs(plan, "ce", 0.1)
    last = run.out / "last.pt"
    whole = last.read_bytes()
    last.unlink()
    if damage == "cut":
        last.write_bytes(whole[:999])
    said: list[str] = []
    with pytest.raises(GhmdetError, match=rf"last\.pt.*: remove {run.out}, and the same command trains it"):
        judged(plan, "ce", say=said.append)
    assert not any("judged anew" in line for line in said)


def test_a_finished_run_that_lost_its_last_ap_is_named_with_the_mend(
    squares: Path, tmp_path: Path, in_process: list[Run]
) -> None:
    plan = make_plan(squares, tmp_path / "c", arms="ce", seeds=1)
    judged(plan, "ce")
    (run,) = final_runs(plan, "ce", 0.1)
    (run.out / "metrics.csv").unlink()
    said: list[str] = []
    with pytest.raises(GhmdetError):
        judged(plan, "ce", say=said.append)
    assert any(f"the last AP is not in its metrics.csv: remove {run.out}, and" in line for line in said)


@pytest.mark.parametrize("epochs", [1, 12])
def test_an_arm_that_learnt_nothing_is_said_on_the_page_and_by_the_exit_status(
    squares: Path, tmp_path: Path, in_process: list[Run], capsys: pytest.CaptureFixture[str], epochs: int
) -> None:
    out, failed = tmp_path / "c", epochs == 1
    words = ["--size=96", "--batch-size=4", "--device=cpu", "--precision=fp32", "--weights=none", "--ema=.9"]
    words += [
        "--arms=ce",
        "--seeds=1",
        "--weights-grid=none",
        "--lr=.001",
        f"--epochs={epochs}",
        f"--out={out}",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(squares), *words])
    assert ended.value.code == int(failed)
    told = "'ce': 1 of 1 run came to nothing. ce, weight 0.1, seed 0: This run has learnt nothing: AP .00"
    there = capsys.readouterr()
    for text in (there.out, (out / "comparison.md").read_text()):
        assert (told in text) is failed
    assert there.err.startswith("ghmdet: of ce it says little: ") is failed
    (arm,) = json.loads((out / "comparison.json").read_text())["arms"].values()
    assert (arm["unlearnt"] is not None) is failed


def test_classes_are_told_by_name_and_a_sure_difference_has_a_narrow_interval(
    squares: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    file = data / "annotations" / "instances_val.json"
    truth = json.loads(file.read_text())
    for record in truth["annotations"]:  # the judged part numbers the classes otherwise
        record["category_id"] = 3 - record["category_id"]
    truth["categories"] = [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
    file.write_text(json.dumps(truth))
    plan = make_plan(data, tmp_path / "c")
    nothing = SpectrumCounts.empty(("red", "blue"), (8,))
    part = read_data(data, "val", classes=("red", "blue"))
    for arm, classes in zip(plan.arms, ([2], [1, 2]), strict=True):
        found = [
            {key: record[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
            for record in truth["annotations"]
            if record["category_id"] in classes
        ]
        for run in final_runs(plan, arm, 0.1):
            end(run, 0.1)
            write_json(run.out / "val" / "predictions.json", found)
            about = {"checkpoint": str(run.out / "last.pt"), "data": str(data), "split": "val"}
            write_json(
                run.out / "val" / "metrics.json", about | {"digest": scored(part), "checkpoint_digest": ""}
            )
            nothing.save(spectrum_file(run, "val", scored(part)))
    arms = judged(plan)["arms"]
    assert arms["ce"]["per_class"]["red"]["AP"]["values"] == pytest.approx([1, 1])
    assert arms["ce"]["per_class"]["blue"]["AP"]["values"] == [0, 0]
    assert arms["ghm"]["per_class"]["blue"]["difference"]["mean"] == pytest.approx(1)
    difference = arms["ghm"]["difference"]
    assert [difference[key] for key in ("mean", "low", "high")] == pytest.approx([0.5] * 3)
    assert difference["probability_better"] == 1


def test_one_seed_says_that_intervals_are_over_images_only_and_a_failed_first_arm_leaves_no_differences(
    squares: Path, tmp_path: Path, in_process: list[Run]
) -> None:
    said: list[str] = []
    plan = make_plan(squares, tmp_path / "c", seeds=1)
    end(final_runs(plan, "ce", 0.1)[0], None)
    result = judged(plan, say=said.append)
    assert result["statistics"]["over"] == "images only: one seed"
    assert result["arms"]["ghm"]["AP"]["std"] is None
    assert result["arms"]["ghm"]["difference"] is None
    assert "One seed says nothing of another: give --seeds 3 or more." in "\n".join(said)
    assert "'ce' failed, so no differences are taken from it" in "\n".join(said)


def test_commands_listed_and_run_elsewhere_are_taken_as_done(squares: Path, tmp_path: Path) -> None:
    plan = make_plan(squares, tmp_path / "c", arms="ghm", seeds=2)
    listed: list[str] = []
    compare(
        squares,
        out=plan.out,
        arms="ghm",
        seeds=2,
        weights_grid="none",
        list_commands=True,
        config=SHORT,
        say=listed.append,
    )
    first, second = listed
    assert first.startswith(f"ghmdet train {squares} --out ")
    subprocess.run([sys.executable, "-m", *shlex.split(first)], check=True, capture_output=True, cwd=tmp_path)
    assert plan.commands() == [second]


def test_a_run_that_another_process_trains_is_waited_for(squares: Path, tmp_path: Path) -> None:
    (run,) = make_plan(squares, tmp_path / "c", arms="ghm", seeds=1, epochs=30).stand("ghm").missing
    holding = "import sys; from ghmdet.files import hold\nwith hold(sys.argv[1]): print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", holding, run.out], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    stop, shown, said = StopSignal(), list[str](), list[str]()
    heard = partial(engine.foretell, run, said.append, aloud=False)

    def show(about: str) -> None:
        shown.append(about)
        if "is waited for" in about:
            other.communicate(b"\n")
        stop.asked = stop.asked or (run.out / "run.json").exists()

    assert "--resume continues" in engine.train_run(run, stop, show, heard)
    assert len(said) == 1 and re.search(rf"waiting for another process: .*process {other.pid} on ", said[0])
    assert "--out" not in said[0]
    assert "another process trains it, which is waited for" in shown[0] and "epoch" in shown[-1]


def test_a_plan_that_was_cut_off_is_gone_on_with_and_a_damaged_one_is_named(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[Path]()

    def write(path: Path, value: Any) -> None:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write_json(path, value)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr("ghmdet.compare.plan.write_json", write)
        make_plan(squares, tmp_path / "c", grid="0.1,0.2")
    assert len(written) == 3
    plan = make_plan(squares, tmp_path / "c", grid="0.1,0.2")
    whole = plan.tuning_file.read_text()
    assert len(plan.commands()) == 4
    for content in (
        "",
        whole[:99],
        "[]",
        whole.replace(str(squares), "/gone"),
    ):  # and as a set that was moved
        plan.tuning_file.write_text(content)
        make_plan(squares, tmp_path / "c", grid="0.1,0.2")
        assert plan.tuning_file.read_text() == whole
    for content in ("", "{", "[]", '{"settings": 5}', '{"settings": {}, "arms": {"ce": 3}}'):
        (tmp_path / "c" / "plan.json").write_text(content)
        with pytest.raises(GhmdetError, match=r"plan\.json: damaged: copy it back, or give another --out"):
            make_plan(squares, tmp_path / "c", grid="0.1,0.2")


def test_an_interrupt_saves_the_run_and_the_same_command_continues_it(squares: Path, tmp_path: Path) -> None:
    plan = make_plan(squares, tmp_path / "c", arms="ghm", seeds=1, epochs=30)
    (run,) = plan.stand("ghm").missing

    def stop_after_steps(about: str) -> None:
        log = run.out / "log.csv"
        stop.asked = stop.asked or (log.exists() and log.read_text().count("\n") > 2)

    stop, heard = StopSignal(), list[str]()
    reason = engine.train_run(run, stop, stop_after_steps, heard.append)
    assert "--resume continues" in reason
    assert any(line.startswith("nothing to resume in ") for line in heard)  # an older library may warn first
    assert f"the run's folder is {run.out}" in heard
    state = torch.load(run.out / "last.pt", weights_only=True)["training"]["place"]
    assert 0 < state["step"] < 90
    assert plan.commands() == [shlex.join(["ghmdet", *run.command])]


def test_no_arm_asks_whether_pictures_may_be_upside_down(squares: Path, tmp_path: Path) -> None:
    said: list[str] = []
    compare(
        squares,
        out=tmp_path / "c",
        arms="ce",
        config=replace(TINY, val_every=None),
        list_commands=True,
        weights_grid="none",
        say=said.append,
    )
    assert said and all("--vflip 0.0" in line for line in said)
