"""`ghmdet export`: files that detect what PyTorch does, on pictures of several sizes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.export import ExportedProgram
from torchvision.ops import box_iou

from engine_cases import film
from ghmdet import Detector, runtime
from ghmdet.engine import alike
from ghmdet.engine import export as module
from ghmdet.engine.export import export
from ghmdet.engine.predict import predict
from ghmdet.errors import CheckpointError, DataError, GhmdetError
from ghmdet.evaluation.score import score
from ghmdet.models.anchors import make_anchors

SIDES = ((72, 96), (96, 72), (300, 400), (96, 96), (40, 400), (50, 20))


@pytest.fixture(scope="module", autouse=True)
def made_once() -> Iterator[None]:
    """The same network is traced and converted once for all tests: it takes half a minute."""
    trace, to_onnx = module.trace, module.to_onnx
    programs, contents = dict[str, ExportedProgram](), dict[tuple[int, bool], bytes]()

    def trace_once(detector: Detector, *, raw: bool, dtype: torch.dtype = torch.float32) -> ExportedProgram:
        weights = [(name, one.numpy().tobytes()) for name, one in detector.model.state_dict().items()]
        key = hashlib.sha256(repr((weights, detector.model.config, raw, dtype)).encode()).hexdigest()
        if key not in programs:
            programs[key] = trace(detector, raw=raw, dtype=dtype)
        return programs[key]

    def to_onnx_once(program: ExportedProgram, metadata: dict[str, str], *, raw: bool) -> bytes:
        import onnx as library

        key = id(program), raw
        if key not in contents:
            contents[key] = to_onnx(program, {}, raw=raw)
        model = library.load_model_from_string(contents[key])
        for name, value in metadata.items():
            model.metadata_props.add(key=name, value=value)
        content: bytes = model.SerializeToString()
        return content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "trace", trace_once)
        patch.setattr(module, "to_onnx", to_onnx_once)
        yield


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def onnx(run: Path, said: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    return export(run / "best.pt", out=tmp_path_factory.mktemp("exported") / "squares.onnx", say=said.append)


def pictures(folder: Path) -> list[NDArray[np.uint8]]:
    whole = Image.open(folder / "images" / "val_0.png").convert("RGB")
    return [np.asarray(whole.resize(size[::-1])) for size in SIDES]


def test_it_detects_what_pytorch_does_on_pictures_of_several_sizes(
    run: Path, squares: Path, onnx: Path
) -> None:
    theirs, own = (
        runtime.Detector(onnx, threads=1),
        Detector.load(run / "best.pt", device="cpu", precision="fp32"),
    )
    assert (
        (theirs.classes, theirs.category_ids) == (own.classes, own.category_ids) == (("red", "blue"), (1, 2))
    )
    wanted, found = (each.predict(pictures(squares), threshold=0) for each in (own, theirs))
    assert sum(len(one["scores"]) for one in wanted) > 50
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(other["labels"], one["labels"])
        np.testing.assert_allclose(other["scores"], one["scores"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(other["boxes"], one["boxes"], rtol=0, atol=0.05)
    assert theirs.predict(squares / "images" / "val_0.png")[0].keys() == {"boxes", "scores", "labels"}


def test_it_says_how_alike_they_are_on_the_pictures_of_the_run_and_what_it_wrote(
    squares: Path, onnx: Path, said: list[str]
) -> None:
    assert said[:2] == ["tracing the network", "converting it to ONNX"]
    assert re.match(
        rf"the same as PyTorch on 4 pictures of {squares} \(val\): \d\d+ detections compared, boxes within ",
        said[2],
    )
    assert said[3].startswith(f"{onnx}: ")
    assert said[3].endswith(" MB, detections of 2 classes, for pictures of any size")


def test_its_metadata_say_how_to_use_it(run: Path, onnx: Path) -> None:
    import onnx as library

    model = library.load(str(onnx))
    (entry,) = [one for one in model.metadata_props if one.key == "ghmdet"]
    values, config = json.loads(entry.value), Detector.load(run / "best.pt").model.config
    assert values["classes"] == ["red", "blue"]
    for name in (
        "min_size",
        "max_size",
        "size_divisible",
        "antialias",
        "score_threshold",
        "nms_iou",
        "soft_nms",
    ):
        assert values[name] == getattr(config, name)
    assert (tuple(values["mean"]), tuple(values["std"])) == (config.mean, config.std)
    names = [[one.name for one in side] for side in (model.graph.input, model.graph.output)]
    assert names == [["images", "size"], ["boxes", "scores", "labels"]]
    library.checker.check_model(model)


WITHOUT = ("torch", "torchvision", "timm", "accelerate", "matplotlib", "hotcoco", "jinja2", "yaml")


def test_one_flipped_bit_of_the_file_is_noticed(onnx: Path, tmp_path: Path) -> None:
    content, random = onnx.read_bytes(), np.random.default_rng(0)
    runtime.Detector(content, device="cpu")
    runtime.Detector(content[: -runtime.SEAL], device="cpu")  # as older versions wrote it
    assert runtime.sealed(content[: -runtime.SEAL]) == content
    damaged = tmp_path / "damaged.onnx"
    for place in (*random.integers(0, len(content) - runtime.SEAL, 20).tolist(), len(content) - 1):
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :])
        with pytest.raises(
            CheckpointError,
            match=r"damaged\.onnx: damaged, or changed .*\(its checksum does not fit\): copy or export",
        ):
            runtime.Detector(damaged)


def without_torch(code: str) -> str:
    """What a program prints where the packages of `WITHOUT` are not installed."""
    blocked = f"import sys; sys.modules |= dict.fromkeys({WITHOUT})\n{code}"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_used_without_torch(onnx: Path, squares: Path) -> None:
    picture = squares / "images" / "val_0.png"
    code = (
        "from ghmdet.runtime import Detector\n"
        f"print(len(Detector({str(onnx)!r}).predict({str(picture)!r})[0]['scores']))"
    )
    assert int(without_torch(code)) == len(runtime.Detector(onnx).predict(picture)[0]["scores"])


def test_predict_gives_the_same_with_it_and_needs_no_torch(
    run: Path, onnx: Path, squares: Path, tmp_path: Path
) -> None:
    annotations = squares / "annotations" / "instances_val.json"
    pictures = sorted((squares / "images").glob("val_*.png"))
    words = [*map(str, pictures), "--annotations", str(annotations)]
    said = without_torch(
        f"from ghmdet.cli import main; main(['predict', {str(onnx)!r}, *{words}, '--out', {str(tmp_path / 'onnx')!r}])"
    )
    predict(
        run / "best.pt",
        *pictures,
        annotations=annotations,
        out=tmp_path / "torch",
        device="cpu",
        precision="fp32",
    )
    made, wanted = (
        json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("onnx", "torch")
    )
    assert f"{len(made)} boxes, " in said
    assert len(made) == len(wanted) > 20
    for one, other in zip(made, wanted, strict=True):
        for name in ("file_name", "image_id", "category_id", "category_name"):
            assert one[name] == other[name]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.05)
    drawings = [sorted(path.name for path in (tmp_path / name).glob("*.jpg")) for name in ("onnx", "torch")]
    assert drawings[0] == drawings[1] == [f"val_{number}.png.jpg" for number in range(4)]


def test_videos_labels_and_crops_need_no_torch_either(onnx: Path, squares: Path, tmp_path: Path) -> None:
    frames = [
        np.asarray(Image.open(file).convert("RGB")) for file in sorted((squares / "images").glob("val_*.png"))
    ]
    video, out = film(tmp_path / "film.mkv", frames), tmp_path / "out"
    words = ["predict", str(onnx), str(video), f"--out={out}", "--save-txt", "--crop", "--threshold=0"]
    without_torch(f"from ghmdet.cli import main; main({words})")
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["frame"] for row in rows} == set(range(4)) and len(rows) > 20
    labels = [file.read_text().splitlines() for file in sorted((out / "labels" / "film.mkv").iterdir())]
    assert [len(lines) for lines in labels] == [sum(row["frame"] == n for row in rows) for n in range(4)]
    assert len(list((out / "crops").rglob("*.jpg"))) == len(rows)


def test_predict_refuses_what_an_exported_file_cannot_do(onnx: Path, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(GhmdetError, match=r"--precision bf16: .* is fp32"):
        predict(onnx, squares / "images", out=tmp_path, precision="bf16")
    with pytest.raises(CheckpointError, match=r"no\.onnx: there is no such file"):
        predict(Path("no.onnx"), squares / "images", out=tmp_path)
    shutil.copy(onnx, tmp_path / "ref.pt2")
    with pytest.raises(
        CheckpointError, match=r"a torch\.export program: .* takes a checkpoint or an \.onnx file"
    ):
        predict(tmp_path / "ref.pt2", squares / "images", out=tmp_path / "out")


def test_a_torch_program_is_compared_too_and_takes_any_size(run: Path, squares: Path, tmp_path: Path) -> None:
    said: list[str] = []
    file = export(run / "best.pt", out=tmp_path / "squares.pt2", format="torch", raw=True, say=said.append)
    assert "box offsets within" in said[1] and "logits and box offsets of 2 classes" in said[2]
    kept = {"ghmdet": ""}
    program = torch.export.load(file, extra_files=kept)
    about = runtime.About(**json.loads(kept["ghmdet"]))
    assert about.outputs == "raw"
    own = Detector.load(run / "best.pt", device="cpu", precision="fp32").model
    batches = [torch.from_numpy(runtime.prepare(picture, about)[0]) for picture in pictures(squares)]
    assert {tuple(batch.shape[2:]) for batch in batches} >= {(96, 96), (32, 96), (96, 64)}
    for batch in [*batches, torch.rand(1, 3, 96, 32), torch.rand(1, 3, 32, 640)]:
        with torch.inference_mode():
            torch.testing.assert_close(
                tuple(program.module()(batch)), own.forward_raw(batch), rtol=0, atol=1e-4
            )


def test_a_torch_program_of_the_smallest_pictures_says_how_to_load_it(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Detector.load(run / "best.pt", device="cpu", precision="fp32")
    own.model.config = dataclasses.replace(own.model.config, min_size=48, max_size=64)
    monkeypatch.setattr(Detector, "load", lambda *given, **options: own)
    said: list[str] = []
    file = export(run / "best.pt", out=tmp_path / "small.pt2", format="torch", raw=True, say=said.append)
    assert "compared" in said[1]
    load = said[-1].removeprefix("pictures that are scaled to at most 64x64 pixels need ")
    assert load == f"torch.export.load('{file}').module(check_guards=False)"
    for sides in ((32, 32), (64, 64), (32, 64)):
        batch = torch.rand(1, 3, *sides)
        with torch.inference_mode():
            found = torch.export.load(file).module(check_guards=False)(batch)
            torch.testing.assert_close(tuple(found), own.model.forward_raw(batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("soft_nms", [True, False])
def test_a_torch_program_finds_what_there_is_where_that_is_little(run: Path, soft_nms: bool) -> None:
    detector = Detector.load(run / "best.pt", device="cpu", precision="fp32")
    own = detector.model
    own.config = dataclasses.replace(own.config, score_threshold=0.99, soft_nms=soft_nms)
    program = module.trace(detector, raw=False).module()
    about = module.describe(detector, raw=False)
    black = torch.zeros(3, 72, 96)
    images, size = runtime.prepare(np.zeros((72, 96, 3), np.uint8), about)
    biases = [own.head.class_logits.bias, program.get_parameter("network.2.class_logits.bias")]
    with torch.inference_mode():
        best = own.forward_raw(own.preprocess([black]).images)[0].flatten().sort(descending=True).values
    for candidates in (0, 1, 2, 3, 40):  # so many logits above that of the threshold, 4.595
        shift = 4.595 - float(best[max(candidates - 1, 0) : candidates + 1].mean()) - (candidates == 0)
        with torch.no_grad():
            for bias in biases:
                bias += shift
            found = program(torch.from_numpy(images), torch.tensor(size))
            wanted = own([black])[0]
            for bias in biases:
                bias -= shift
        assert candidates > 3 or len(found[1]) <= candidates
        assert (len(found[1]) > 0) == (candidates > 0)
        for one, name in zip(found, ("boxes", "scores", "labels"), strict=True):
            torch.testing.assert_close(one, wanted[name], rtol=0, atol=1e-3)


def test_a_file_that_detects_something_else_is_not_written(run: Path) -> None:
    detector = Detector.load(run / "best.pt", device="cpu", precision="fp32")
    about = module.describe(detector, raw=False)
    image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    found = detector.predict(image, threshold=0)[0]
    right = tuple(found[name].numpy() for name in ("boxes", "scores", "labels"))
    assert len(right[1]) > 3
    assert module.compare(detector, lambda _: right, about, [image]) == (0, 0, len(right[1]), 0)
    moved = right[0] + np.float32(0.6)
    for wrong in (
        (moved, *right[1:]),
        (right[0], right[1] + 0.002, right[2]),
        (*right[:2], 1 - right[2]),
        tuple(part[1:] for part in right),
        tuple(np.concatenate((part, part[:1])) for part in right),
    ):
        with pytest.raises(GhmdetError, match="not exported: the file would not detect what PyTorch does"):
            module.compare(detector, lambda _, wrong=wrong: wrong, about, [image])


def test_what_depends_on_rounding_in_pytorch_too_is_no_difference(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector.load(run / "best.pt", device="cpu", precision="fp32")
    config, about = detector.model.config, module.describe(detector, raw=False)
    anchors, _ = make_anchors(config, 96, 96, torch.device("cpu"))
    inside = ((anchors >= 0).all(1) & (anchors[:, 2] <= 96) & (anchors[:, 3] <= 72)).nonzero()[:, 0]
    overlap = box_iou(anchors[inside], anchors[inside]).fill_diagonal_(0)
    pair = (overlap == overlap.max()).nonzero()[0]
    logits, deltas = torch.full((1, len(anchors), 2), -12.0), torch.zeros(1, len(anchors), 4)
    logits[0, inside[pair], 0] = torch.tensor([0.5, 0.5 + 1e-5])  # as good as one another
    image = np.zeros((72, 96, 3), np.uint8)
    batch = detector.model.preprocess([torch.zeros(3, 72, 96)])
    monkeypatch.setattr(detector.model, "forward_raw", lambda images: (logits, deltas))

    def found(difference: float) -> tuple[NDArray[Any], ...]:
        changed = logits.clone()
        changed[0, inside[pair[1]], 0] += difference
        return alike._detections(detector, changed, deltas, batch)

    assert module.compare(detector, lambda _: found(0), about, [image]).unsteady == 0
    other = module.compare(detector, lambda _: found(-2e-5), about, [image])
    assert (other.unsteady, other.compared) == (1, 0)
    right = found(-2e-5)
    away = int(
        (
            (inside[:, None] != inside[pair]).all(1)
            & (box_iou(anchors[inside], anchors[inside[pair]]).max(1)[0] < 0.1)
        ).nonzero()[0, 0]
    )
    logits[0, inside[away], 1] = 2.0  # a detection that is steady, and wrong in the file
    boxes, scores, labels = found(0)
    wrong = boxes + 20 * (labels == 1)[:, None].astype(np.float32), scores, labels
    with pytest.raises(GhmdetError, match="would not detect what PyTorch does"):
        module.compare(detector, lambda _: wrong, about, [image])
    assert module.compare(detector, lambda _: found(-2e-5), about, [image]).compared == len(right[1])
    logits[0, inside[pair[1]], 0] += 0.5  # which of both is better is no matter of rounding now
    with pytest.raises(GhmdetError, match="would not detect what PyTorch does"):
        module.compare(detector, lambda _: found(-1), about, [image])


@pytest.fixture(scope="module")
def counted() -> dict[str, Counter[str]]:
    return {}


@pytest.fixture(scope="module")
def small(run: Path, onnx: Path, counted: dict[str, Counter[str]]) -> dict[str, tuple[Path, list[str]]]:
    """The files of less precision, and what was said of each; counts how far its bars of progress went."""
    made = {}

    @contextmanager
    def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
        counted[precision][f"{what}, of {total}"] = 0
        yield lambda done: counted[precision].update({f"{what}, of {total}": done})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "counting", counting)
        for precision in ("fp16", "int8"):
            counted[precision] = Counter()
            said: list[str] = []
            out = onnx.with_name(f"{precision}.onnx")
            made[precision] = export(run / "best.pt", out=out, precision=precision, say=said.append), said
    return made


def test_its_progress_is_shown(
    small: dict[str, tuple[Path, list[str]]], counted: dict[str, Counter[str]]
) -> None:
    both = {"pictures compared, of 4": 4, "pictures scored, twice each, of 8": 8}
    assert counted == {"fp16": both, "int8": both | {"pictures calibrated on, of 12": 12}}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_file_of_less_precision_is_smaller_says_what_ap_it_costs_and_runs_as_any(
    run: Path, onnx: Path, squares: Path, small: dict[str, tuple[Path, list[str]]], precision: str
) -> None:
    file, said = small[precision]
    assert file.stat().st_size < {"fp16": 0.6, "int8": 0.4}[precision] * onnx.stat().st_size
    phases = ["tracing the network", "converting it to ONNX"]
    phases += [f"calibrating on 12 pictures of {squares} (train)"] * (precision == "int8")
    assert said[: len(phases) + 1] == [*phases, "measuring AP, in fp32 too"]
    found = re.fullmatch(
        rf"AP on 4 pictures of {re.escape(str(squares))} \(val\): (\S+), in fp32 (\S+) \((\S+)\)",
        said[len(phases) + 1],
    )
    assert found is not None
    after, before, change = map(float, found.groups())
    assert change == pytest.approx(after - before, abs=1.1e-4)
    truth = squares / "annotations" / "instances_val.json"
    for detector, value in ((onnx, before), (file, after)):
        pictures = squares / "images" / "val_*.png"
        measured = score(
            truth, predict(detector, pictures, annotations=truth, out=file.parent / precision)
        ).AP
        assert measured == pytest.approx(value, abs=2e-4)
    # So short a training gives no score of .3.
    assert said[-2].startswith(
        f"Warning: on 4 pictures of {squares} (val) nothing scores 0.3, so nothing was compared"
    )
    theirs = runtime.Detector(file, threads=1)
    assert (theirs.device.precision, theirs.about.precision) == (precision, precision)
    assert {one.type for one in theirs.session.get_inputs()} == {"tensor(float)", "tensor(int64)"}
    with pytest.raises(GhmdetError, match=rf"--precision fp32: .* is {precision}"):
        predict(file, squares / "images", out=file.parent / "other", precision="fp32")


def test_int8_is_of_the_convolutions_but_for_the_first_and_the_last(
    small: dict[str, tuple[Path, list[str]]],
) -> None:
    import onnx as library

    graph = library.load(str(small["int8"][0])).graph
    made = {output: node for node in graph.node for output in node.output}
    weights = [made.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]
    rounded = [one is not None and one.op_type == "DequantizeLinear" for one in weights]
    names = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    last = ["class_logits" in name or "box_deltas" in name for name in names]
    assert sum(last) == 8
    assert rounded == [number >= 3 and not so for number, so in enumerate(last)]
    # What is clipped is rounded once, after the clipping.
    assert not [
        node for node in graph.node if node.op_type == "Clip" and "Dequantize" in made[node.input[0]].op_type
    ]
    assert not {"NonMaxSuppression", "Exp", "Sigmoid"} & {
        node.op_type
        for node in graph.node
        if any("Dequantize" in made[i].op_type for i in node.input if i in made)
    }


def test_int8_is_calibrated_on_the_training_pictures_of_another_data_set_too(
    run: Path, squares: Path, onnx: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "run"
    moved.mkdir()
    shutil.copy(run / "best.pt", moved)  # no run.json says where the data are
    with pytest.raises(DataError, match="the data of the run: is not there: give --calibrate DATA"):
        export(moved / "best.pt", out=tmp_path / "x.onnx", precision="int8")
    said: list[str] = []
    export(
        moved / "best.pt",
        out=tmp_path / "x.onnx",
        raw=True,
        precision="int8",
        calibrate=squares,
        say=said.append,
    )
    assert said[2] == f"calibrating on 12 pictures of {squares} (train)"
    assert "(val) nothing scores 0.3, so nothing was compared" in said[3] and len(said) == 5
    with pytest.raises(GhmdetError, match="int8 is of ONNX files"):
        export(run / "best.pt", out=tmp_path / "x.pt2", precision="int8", format="torch")


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.95), ("int8", 0.9)])
def test_a_file_of_less_precision_is_compared_too(run: Path, precision: str, share: float) -> None:
    detector = Detector.load(run / "best.pt", device="cpu", precision="fp32")
    about = module.describe(detector, raw=False, precision=precision)
    image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    found = detector.predict(image, threshold=0)[0]
    boxes, scores, labels = (found[name].numpy() for name in ("boxes", "scores", "labels"))
    limits = module.TOLERANCES[precision]
    assert limits.share == share
    faint = scores < limits.least
    moved = boxes + np.where(faint, 50, 0.5 * limits.box).astype(np.float32)[:, None]
    assert module.compare(detector, lambda _: (moved, scores, labels), about, [image])[0] <= limits.box
    wrong = (
        np.concatenate((boxes, boxes[:1])),
        np.concatenate((scores, [0.9])),
        np.concatenate((labels, labels[:1])),
    )
    with pytest.raises(GhmdetError, match="not exported"):
        module.compare(detector, lambda _: wrong, about, [image])


def changed(run: Path, folder: Path, **arguments: str) -> Path:
    """A copy of the run's checkpoint, with other arguments in its run.json."""
    folder.mkdir()
    made = json.loads((run / "run.json").read_text())
    made["arguments"] |= arguments
    (folder / "run.json").write_text(json.dumps(made))
    return Path(shutil.copy(run / "best.pt", folder))


@pytest.mark.parametrize("raw", [True, False])
def test_a_network_whose_range_does_not_fit_16_bits_is_refused(
    run: Path, onnx: Path, tmp_path: Path, raw: bool
) -> None:
    checkpoint = changed(run, tmp_path / "wide")
    state = torch.load(checkpoint, weights_only=True)
    for name, weight in state["model"].items():  # the same outputs in fp32, by larger numbers within
        if name.startswith("neck.lateral."):
            weight *= 1e7
        if re.match(r"neck\.output\.\d+.*weight", name):
            weight /= 1e7
    torch.save(state, checkpoint)
    out, format = (tmp_path / "x.onnx", "onnx") if raw else (tmp_path / "x.pt2", "torch")
    with pytest.raises(GhmdetError, match="does not fit 16 bits: take --precision fp32 or int8"):
        export(checkpoint, out=out, raw=raw, precision="fp16", format=format, say=lambda line: None)
    assert not out.exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_raw_numbers_that_are_not_finite_are_refused(
    run: Path, precision: str, place: int, value: float
) -> None:
    detector = Detector.load(run / "best.pt", device="cpu", precision="fp32")
    about = module.describe(detector, raw=True, precision=precision)
    image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    outputs = module._run(module.trace(detector, raw=True), about)
    assert module.compare(detector, outputs, about, [image])[0] < 1e-3

    def wrong(picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        made = [one.copy() for one in outputs(picture)]
        made[place][0, -1, 0] = value
        return tuple(made)

    with pytest.raises(GhmdetError, match="the file gives numbers that are not finite"):
        module.compare(detector, wrong, about, [image])


@pytest.mark.parametrize("data", ["annotations/instances_val.json", "moved.json"])
def test_it_is_compared_on_the_pictures_of_the_records(
    run: Path, squares: Path, tmp_path: Path, data: str
) -> None:
    place = squares / data
    if data == "moved.json":  # the pictures lie elsewhere, as those of `ghmdet data split` do
        (tmp_path / "set" / "annotations").mkdir(parents=True)
        place = tmp_path / "set"
        for part in ("train", "val"):
            truth = json.loads((squares / "annotations" / f"instances_{part}.json").read_text())
            for image in truth["images"]:
                image["file_name"] = str(squares / "images" / image["file_name"])
            (place / "annotations" / f"instances_{part}.json").write_text(json.dumps(truth))
    said: list[str] = []
    export(
        changed(run, tmp_path / "run", data=str(place)),
        out=tmp_path / "x.pt2",
        format="torch",
        say=said.append,
    )
    assert re.match(r"the same as PyTorch on 4 pictures of .* \(val\): \d\d+ detections compared", said[1])


def test_where_nothing_is_sure_it_says_that_nothing_was_compared(run: Path, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    Image.new("RGB", (96, 72), (115, 115, 115)).save(tmp_path / "grey" / "a.png")
    said: list[str] = []
    export(
        run / "best.pt",
        out=tmp_path / "x.pt2",
        format="torch",
        precision="fp16",
        pictures=tmp_path / "grey",
        say=said.append,
    )
    assert said[1] == (
        f"Warning: on 1 picture of {tmp_path / 'grey'} nothing scores 0.3, so nothing was compared:"
        " give --pictures with objects that it knows"
    )


def test_a_damaged_validation_picture_is_said(run: Path, squares: Path, onnx: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "set")
    damaged = tmp_path / "set" / "images" / "val_2.png"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    said: list[str] = []
    export(
        changed(run, tmp_path / "run", data=str(tmp_path / "set")),
        out=tmp_path / "x.onnx",
        precision="fp16",
        say=said.append,
    )
    assert said[0].startswith("Warning: passed over: ") and str(damaged) in said[0]
    assert said[4].startswith("Warning: AP is not compared: ") and str(damaged) in said[4]
    assert said[5].startswith(f"Warning: on 3 pictures of {tmp_path / 'set'} (val) nothing scores 0.3")


def test_pictures_to_calibrate_on_are_refused_for_fp32(run: Path, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(GhmdetError, match="--calibrate is of --precision int8 and fp16: leave it out"):
        export(run / "best.pt", out=tmp_path / "x.pt2", format="torch", calibrate=squares)


def test_a_missing_package_and_a_folder_without_pictures_are_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no pictures here"):
        export(run / "best.pt", out=tmp_path / "x.pt2", format="torch", pictures=tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", dataclasses)
    with pytest.raises(GhmdetError, match=r"needs onnxscript: pip install 'ghmdet\[export\]'"):
        export(run / "best.pt", out=tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())
