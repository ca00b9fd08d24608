"""Exported detectors without PyTorch: needs numpy, Pillow and onnxruntime."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ghmdet.errors import CheckpointError, DataError, GhmdetError, Range, unknown_name
from ghmdet.pictures import read_pixels, resized_size, upright_pixels

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD = 0.3
"""The least score of a detection that is shown."""
KEY, FORMAT = "ghmdet", 1
"""Where the metadata of an ONNX file has what `About` reads, and the version of how it is written."""
Picture = Path | str | Image.Image | NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class About:
    """What must be known of an exported detector to use it; kept as JSON in the file's metadata, under `KEY`."""

    format: int
    version: str
    """Of the ghmdet that exported it."""
    outputs: str
    """"detections" (boxes, scores, labels) or "raw" (logits, box offsets)."""
    classes: list[str]
    category_ids: list[int]
    """The COCO category id of each class."""
    min_size: int
    max_size: int
    """Pictures are scaled until their short side is `min_size` or their long side `max_size`, whichever is first."""
    size_divisible: int
    """They are padded with zeros, right and below, to multiples of this."""
    antialias: bool
    """Whether scaling down takes every pixel into account, or four for each new one."""
    mean: list[float]
    std: list[float]
    """The network gets (value − mean) / std of RGB values in 0..1."""
    score_threshold: float
    nms_iou: float
    soft_nms: bool
    detections_per_image: int
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Of the network's numbers; inputs and outputs are float32."""


def sealed(content: bytes) -> bytes:
    """An ONNX file's bytes, and behind them their checksum as an entry of its metadata (field 14 of ModelProto)."""
    fields = (
        (b"\x0a", b"checksum"),
        (b"\x12", hashlib.blake2b(content, digest_size=DIGEST).hexdigest().encode()),
    )
    entry = b"".join(tag + bytes([len(value)]) + value for tag, value in fields)
    return content + b"\x72" + bytes([len(entry)]) + entry


DIGEST = 16  # bytes
SEAL = len(sealed(b""))


class Device(NamedTuple):
    """A device (cpu or cuda) and a precision."""

    type: str
    precision: str = "fp32"


class Detector:
    """An exported detector, ready to look at pictures: what `ghmdet.Detector` is, but for PyTorch.

    Attributes:
        about: what the file says of itself.
        classes: the name of each label.
        category_ids: the COCO category id of each label.
        device: where it is computed.
    """

    def __init__(
        self, model: Path | str | bytes, *, device: str = "auto", threads: int | None = None
    ) -> None:
        """Open an ONNX file of `ghmdet export`, or its content.

        device: cpu, cuda (which needs the package onnxruntime-gpu), or auto: cuda where it is there. threads: of a
        CPU; as many as it has cores by default.

        Raises:
            GhmdetError: onnxruntime is not installed, or has no such device.
            CheckpointError: the file is missing, damaged or was not made by `ghmdet export`.
        """
        try:
            import onnxruntime
        except ImportError:
            raise GhmdetError("an ONNX file needs onnxruntime: pip install onnxruntime") from None
        name = "the model" if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise CheckpointError(f"{name}: there is no such file: give one that `ghmdet export` wrote")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        if content[-SEAL:].startswith(sealed(b"")[: -2 * DIGEST]) and content != sealed(content[:-SEAL]):
            raise CheckpointError(
                f"{name}: damaged, or changed since its export (its checksum does not fit): copy or export it again; if"
                " you changed it, remove its metadata entry 'checksum'"
            )
        try:
            self.session = onnxruntime.InferenceSession(
                content, options, providers=_providers(onnxruntime, device)
            )
            found = self.session.get_modelmeta().custom_metadata_map
        except GhmdetError:
            raise
        except Exception as error:  # onnxruntime's errors have no common class
            mend = "export it: ghmdet export" if Path(name).suffix == ".pt" else "copy or export it again"
            raise CheckpointError(
                f"{name}: no ONNX file that onnxruntime can open ({type(error).__name__}): {mend}"
            ) from error
        self.about = _about(found, name)
        providers = self.session.get_providers()
        self.device = Device("cuda" if "CUDAExecutionProvider" in providers else "cpu", self.about.precision)
        self.classes = tuple(self.about.classes)
        self.category_ids = tuple(self.about.category_ids)

    def predict(
        self, images: Picture | Sequence[Picture], *, threshold: float = THRESHOLD
    ) -> list[dict[str, NDArray[Any]]]:
        """Detect on pictures of any sizes, one after the other.

        Args:
            images: a picture or several: file names, Pillow pictures, or uint8 arrays (RGB [H, W, 3], RGBA [H, W, 4]
                or grey [H, W]).
            threshold: the least score of a detection; for a score such as AP give 0.

        Returns:
            For each picture a dict of arrays, best first: boxes [n, 4] xyxy in its pixels, scores [n] in 0..1, labels
            [n] (indices into `classes`).

        Raises:
            DataError: a file that cannot be read, or an array of another form.
            GhmdetError: the file was exported with `--raw`; a threshold that is no score.
        """
        self.must_detect()
        single = isinstance(images, str) or not isinstance(images, Sequence)
        return [
            above(threshold, self._detect(read(each)))
            for each in cast("Sequence[Picture]", [images] if single else images)
        ]

    def must_detect(self) -> Detector:
        """Itself; raises GhmdetError where the file was exported with `--raw`."""
        if self.about.outputs != "detections":
            raise GhmdetError(
                "this file gives the network's outputs (--raw): export it without --raw to detect"
            )
        return self

    def raw(self, picture: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        """All outputs of the file for a picture [h, w, 3], RGB, in the pixels of the scaled one."""
        batch, size = prepare(picture, self.about)
        given = {"images": batch, "size": np.array(size, np.int64)}
        wanted = {one.name: given[one.name] for one in self.session.get_inputs()}
        return tuple(self.session.run(None, wanted))

    def _detect(self, picture: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        boxes, scores, labels = self.raw(picture)
        height, width = picture.shape[:2]
        scaled = resized_size(height, width, self.about.min_size, self.about.max_size)
        y, x = height / scaled[0], width / scaled[1]
        return {"boxes": boxes * np.array([x, y, x, y], np.float32), "scores": scores, "labels": labels}


Values = TypeVar("Values", NDArray[Any], "Tensor")


def above(threshold: float, found: Mapping[str, Values]) -> dict[str, Values]:
    """The detections, as arrays or tensors by name, that score at least so much; raises GhmdetError outside 0..1."""
    Range(0.0, 1.0).check("threshold", threshold)
    return {name: value[found["scores"] >= threshold] for name, value in found.items()}


def read(picture: Picture) -> NDArray[np.uint8]:
    """The pixels [h, w, 3] of a picture in any of the forms that `Detector.predict` takes, RGB, upright.

    Raises:
        DataError: a file that cannot be read, or an array of another form.
    """
    if isinstance(picture, str | Path):
        return read_pixels(Path(picture))[0]
    if isinstance(picture, Image.Image):
        return upright_pixels(picture)
    array = np.asarray(picture)
    right = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not right or not array.size:
        raise no_picture(array.shape, array.dtype)
    return upright_pixels(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array))


def no_picture(shape: tuple[int, ...], dtype: object) -> DataError:
    """The error for an array or a tensor that is no picture."""
    return DataError(
        f"a picture of shape {shape} and type {dtype}: give uint8 [H, W, 3], [H, W, 4] or [H, W], a Pillow picture, a"
        " file name or, to ghmdet.Detector, a float tensor [3, H, W] in 0..1"
    )


def prepare(picture: NDArray[np.uint8], about: About) -> tuple[Floats, tuple[int, int]]:
    """What the network gets of a picture [h, w, 3], [1, 3, H, W], and (height, width) of the scaled picture in it."""
    height, width = size = resized_size(picture.shape[0], picture.shape[1], about.min_size, about.max_size)
    values: Floats = picture.astype(np.float32) / np.float32(255)
    if size != picture.shape[:2]:
        values = (_averaged if about.antialias else _interpolated)(values, size)
    step = about.size_divisible
    batch = np.zeros((1, 3, math.ceil(height / step) * step, math.ceil(width / step) * step), np.float32)
    normal = (values - np.array(about.mean, np.float32)) / np.array(about.std, np.float32)
    batch[0, :, :height, :width] = normal.transpose(2, 0, 1)
    return batch, size


def _averaged(values: Floats, size: tuple[int, int]) -> Floats:
    """Pillow's bilinear filter, whose reach grows as a picture shrinks; PyTorch's `antialias` is made after it."""
    channels = [Image.fromarray(np.ascontiguousarray(values[..., channel])) for channel in range(3)]
    return np.stack(
        [np.asarray(one.resize(size[::-1], Image.Resampling.BILINEAR)) for one in channels], axis=-1
    )


def _interpolated(values: Floats, size: tuple[int, int]) -> Floats:
    """PyTorch's bilinear interpolation without `antialias`: each pixel is made of its four nearest."""
    for axis, new in enumerate(size):
        old = values.shape[axis]
        place = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
        place = np.maximum(place, 0)
        low = np.minimum(place.astype(np.int64), old - 1)
        share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        before, after = values.take(low, axis), values.take(np.minimum(low + 1, old - 1), axis)
        values = before * (1 - share) + after * share
    return values.astype(np.float32, copy=False)


def _providers(onnxruntime: Any, device: str) -> list[str]:
    if device not in ("auto", "cpu", "cuda"):
        raise unknown_name("device", device, ("auto", "cpu", "cuda"))
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    has_cuda = cuda in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise GhmdetError(
            "device cuda: the installed onnxruntime has none; use cpu or install onnxruntime-gpu"
        )
    return [cuda, cpu] if has_cuda and device != "cpu" else [cpu]


def _about(metadata: dict[str, str], name: str) -> About:
    try:
        values = json.loads(metadata[KEY])
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"{name}: was exported by ghmdet {values['version']} in a form (format {values['format']}) that this"
                " version does not know: export it anew"
            )
        return About(**values)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{name}: was not made by `ghmdet export`: its metadata say nothing of it"
        ) from error
