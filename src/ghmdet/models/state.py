"""A detector as plain values and tensors, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models.loss import LossConfig
from ghmdet.models.presets import ModelConfig
from ghmdet.models.retinanet import RetinaNet

FORMAT = "ghmdet-detector"
VERSION = 1


def model_state(model: RetinaNet) -> dict[str, Any]:
    """The detector as a dict that `torch.load(weights_only=True)` reads back.

    Keys: format, version, config, classes, model (the weights). The losses' moving averages are not the
    detector's: they belong to the training run, as `model.loss.state_dict()`.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(model.config),
        "classes": list(model.classes),
        "model": {name: value for name, value in model.state_dict().items() if not name.startswith("loss.")},
    }


def is_model_state(state: object) -> bool:
    """Whether it is what `model_state` gives (more keys may stand beside its own)."""
    return isinstance(state, Mapping) and state.get("format") == FORMAT


def model_from_state(state: Mapping[str, Any], loss: LossConfig | None = None) -> RetinaNet:
    """The detector of `model_state`'s dict, in eval mode on the CPU; `loss` is what would train it further.

    Raises CheckpointError where the dict is something else, is from a later version, or does not fit together.
    """
    check_state(state)
    try:
        model = RetinaNet(ModelConfig.from_dict(state["config"]), state["classes"], loss)
        load_network(model, state["model"])
    except (KeyError, TypeError, GhmdetError) as error:
        raise CheckpointError(f"the detector's state does not fit together: {error}") from error
    return model.eval()


def check_state(state: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless it is a state of this version with all its parts."""
    if not is_model_state(state):
        raise CheckpointError(f"this is not a ghmdet detector: it has no 'format': '{FORMAT}'")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"the detector has format version {state.get('version')}, this ghmdet reads {VERSION}: upgrade ghmdet"
        )
    for part in ("config", "classes", "model"):
        if not state.get(part):
            raise CheckpointError(f"the detector's state has no '{part}'")


def load_network(model: RetinaNet, weights: Mapping[str, Any]) -> None:
    """Copy the weights of backbone, neck and head, all of them, into a detector of the same shape.

    Raises CheckpointError naming the first weight that is missing, unknown or of another shape.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("loss.")}
    problem = first_mismatch(own, weights) or next(
        (f"'{n}' is unknown" for n in weights if n not in own), None
    )
    if problem:
        raise CheckpointError(problem)
    model.load_state_dict(dict(weights), strict=False)


def first_mismatch(own: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """In words, the first weight of `own` that `given` lacks or has in another shape; None where all fit.

    A missing `num_batches_tracked` is no mismatch: frozen and old batch norms have none, and inference needs none.
    """
    for name, value in own.items():
        if name not in given:
            if name.endswith("num_batches_tracked"):
                continue
            return f"'{name}' is missing"
        if given[name].shape != value.shape:
            return f"'{name}' is {list(given[name].shape)} where {list(value.shape)} is needed"
    return None
