"""`ghmdet export`: a trained detector as one file that needs neither ghmdet nor, as ONNX, PyTorch."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram

from ghmdet import runtime
from ghmdet.data.tree import Tree
from ghmdet.engine.detect import Detector
from ghmdet.engine.run_folder import read_json
from ghmdet.errors import DataError, GhmdetError
from ghmdet.files import write_atomic
from ghmdet.models.exportable import Exportable
from ghmdet.models.preprocess import scale_boxes

BOX_TOLERANCE, SCORE_TOLERANCE = 0.5, 1e-3
"""How far, in pixels and in score, an exported detector may be from PyTorch's."""
PICTURES = 8
MOST = 256  # times `size_divisible`: the longest side that the file takes
Outputs = Callable[[NDArray[np.uint8]], tuple[NDArray[Any], ...]]
"""What an exported detector gives for a picture [h, w, 3]."""


def export(
    checkpoint: Path,
    /,
    *,
    out: Path,
    format: Literal["onnx", "torch"] = "onnx",
    raw: Annotated[bool, Parameter(negative="--nms")] = False,
    pictures: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write a detector as a file for onnxruntime, or as a program for torch.export; compares it with PyTorch first.

    The file takes one picture of any size, scaled, normalised and padded as `ghmdet.runtime` does; how is in its
    metadata, with the classes and thresholds.

    Args:
        checkpoint: A `best.pt` or `last.pt` of a training run.
        out: File to write: .onnx, or .pt2 for `torch`.
        format: onnx: needs the extra `export`. torch: what torch.export.load reads.
        raw: The network's outputs, for a postprocessing of your own: logits [1, A, K] and box offsets [1, A, 4]. With
            --nms, the default, boxes, scores and labels, after NMS and soft-NMS.
        pictures: Folder of pictures to compare on; by default those of the run's data set, or made ones if they are
            gone.
        say: Takes each line meant for the user.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: no pictures there.
        GhmdetError: a package of the extra is missing, or the file would detect something else than PyTorch.
    """
    if format == "onnx":
        _require_packages()
    detector = Detector.load(checkpoint, device="cpu", precision="fp32")
    chosen, what = _pictures(checkpoint, pictures)
    about = describe(detector, raw=raw)
    program = trace(detector, raw=raw)
    outputs: Outputs
    metadata = {runtime.KEY: json.dumps(dataclasses.asdict(about), ensure_ascii=False)}
    if format == "onnx":
        content = to_onnx(program, metadata, raw=raw)
        outputs = runtime.Detector(content, device="cpu").raw
    else:
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=metadata)
        content, outputs = file.getvalue(), _run(program, about)
    boxes, scores = compare(detector, outputs, about, chosen)
    write_atomic(out, content)
    kind = "logits and box offsets" if raw else "detections"
    offsets = f"box offsets within {boxes:.1g}" if raw else f"boxes within {boxes:.1g} pixels"
    say(f"the same as PyTorch on {len(chosen)} {what}: {offsets}, scores within {scores:.1g}")
    say(
        f"{out}: {len(content) / 1e6:.1f} MB, {kind} of {len(about.classes)} classes, for pictures of any size"
    )
    return out


def describe(detector: Detector, *, raw: bool) -> runtime.About:
    """What an exported file of the detector says of itself."""
    config = dataclasses.asdict(detector.model.config)
    names = {field.name for field in dataclasses.fields(runtime.About)}
    return runtime.About(
        format=runtime.FORMAT,
        version=version("ghmdet"),
        outputs="raw" if raw else "detections",
        classes=list(detector.classes),
        category_ids=list(detector.category_ids),
        **{name: value for name, value in config.items() if name in names},
    )


def trace(detector: Detector, *, raw: bool) -> ExportedProgram:
    """The detector as a torch.export program of `Exportable`, for pictures of any size."""
    step = detector.model.config.size_divisible
    sides: dict[int, Any] = {
        axis: step * Dim(name, min=2, max=MOST) for axis, name in ((2, "rows"), (3, "columns"))
    }
    given: tuple[torch.Tensor, ...] = (
        torch.zeros(1, 3, 4 * step, 6 * step),
        torch.tensor([4 * step, 6 * step]),
    )
    network = Exportable(detector.model, detections=not raw)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            network,
            given[: 2 - raw],
            dynamic_shapes=(sides, None)[: 2 - raw],
            strict=False,
        )


def to_onnx(program: ExportedProgram, metadata: dict[str, str], *, raw: bool) -> bytes:
    """The content of an ONNX file of the program, with the metadata; names its inputs, outputs and their sides."""
    outputs = ["logits", "deltas"] if raw else ["boxes", "scores", "labels"]
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        made = torch.onnx.export(
            program,
            input_names=["images", "size"][: 2 - raw],
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
        logging.getLogger("torch.onnx").setLevel(level)
    assert made is not None
    model = made.model_proto
    del model.graph.value_info[:]  # the names of sides in it are no longer those below
    height, width = model.graph.input[0].type.tensor_type.shape.dim[2:]
    height.dim_param, width.dim_param = "height", "width"
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[int(raw)].dim_param = "anchors" if raw else "detections"
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content


def compare(
    detector: Detector,
    outputs: Outputs,
    about: runtime.About,
    pictures: Sequence[NDArray[np.uint8]],
) -> tuple[float, float]:
    """The largest difference of boxes (pixels; offsets if raw) and of scores from PyTorch's, on pictures [h, w, 3].

    Raises:
        GhmdetError: more than `BOX_TOLERANCE` or `SCORE_TOLERANCE`, or a detection that only one of them has.
    """
    worst = [0.0, 0.0]
    for picture in pictures:
        image = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            batch = detector.model.preprocess([image])
            logits, deltas = detector.model.forward_raw(batch.images)
        found = outputs(picture)
        if about.outputs == "raw":
            theirs = 1 / (1 + np.exp(-found[0])), found[1]
            worst[1] = max(worst[1], float(np.abs(logits.sigmoid().numpy() - theirs[0]).max()))
            worst[0] = max(worst[0], float(np.abs(deltas.numpy() - theirs[1]).max()))
            continue
        with torch.inference_mode():
            own = detector.model.postprocess(logits, deltas, batch)[0]
        size, original = batch.sizes[0], batch.original_sizes[0]
        scaled = scale_boxes(own["boxes"], original, size).numpy()
        differences = _unlike((scaled, own["scores"].numpy(), own["labels"].numpy()), found)
        scale = max(original[0] / size[0], original[1] / size[1])
        worst = [max(worst[0], differences[0] * scale), max(worst[1], differences[1])]
    if worst[0] > BOX_TOLERANCE or worst[1] > SCORE_TOLERANCE:
        raise GhmdetError(
            f"not exported: the file would not detect what PyTorch does (boxes differ by {worst[0]:.2g} pixels, scores"
            f" by {worst[1]:.2g}): please report it with the versions of torch and onnxruntime"
        )
    return worst[0], worst[1]


def _unlike(own: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """The largest differences of boxes and scores between detections that mean the same; a score that has no partner
    is a difference as a whole."""
    boxes, scores, labels = own
    free = np.ones(len(others[1]), bool)
    worst = 0.0, 0.0
    for box, score, label in zip(boxes, scores, labels, strict=True):
        distance = np.abs(others[0] - box).max(axis=1, initial=0)
        able = np.flatnonzero(free & (others[2] == label) & (np.abs(others[1] - score) <= SCORE_TOLERANCE))
        if not len(able):
            worst = worst[0], max(worst[1], float(score))
            continue
        partner = able[distance[able].argmin()]
        free[partner] = False
        worst = max(worst[0], float(distance[partner])), max(worst[1], float(abs(others[1][partner] - score)))
    return worst[0], max(worst[1], float(others[1][free].max(initial=0)))


def _run(program: ExportedProgram, about: runtime.About) -> Outputs:
    """The outputs of a torch.export program for a picture [h, w, 3]."""
    module = program.module()

    def outputs(picture: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        batch, size = runtime.prepare(picture, about)
        given = (torch.from_numpy(batch), torch.tensor(size))
        with torch.inference_mode():
            return tuple(one.numpy() for one in module(*given[: 1 + (about.outputs == "detections")]))

    return outputs


def _pictures(checkpoint: Path, folder: Path | None) -> tuple[list[NDArray[np.uint8]], str]:
    """Pictures to compare on, and what they are: some of `folder` or of the run's data set, else made ones."""
    run = read_json(checkpoint.parent / "run.json") or {}
    place = folder or Path(str(dict(run.get("arguments", {})).get("data", "")) or "-")
    files = Tree(place).pictures(str(place)) if place.is_dir() else []
    if folder is not None and not files:
        raise DataError(f"{folder}: no pictures here: give a folder of them")
    if files:
        return [
            runtime.read(file) for file in files[:: math.ceil(len(files) / PICTURES)]
        ], f"pictures of {place}"
    numbers = np.random.default_rng(0)
    made = []
    for height, width in ((300, 400), (480, 360), (256, 256), (600, 1000)):
        coarse = numbers.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
        made.append(coarse.repeat(20, axis=0).repeat(20, axis=1))
    return made, "made pictures"


def _require_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise GhmdetError(f"export to ONNX needs {package}: pip install 'ghmdet[export]'") from None
