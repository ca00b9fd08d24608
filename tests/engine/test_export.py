"""`ghmdet export`: files that detect what PyTorch does, on pictures of several sizes."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from engine_cases import film
from ghmdet import Detector, runtime
from ghmdet.engine import export as module
from ghmdet.engine.export import export
from ghmdet.engine.predict import predict
from ghmdet.errors import CheckpointError, DataError, GhmdetError
from ghmdet.evaluation.score import score

SIDES = ((72, 96), (96, 72), (300, 400), (96, 96), (40, 400), (50, 20))


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
    assert said[0].startswith(f"the same as PyTorch on 8 pictures of {squares}: boxes within ")
    assert said[1].startswith(f"{onnx}: ")
    assert said[1].endswith(" MB, detections of 2 classes, for pictures of any size")


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


def test_a_torch_program_is_compared_too_and_takes_any_size(run: Path, squares: Path, tmp_path: Path) -> None:
    said: list[str] = []
    file = export(run / "best.pt", out=tmp_path / "squares.pt2", format="torch", raw=True, say=said.append)
    assert "box offsets within" in said[0] and "logits and box offsets of 2 classes" in said[1]
    kept = {"ghmdet": ""}
    program = torch.export.load(file, extra_files=kept)
    about = runtime.About(**json.loads(kept["ghmdet"]))
    assert about.outputs == "raw"
    own = Detector.load(run / "best.pt", device="cpu", precision="fp32").model
    for picture in pictures(squares)[:4]:
        batch, _ = runtime.prepare(picture, about)
        found = program.module()(torch.from_numpy(batch))
        with torch.inference_mode():
            torch.testing.assert_close(
                tuple(found), own.forward_raw(torch.from_numpy(batch)), rtol=0, atol=1e-4
            )


def test_a_file_that_detects_something_else_is_not_written(run: Path) -> None:
    detector = Detector.load(run / "best.pt", device="cpu", precision="fp32")
    about = module.describe(detector, raw=False)
    image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    found = detector.predict(image, threshold=0)[0]
    right = tuple(found[name].numpy() for name in ("boxes", "scores", "labels"))
    assert len(right[1]) > 3
    assert module.compare(detector, lambda _: right, about, [image]) == (0, 0)
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


@pytest.fixture(scope="module")
def small(run: Path, onnx: Path) -> dict[str, tuple[Path, list[str]]]:
    """The files of less precision, and what was said of each."""
    made = {}
    for precision in ("fp16", "int8"):
        said: list[str] = []
        out = onnx.with_name(f"{precision}.onnx")
        made[precision] = export(run / "best.pt", out=out, precision=precision, say=said.append), said
    return made


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_file_of_less_precision_is_smaller_says_what_ap_it_costs_and_runs_as_any(
    run: Path, onnx: Path, squares: Path, small: dict[str, tuple[Path, list[str]]], precision: str
) -> None:
    file, said = small[precision]
    assert file.stat().st_size < {"fp16": 0.6, "int8": 0.4}[precision] * onnx.stat().st_size
    if precision == "int8":
        assert said.pop(0) == f"calibrated on 12 pictures of {squares} (train)"
    found = re.fullmatch(
        rf"AP on 4 pictures of {re.escape(str(squares))} \(val\): (\S+), in fp32 (\S+) \((\S+)\)", said[0]
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
    assert re.match(
        rf"{precision} beside fp32 on 8 pictures of .*: 9[05]% of what scores 0.3 have boxes within", said[-2]
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
    assert said[0] == f"calibrated on 12 pictures of {squares} (train)"
    assert "box offsets within" in said[1] and len(said) == 3
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
