from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_cases import TINY
from ghmdet.cli import app
from ghmdet.engine.context import begin_run
from ghmdet.engine.optim import warmup_drops
from ghmdet.engine.run_folder import read_rows
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import Trainer, train
from ghmdet.errors import GhmdetError
from ghmdet.recipes import RECIPES, recipe_text

COCO = tuple(name for name in RECIPES if name.startswith("coco"))


def settings(*words: str) -> TrainConfig:
    _, bound, *_ = app.parse_args(["train", "data", *words], exit_on_error=False, print_error=False)
    config = bound.arguments.get("config", TrainConfig())
    assert isinstance(config, TrainConfig)
    return config


@pytest.fixture(scope="module")
def of_80_classes(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`squares` with COCO's number of classes."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / "images").symlink_to(squares / "images")
    for file in (squares / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"] = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
        (root / "annotations" / file.name).write_text(json.dumps(content))
    return root


def test_each_file_is_a_recipe_that_train_lists() -> None:
    files = {path.stem for path in Path(__file__).parents[1].glob("src/ghmdet/recipes/*.yaml")}
    assert files == set(RECIPES)
    (argument,) = (
        each
        for each in app["train"].assemble_argument_collection(parse_docstring=True)
        if "--recipe" in each.names
    )
    assert all(name in argument.parameter.help for name in RECIPES)


def test_options_beside_a_recipe_override_it_and_leave_the_rest() -> None:
    recipe, other = (
        settings("--recipe", "coco_r50_ghm"),
        settings("--lr=.02", "--recipe=coco_r50_ghm", "--hflip", "0"),
    )
    assert (recipe.lr, recipe.augment.hflip) == (0.01, 0.5)
    assert (other.lr, other.augment.hflip) == (0.02, 0.0)
    assert (other.optimizer, other.drops, other.augment.scale) == ("sgd", (8, 11), (1.0, 1.0))
    assert settings() == TrainConfig()


def test_a_recipe_that_is_the_defaults_says_so_before_all_else() -> None:
    same = [name for name in RECIPES if settings("--recipe", name) == TrainConfig()]
    assert same == ["small_data", "long_tail", "noisy_labels"]
    for name in same:
        assert "default" in recipe_text(name).splitlines()[0]


def test_a_recipe_is_printed_when_it_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GhmdetError, match="no such"):
        app(
            ["train", str(tmp_path / "none"), "--recipe", "long_tail"], exit_on_error=False, print_error=False
        )
    assert recipe_text("long_tail") in capsys.readouterr().out


def test_an_unknown_recipe_is_named_with_the_nearest() -> None:
    with pytest.raises(GhmdetError, match="unknown recipe 'long-tail': did you mean 'long_tail'"):
        settings("--recipe", "long-tail")


@pytest.mark.parametrize("name", COCO)
def test_the_rates_on_coco_are_the_articles(name: str) -> None:
    config = settings("--recipe", name)
    assert (config.epochs, config.batch_size, config.optimizer, config.weight_decay) == (14, 16, "sgd", 1e-4)
    assert config.drops is not None
    each = 118_287 // 16  # steps an epoch
    drops = [epoch * each for epoch in config.drops]
    # Warm-up of 500 steps from a third; the ninth and the twelfth epoch begin at a tenth of the rate before.
    wanted = {0: 0.01 / 3, 250: 0.02 / 3, 500: 0.01, 8 * each - 1: 0.01, 8 * each: 1e-3, 11 * each - 1: 1e-3}
    wanted |= {11 * each: 1e-4, 14 * each: 1e-4}
    found = {at: config.lr * warmup_drops(at, 14 * each, config.warmup, drops) for at in wanted}
    assert found == pytest.approx(wanted)
    assert config.lr * warmup_drops(499, 14 * each, config.warmup, drops) < 0.01


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_each_recipe(name: str, of_80_classes: Path, tmp_path: Path) -> None:
    small = (
        "--size",
        "64",
        "--batch-size",
        "2",
        "--weights",
        "none",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    )
    config = settings("--recipe", name, *small)
    trainer = Trainer(begin_run(of_80_classes, tmp_path / "run", config, say=lambda line: None))
    before = [parameter.detach().clone() for parameter in trainer.model.head.parameters()]
    for _, batch in zip(range(2), trainer.data.loader, strict=False):
        assert trainer._step(*batch)
    assert trainer.progress.step == 2
    groups = trainer.optimizer.param_groups
    if name in COCO:
        assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
        assert {group["momentum"] for group in groups} == {0.9}
        assert {group["weight_decay"] for group in groups} == {1e-4}
        assert {group["lr"] for group in groups} == {config.lr}  # so few steps have no warm-up
        trainer.progress.step = 8 * trainer.data.steps_per_epoch
        assert trainer.rate == pytest.approx(0.1)
    after = trainer.model.head.parameters()
    assert all(value.isfinite().all() for value in after)
    assert any(
        not torch.equal(old, new) for old, new in zip(before, trainer.model.head.parameters(), strict=True)
    )


def test_a_run_with_sgd_and_drops_that_was_stopped_continues_to_the_same_numbers(
    squares: Path, tmp_path: Path
) -> None:
    config = replace(TINY, optimizer="sgd", drops=(1,), epochs=2, val_every=2, lr=0.01)

    class Stopped(Trainer):
        def _step(self, *batch: Any) -> bool:
            if self.progress.step == 4:
                raise KeyboardInterrupt
            return super()._step(*batch)

    def column(folder: str, name: str) -> list[str]:
        return [row[name] for row in read_rows(tmp_path / folder / "log.csv")]

    train(squares, tmp_path / "whole", config, say=lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        Stopped(begin_run(squares, tmp_path / "cut", config, say=lambda line: None)).fit()
    train(squares, tmp_path / "cut", config, resume=True, say=lambda line: None)
    assert column("whole", "loss") == column("cut", "loss")
    assert [float(rate) for rate in column("whole", "lr")] == pytest.approx(
        [0.01 / 3, 0.01, 0.01] + [0.001] * 3
    )


@pytest.mark.parametrize(
    "options",
    [
        {"drops": (8, 8)},
        {"drops": (9, 8)},
        {"drops": (8, 14)},
        {"drops": (8,), "epochs": None},
        {"drops": (8,), "budget": "1h"},
    ],
)
def test_drops_that_no_course_has_are_named(options: dict[str, object]) -> None:
    with pytest.raises(GhmdetError, match=r"--drops [89].*: they must be rising epochs"):
        TrainConfig(**({"epochs": 14} | options))  # type: ignore[arg-type]


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(GhmdetError, match="unknown optimizer 'adam': did you mean 'adamw'"):
        TrainConfig(optimizer="adam")
