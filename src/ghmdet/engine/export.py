"""`ghmdet export`: a trained detector as one file that needs neither ghmdet nor, as ONNX, PyTorch."""

import dataclasses
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as export_config

from ghmdet import runtime
from ghmdet.data import DetectionData, read_data
from ghmdet.data.tree import Tree
from ghmdet.engine.alike import TOLERANCES, Outputs, Precision, compare
from ghmdet.engine.detect import Detector, detect
from ghmdet.engine.quantize import quantize
from ghmdet.engine.run_folder import coco_results, read_json
from ghmdet.errors import DataError, GhmdetError
from ghmdet.evaluation.score import score
from ghmdet.files import checkpoint_file, require_ending, write_atomic
from ghmdet.models.exportable import Exportable
from ghmdet.progress import counting
from ghmdet.words import many

AP_DROP = 0.01
"""A larger one is warned of."""
PICTURES, CALIBRATED_ON, SCORED = 8, 64, 200
"""At most so many pictures are compared on, calibrated on, and scored."""
MOST = 256  # times `size_divisible`: the longest side that the file takes
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}


def export(
    checkpoint: Path,
    /,
    *,
    out: Path,
    format: Literal["onnx", "torch"] = "onnx",
    raw: Annotated[bool, Parameter(negative="--nms")] = False,
    precision: Precision = "fp32",
    calibrate: Path | None = None,
    pictures: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write a detector as a file for onnxruntime, or as a program for torch.export; compares it with PyTorch first.

    The file takes one picture of any size, scaled, normalised and padded as `ghmdet.runtime` does; how is in its
    metadata, with the classes and thresholds.

    Args:
        checkpoint: A training run's folder, which means its `best.pt`, or a `best.pt` or `last.pt`.
        out: File to write: .onnx, or .pt2 for `torch`.
        format: onnx: needs the extra `export`. torch: what torch.export.load reads.
        raw: The network's outputs, for a postprocessing of your own: logits [1, A, K] and box offsets [1, A, 4]. With
            --nms, the default, boxes, scores and labels, after NMS and soft-NMS.
        precision: Of the network's numbers. int8: about half of fp32's time on a CPU where convolutions take most of it
            (.83 where soft-NMS of 300 faint boxes did), a third of its size, ONNX only. fp16: on a CPU it only halves
            the size; it is for GPUs. Inputs and outputs are float32 all the same. How much AP it costs is printed where
            validation pictures are labelled, for ONNX files with NMS.
        calibrate: For int8 and fp16: data set whose training pictures the ranges of int8 are taken from, and on whose
            validation pictures the file is compared; by default the run's.
        pictures: Folder of pictures to compare on; by default validation pictures of the data set, or made ones if they
            are gone.
        say: Takes each line meant for the user.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: no pictures there.
        GhmdetError: a package of the extra is missing, int8 for `torch`, `calibrate` for fp32, or the file would detect
            something else than PyTorch.
    """
    if calibrate is not None and precision == "fp32":
        raise GhmdetError("--calibrate is of --precision int8 and fp16: leave it out, or give one of them")
    require_ending("--out", Path(out), ENDINGS[format])
    if format == "onnx":
        _require_packages()
    elif precision == "int8":
        raise GhmdetError("--precision int8 is of ONNX files: leave --format torch out, or the precision")
    checkpoint = checkpoint_file(checkpoint)
    detector = Detector.load(checkpoint, device="cpu", precision="fp32")
    run = dict((read_json(checkpoint.parent / "run.json") or {}).get("arguments", {}))
    val = None
    for given in dict.fromkeys((calibrate, None)):
        try:
            val = _labelled(detector, run, given, "val", SCORED)
            break
        except DataError as error:
            if pictures is None or precision != "fp32":
                say(f"no validation pictures to compare on: {error}")
    chosen, what = _pictures(val, pictures, say)
    about = describe(detector, raw=raw, precision=precision)
    coarsest = detector.model.config.strides[-1]
    checked = (
        min(about.min_size, about.max_size) > coarsest
    )  # else all of a picture may be in one place of a level
    outputs: Outputs
    metadata = {runtime.KEY: json.dumps(dataclasses.asdict(about), ensure_ascii=False)}
    part = None
    if precision == "int8":  # before the long work
        part = _labelled(detector, run, calibrate, "train", CALIBRATED_ON)
    say("tracing the network")
    program = trace(detector, raw=raw, dtype=torch.float16 if precision == "fp16" else torch.float32)
    if format == "onnx":
        say("converting it to ONNX")
        content = to_onnx(program, metadata, raw=raw)
        if part is not None:
            say(f"calibrating on {many(len(part.records), 'picture')} of {part.root} ({part.split})")
            with counting("pictures calibrated on", len(part.records)) as advance:
                content = quantize(content, _inputs(part, about, advance))
        exported = runtime.Detector(content, device="cpu")
        outputs = exported.raw
    else:
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=metadata)
        content, outputs = file.getvalue(), _run(program, about, checked)
    with counting("pictures compared", len(chosen)) as advance:
        alike = compare(detector, outputs, about, chosen, advance)
    if format == "onnx" and not raw and precision != "fp32" and val is not None:
        try:
            _say_ap(detector, exported, val, say)
        except DataError as error:
            say(f"Warning: AP is not compared: {error}")
    write_atomic(out, runtime.sealed(content) if format == "onnx" else content)
    kind = "logits and box offsets" if raw else "detections"
    offsets = f"box offsets within {alike.box:.1g}" if raw else f"boxes within {alike.box:.1g} pixels"
    limits, within = TOLERANCES[precision], f"{offsets}, scores within {alike.score:.1g}"
    on = f"{many(len(chosen), 'picture')} {what}"
    compared = many(alike.compared, "score" if raw else "detection")
    if not alike.compared:
        least = f"scores {limits.least}" if limits.least else "is detected"
        say(
            f"Warning: on {on} nothing {least}, so nothing was compared: give --pictures with objects that it knows"
        )
    elif precision == "fp32":
        others = f"; {alike.unsteady} others depend on rounding, in PyTorch too" if alike.unsteady else ""
        say(f"the same as PyTorch on {on}: {compared} compared, {within}{others}")
    else:
        say(
            f"{precision} beside fp32 on {on}: the nearest {limits.share:.0%} of {compared} from"
            f" {limits.least} up have {within} (allowed: {limits.box:g} and {limits.score:g})"
        )
    classes = many(len(about.classes), "class/classes")
    say(f"{out}: {len(content) / 1e6:.1f} MB, {kind} of {classes}, for pictures of any size")
    if format == "torch" and not checked:
        scaled = f"pictures that are scaled to at most {coarsest}x{coarsest} pixels"
        say(f"{scaled} need torch.export.load('{out}').module(check_guards=False)")
    return out


def describe(detector: Detector, *, raw: bool, precision: Precision = "fp32") -> runtime.About:
    """What an exported file of the detector says of itself."""
    config = dataclasses.asdict(detector.model.config)
    names = {field.name for field in dataclasses.fields(runtime.About)}
    return runtime.About(
        format=runtime.FORMAT,
        version=version("ghmdet"),
        outputs="raw" if raw else "detections",
        precision=precision,
        classes=list(detector.classes),
        category_ids=list(detector.category_ids),
        **{name: value for name, value in config.items() if name in names},
    )


def trace(detector: Detector, *, raw: bool, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    """The detector as a torch.export program of `Exportable`, for pictures of any size; dtype: of the network."""
    step = detector.model.config.size_divisible
    sides: dict[int, Any] = {
        axis: step * Dim(name, min=1, max=MOST) for axis, name in ((2, "rows"), (3, "columns"))
    }
    given: tuple[torch.Tensor, ...] = (
        torch.zeros(1, 3, 4 * step, 6 * step),
        torch.tensor([4 * step, 6 * step]),
    )
    network = Exportable(detector.model, detections=not raw, dtype=dtype)
    # Else the program refuses sides of one and two strides, as if they were another one's.
    any_side = export_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), warnings.catch_warnings(), any_side:
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


def _labelled(
    detector: Detector, run: Mapping[str, Any], given: Path | None, part: Literal["train", "val"], most: int
) -> DetectionData:
    """At most so many pictures of a part of the data set given, else of the run's; raises DataError where none are."""
    place, split = (run.get("data"), run.get(f"{part}_split", part)) if given is None else (given, part)
    if place is None or not Path(place).exists():
        mend = "" if part == "train" else "--pictures FOLDER or, with --precision int8 and fp16, "
        raise DataError(f"{place or 'the data of the run'}: is not there: give {mend}--calibrate DATA")
    data = read_data(place, split, classes=detector.classes)
    some = np.arange(0, len(data.records), math.ceil(len(data.records) / most))
    return dataclasses.replace(data, records=data.records.take(some))


def _inputs(
    data: DetectionData, about: runtime.About, advance: Callable[[int], None]
) -> Iterator[dict[str, NDArray[Any]]]:
    """What a network is given for each picture."""
    for record in data.records:
        images, size = runtime.prepare(runtime.read(record.path), about)
        yield (
            {"images": images, "size": np.array(size)}
            if about.outputs == "detections"
            else {"images": images}
        )
        advance(1)


def _say_ap(
    detector: Detector, exported: runtime.Detector, data: DetectionData, say: Callable[[str], None]
) -> None:
    """The AP of both on the pictures of `data`."""
    truth, theirs = data.to_coco(), []
    say("measuring AP, in fp32 too")
    with counting("pictures scored, twice each", 2 * len(data.records)) as advance:
        own = detect(detector.model, data, device=detector.device, advance=advance)
        for record in data.records:
            found = exported.predict(record.path, threshold=0)[0]
            theirs += coco_results(found, record.image_id, data.category_ids)
            advance(1)
    before, after = (score(truth, results).AP or 0.0 for results in (own, theirs))
    say(
        f"AP on {many(len(data.records), 'picture')} of {data.root} ({data.split}): {after:.4f}, in fp32 {before:.4f}"
        f" ({after - before:+.4f})"
    )
    if before - after > AP_DROP:
        say(f"Warning: more than {AP_DROP} of AP is lost: give --calibrate more pictures, or take fp32")


def _run(program: ExportedProgram, about: runtime.About, checked: bool = True) -> Outputs:
    """The outputs of a torch.export program for a picture [h, w, 3], with or without its checks of the sizes."""
    module = program.module(check_guards=checked)

    def outputs(picture: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        batch, size = runtime.prepare(picture, about)
        given = (torch.from_numpy(batch), torch.tensor(size))
        with torch.inference_mode():
            return tuple(one.numpy() for one in module(*given[: 1 + (about.outputs == "detections")]))

    return outputs


def _pictures(
    val: DetectionData | None, folder: Path | None, say: Callable[[str], None]
) -> tuple[list[NDArray[np.uint8]], str]:
    """Pictures to compare on, and what they are: some of `folder`, else of `val`, else made ones."""
    files, what = [], ""
    if folder is not None:
        files, what = Tree(folder).pictures(str(folder)), f"of {folder}"
    elif val is not None:
        files, what = [str(one.path) for one in val.records], f"of {val.root} ({val.split})"
    read = []
    for file in files[:: math.ceil(len(files) / PICTURES) or 1]:
        try:
            read.append(runtime.read(file))
        except DataError as error:
            say(f"Warning: passed over: {error}")
    if read:
        return read, what
    if folder is not None:
        raise DataError(f"{folder}: no pictures here: give a folder of them")
    numbers = np.random.default_rng(0)
    made = []
    for height, width in ((300, 400), (480, 360), (256, 256), (600, 1000)):
        coarse = numbers.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
        made.append(coarse.repeat(20, axis=0).repeat(20, axis=1))
    return made, "made for this"


def _require_packages() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise GhmdetError(f"export to ONNX needs {package}: pip install 'ghmdet[export]'") from None
