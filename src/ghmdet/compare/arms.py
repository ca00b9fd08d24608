"""The arms of a comparison: training settings by name, and a run's settings as a command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ghmdet.data.transforms import AugmentConfig
from ghmdet.engine.settings import TrainConfig
from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.models import CLS_LOSSES

SHORT_NAMES = {"ghm": "ghm-c"}
NOT_AN_ARMS = ("seed", "train_split", "val_split", "val_every", "patience", "budget", "tensorboard")
"""Settings that a comparison has for all arms alike, or refuses."""


@dataclass(frozen=True)
class Arm:
    """A name and the settings it trains with; the class loss's weight is chosen from the grid where it is None."""

    name: str
    config: TrainConfig

    def default_weight(self) -> float:
        """The class loss's own weight."""
        return CLS_LOSSES[self.config.cls_loss]


def read_arms(given: str, base: TrainConfig) -> list[Arm]:
    """The arms named in `given`: class losses with commas between them, or a YAML file of settings by arm.

    A YAML file holds `NAME: {cls_loss: focal, cls_weight: 0.2, hflip: 0}`: names of `TrainConfig` and `AugmentConfig`.

    Raises:
        GhmdetError: an unknown loss or setting (with the nearest known one), a value of the wrong kind, an arm that is
            there twice, no arm.
    """
    if Path(given).suffix.lower() in (".yaml", ".yml"):
        arms = [_arm_of_settings(name, settings, base, given) for name, settings in _load(given).items()]
    else:
        names = [name.strip() for name in given.split(",") if name.strip()]
        arms = [Arm(name, replace(base, cls_loss=_loss(name))) for name in names]
    if not arms:
        raise GhmdetError(f"--arms {given!r} names no arm: name class losses such as ce,ghm or a YAML file")
    for arm in arms:
        if [other.name for other in arms].count(arm.name) > 1:
            raise GhmdetError(f"--arms: '{arm.name}' is there twice: name each arm once")
        if arm.config.cls_weight == 0:
            raise GhmdetError(
                f"arm '{arm.name}': a class-loss weight of 0 trains no classes: give one above 0"
            )
    return arms


def _load(file: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GhmdetError(f"{file}: cannot be read ({error}): give a YAML file of arms") from None
    except yaml.YAMLError as error:
        raise GhmdetError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise GhmdetError(f"{file}: write each arm as NAME: {{cls_loss: ce, ...}}")
    return {str(name): settings for name, settings in content.items()}


def _loss(name: str) -> str:
    loss = SHORT_NAMES.get(name, name)
    if loss not in CLS_LOSSES:
        raise unknown_name("class loss", name, [*SHORT_NAMES, *CLS_LOSSES])
    return loss


def _arm_of_settings(name: str, settings: Mapping[str, Any], base: TrainConfig, file: str) -> Arm:
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise GhmdetError(f"{file}: arm '{name}': name it with letters, digits, '-', '_', '+' and '.'")
    own: dict[str, Any] = {}
    augment: dict[str, Any] = {}
    augmentations = {field.name: str(field.type) for field in fields(AugmentConfig)}
    kinds = {field.name: str(field.type) for field in fields(TrainConfig)} | augmentations
    known = [key for key, _ in _flat(TrainConfig()) if key not in NOT_AN_ARMS]
    for key, value in settings.items():
        if key in NOT_AN_ARMS:
            raise GhmdetError(
                f"{file}: arm '{name}': '{key}' is nothing in which arms of a comparison may differ"
            )
        if key not in known:
            raise unknown_name(f"setting of arm '{name}' in {file}:", str(key), known)
        _check_kind(value, kinds[key], key, f"{file}: arm '{name}'")
        value = tuple(value) if isinstance(value, list) else value
        (augment if key in augmentations else own)[key] = value
    if "cls_loss" in own:
        own["cls_loss"] = _loss(own["cls_loss"])
    try:
        return Arm(name, replace(base, **own, augment=replace(base.augment, **augment)))
    except GhmdetError as error:
        raise GhmdetError(f"{file}: arm '{name}': {error}") from None


def _check_kind(value: Any, kind: str, key: str, where: str) -> None:
    """Refuse a value that is not of the setting's annotated type."""

    def number(one: Any) -> bool:
        return isinstance(one, (int, float)) and not isinstance(one, bool)

    if "tuple" in kind:
        count = 0 if "..." in kind else kind.count(",") + 1  # tuple[float, float]
        right = isinstance(value, list) and all(map(number, value)) and len(value) == (count or len(value))
        want = f"a list of {count or ''} numbers".replace("  ", " ")
    elif kind.startswith("bool"):
        right, want = isinstance(value, bool), "true or false"
    elif kind.startswith("str"):
        right, want = isinstance(value, str), "text"
    elif kind.startswith("int"):
        right, want = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        right, want = number(value), "a number"
    if not right:
        raise GhmdetError(f"{where}: '{key}' is {value!r}: write {want}")


def _flat(config: Any) -> Iterator[tuple[str, Any]]:
    """Settings by name, those of the augmentation among them, as the command line has them."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _flat(value)
        else:
            yield field.name, value


def settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that differ from the defaults, by name."""
    defaults = dict(_flat(TrainConfig()))
    return {name: value for name, value in _flat(config) if value != defaults[name]}


def train_command(data: Path, out: Path, config: TrainConfig) -> list[str]:
    """The words after `ghmdet` that train with these settings in `out`, or go on there; without a report of each run.

    >>> train_command(Path("DATA"), Path("x"), TrainConfig(cls_loss="ce", augment=AugmentConfig(scale=(1.0, 1.5))))
    ['train', 'DATA', '--out', 'x', '--resume', '--no-report', '--cls-loss', 'ce', '--scale', '1.0', '1.5']
    """
    words = ["train", str(data), "--out", str(out), "--resume", "--no-report"]
    for name, value in settings(config).items():
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, tuple):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return words
