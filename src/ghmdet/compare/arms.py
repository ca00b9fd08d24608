"""The arms of a comparison: training settings by name, and settings as words of a command line."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import CycloptsError, Parameter

from ghmdet.engine.checkpoint import MAY_CHANGE, every_setting
from ghmdet.engine.settings import TrainConfig
from ghmdet.errors import GhmdetError
from ghmdet.keys import TypedLoader
from ghmdet.options import parser

REFUSED = {
    "cls_loss": "the arms are the losses: give --arms",
    "val_every": "a comparison judges the last epoch of every run",
    "patience": "a comparison judges the last epoch of every run",
    "budget": "as many epochs as fit are not the same for all arms: give --epochs",
}
"""Options that `ghmdet compare` refuses, and why; `SharedConfig` hides them."""
SHARED = ("seed", "train_split", "val_split", "tensorboard")
"""Settings that are the same for all arms."""


def read_arms(given: str, base: TrainConfig) -> dict[str, TrainConfig]:
    """The settings of the arms named in `given`: class losses with commas between them, or a YAML file.

    A YAML file holds `NAME: {cls_loss: focal, cls_weight: 0.2, hflip: 0}`: the options of `ghmdet train`, `_` for `-`.
    The class loss's weight is chosen from the grid where it is None.

    Raises:
        GhmdetError: an unknown loss or setting (with the nearest known one), a value of the wrong kind, an arm that is
            there twice, no arm.
    """
    if Path(given).suffix.lower() in (".yaml", ".yml"):
        arms, where = _load(given), f"{given}: arm"
    else:
        names = [name.strip() for name in given.split(",") if name.strip()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise GhmdetError(f"--arms: '{twice[0]}' is there twice: name each arm once")
        arms, where = {name: {"cls_loss": name} for name in names}, "--arms"
    if not arms:
        raise GhmdetError(f"--arms {given!r} names no arm: name class losses such as ce,ghm or a YAML file")
    return {name: _read_arm(name, own, base, f"{where} '{name}'") for name, own in arms.items()}


def _load(file: str) -> dict[str, dict[str, Any]]:
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=TypedLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise GhmdetError(f"{file}: cannot be read ({error}): give a YAML file of arms") from None
    except yaml.YAMLError as error:
        raise GhmdetError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not all(isinstance(own, dict) for own in content.values()):
        raise GhmdetError(f"{file}: write each arm as NAME: {{cls_loss: ce, ...}}")
    return {str(name): {str(key): value for key, value in own.items()} for name, own in content.items()}


def _read_arm(name: str, own: dict[str, Any], base: TrainConfig, where: str) -> TrainConfig:
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise GhmdetError(f"{where}: name it with letters, digits, '-', '_', '+' and '.'")
    for key in own.keys() & {*SHARED, *REFUSED} - {"cls_loss"}:
        raise GhmdetError(f"{where}: '{key}' must be the same for all arms: leave it out")
    app = parser()
    app.default(_settings)
    try:
        config: TrainConfig = app(words(settings(base) | own), exit_on_error=False, print_error=False)
        config.network()
        config.losses()
    except (CycloptsError, GhmdetError) as error:
        raise GhmdetError(f"{where}: {' '.join(str(error).split())}") from None
    if config.cls_weight == 0:
        raise GhmdetError(f"{where}: a class-loss weight of 0 trains no classes: give one above 0")
    return config


def _settings(*, config: Annotated[TrainConfig | None, Parameter(name="*")] = None) -> TrainConfig:
    return config or TrainConfig()


def settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that differ from the defaults, by name, those of the augmentation among them."""
    defaults = every_setting(asdict(TrainConfig()))
    return {name: value for name, value in every_setting(asdict(config)).items() if value != defaults[name]}


def kept(config: TrainConfig) -> dict[str, Any]:
    """What a plan keeps of settings, as JSON gives it back: those at their defaults too, which may change."""
    values = {k: value for k, value in every_setting(asdict(config)).items() if k not in MAY_CHANGE}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def words(given: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line; None stands for the default.

    >>> words({"cls_loss": "ce", "size": None, "scale": (1.0, 1.5), "tensorboard": True})
    ['--cls-loss', 'ce', '--scale', '1.0', '1.5', '--tensorboard']
    """
    found = []
    for name, value in given.items():
        if value is not None:
            values = value if isinstance(value, list | tuple) else [] if value is True else [value]
            found += [f"--{name}".replace("_", "-"), *map(str, values)]
    return found
