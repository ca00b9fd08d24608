from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ghmdet import Detector, runtime
from ghmdet.cli import main
from ghmdet.data import read_data
from ghmdet.engine.detect import detect, to_tensor
from ghmdet.engine.evaluate import validate
from ghmdet.engine.predict import known_ids, predict
from ghmdet.engine.run_folder import same_data
from ghmdet.errors import CheckpointError, DataError, GhmdetError
from ghmdet.evaluation.score import score


@pytest.fixture(scope="module")
def detector(run: Path) -> Detector:
    return Detector.load(run / "best.pt", device="cpu", precision="fp32")


def results_of(run: Path, *pictures: Path, **options: Any) -> list[dict[str, Any]]:
    """What `predict` writes into predictions.json."""
    written: list[dict[str, Any]] = json.loads(predict(run / "best.pt", *pictures, **options).read_text())
    return written


def test_every_form_of_a_picture_gives_the_same_detections(detector: Detector, squares: Path) -> None:
    path = squares / "images" / "val_0.png"
    image = Image.open(path).convert("RGB")
    forms = [path, str(path), image, np.asarray(image), to_tensor(path)]
    for found in (detector.predict(form, threshold=0)[0] for form in forms):
        assert torch.equal(found["boxes"], detector.predict(path, threshold=0)[0]["boxes"])
        assert len(found["boxes"]) > 0
        assert (found["scores"].diff() <= 0).all()


def test_the_least_score_can_be_chosen_and_is_the_commands_by_default(
    detector: Detector, squares: Path
) -> None:
    path = squares / "images" / "val_0.png"
    whole = detector.predict(path, threshold=0)[0]
    least = float(whole["scores"][3])
    for threshold, options in ((least, {"threshold": least}), (0.3, {})):
        found = detector.predict(path, **options)[0]
        for name, value in found.items():
            assert torch.equal(value, whole[name][whole["scores"] >= threshold])
    assert len(detector.predict(path, threshold=least)[0]["scores"]) == 4 < len(whole["scores"])
    with pytest.raises(GhmdetError, match="threshold 30: give a number from 0 to 1"):
        detector.predict(path, threshold=30)


@pytest.mark.parametrize("form", [Path, str, lambda path: [path]])
def test_a_folder_or_a_pattern_for_a_picture_is_told_how(
    form: Any, detector: Detector, squares: Path
) -> None:
    for predict_one in (detector.predict, runtime.read):
        for wrong, what in (("images", "is a folder"), ("images/val_*.png", "is a pattern")):
            given = squares / wrong
            with pytest.raises(
                DataError, match=rf"{re.escape(str(given))}: {what}, .*glob.*`ghmdet predict`"
            ):
                predict_one(given if predict_one == runtime.read else form(given))


def shapes(squares: Path, folder: Path) -> list[Path]:
    """Pictures of five shapes, three of them of one padded size."""
    folder.mkdir()
    whole = Image.open(squares / "images" / "val_0.png")
    for number, (width, height) in enumerate(((96, 72), (60, 72), (96, 40), (96, 71), (80, 60))):
        whole.crop((0, 0, width, height)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert torch.equal(one["labels"], other["labels"])
    torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=1e-5)
    torch.testing.assert_close(one["boxes"], other["boxes"], rtol=0, atol=1e-3)


def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch(
    detector: Detector, squares: Path, tmp_path: Path
) -> None:
    paths = [*shapes(squares, tmp_path / "shapes"), *sorted((squares / "images").glob("val_*.png"))]
    alone = [detector.predict(path, threshold=0)[0] for path in paths]
    assert all(len(found["scores"]) for found in alone)
    everything = list(range(len(paths)))
    for order in (everything, everything[::-1], [4, 2, 0, 3, 1], [2, 1]):
        batch = detector.predict([paths[i] for i in order], threshold=0)
        for index, found in zip(order, batch, strict=True):
            for name, value in found.items():  # to the last bit in fp32 on a CPU
                assert torch.equal(value, alone[index][name])


def test_the_results_of_a_folder_and_of_a_data_set_do_not_depend_on_the_batch_size(
    run: Path, detector: Detector, squares: Path, tmp_path: Path
) -> None:
    paths = shapes(squares, tmp_path / "shapes")
    truth = {
        "images": [
            {
                "id": i,
                "file_name": path.name,
                "width": Image.open(path).width,
                "height": Image.open(path).height,
            }
            for i, path in enumerate(paths)
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
    }
    annotations = tmp_path / "shapes" / "instances_val.json"
    annotations.write_text(json.dumps(truth))
    data = read_data(annotations, "val")
    predicted, detected = [], []
    for batch_size in (1, 2, 5):
        out = tmp_path / f"out{batch_size}"
        predicted.append(
            results_of(
                run,
                tmp_path / "shapes",
                out=out,
                batch_size=batch_size,
                device="cpu",
                precision="fp32",
            )
        )
        detected.append(detect(detector.model, data, device=detector.device, batch_size=batch_size))
    for found in (predicted, detected):
        assert len(found[0]) > 5
        for other in found[1:]:
            assert [(one["image_id"], one["category_id"]) for one in other] == [
                (one["image_id"], one["category_id"]) for one in found[0]
            ]
            assert [one["score"] for one in other] == pytest.approx(
                [one["score"] for one in found[0]], abs=1e-5
            )


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros(8, np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        torch.zeros(8),
        torch.zeros(8, 8, 3),
        torch.zeros(3, 0, 8),
        torch.zeros(1, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
)
def test_an_array_of_another_form_is_refused_with_the_form_to_give(
    detector: Detector, picture: np.ndarray | torch.Tensor
) -> None:
    with pytest.raises(DataError, match=r"a picture of shape .* give uint8 \[H, W, 3\]"):
        detector.predict(picture)


def test_grey_and_rgba_arrays_are_seen_as_the_same_picture_in_rgb() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    rgb = np.stack([grey] * 3, axis=-1)
    opaque = np.concatenate([rgb, np.full((5, 7, 1), 255, np.uint8)], axis=-1)
    for form in (grey, grey[..., None], opaque, rgb[::1, ::-1][:, ::-1]):
        assert torch.equal(to_tensor(form), torch.from_numpy(rgb).permute(2, 0, 1) / 255)


def test_several_pictures_and_folders_are_named_from_the_folder_that_holds_all(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    for name in ("a/1.png", "b/1.png", "b/deep/2.png", "c/3.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(squares / "images" / "val_0.png", tmp_path / "in" / name)
    given = [tmp_path / "in" / name for name in ("b", "a/1.png", "b/deep/2.png", "c/3.png")]
    results = results_of(run, *given, out=tmp_path / "out", device="cpu", precision="fp32")
    names = {"a/1.png", "b/1.png", "b/deep/2.png", "c/3.png"}
    assert {one["file_name"] for one in results} == names
    drawn = {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*.jpg")}
    assert drawn == {f"{name}.jpg" for name in names}
    assert len(results) == 4 * len([one for one in results if one["file_name"] == "a/1.png"])
    with pytest.raises(DataError, match="no picture is given"):
        predict(run / "best.pt", out=tmp_path / "out")
    with pytest.raises(GhmdetError, match="would be overwritten"):
        predict(run / "best.pt", given[1], tmp_path / "out" / "a", out=tmp_path / "out")


def test_no_drawing_leaves_its_folder_and_no_picture_is_drawn_over(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("d/pics/1.png", "other/1.png", "other/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(squares / "images" / "val_0.png").convert("RGB").save(tmp_path / name, "JPEG")
        (tmp_path / name).rename((tmp_path / name).with_suffix(".jpg"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    monkeypatch.chdir(tmp_path / "d")
    given = [Path(name) for name in ("pics", "../other", "pics/../pics", "../other/../other/1.jpg")]
    results = results_of(run, *given, out=Path("../out"), device="cpu", precision="fp32")
    assert {path: path.read_bytes() for path in before} == before
    names = {"d/pics/1.jpg", "other/1.jpg", "other/2.jpg"}
    assert {one["file_name"] for one in results} == names
    drawn = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")}
    assert drawn == names


def test_a_linked_picture_keeps_the_name_of_its_link(run: Path, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(squares / "images" / "val_0.png")
    results = results_of(run, tmp_path / "in", out=tmp_path / "out", device="cpu", precision="fp32")
    assert {one["file_name"] for one in results} == {"link.png"}


def test_predictions_carry_the_annotations_ids_and_score_as_val_does(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    annotations = squares / "annotations" / "instances_val.json"
    (tmp_path / "in" / "below").mkdir(parents=True)
    for i in range(4):
        folder = tmp_path / "in" / ("below" if i % 2 else ".")
        (folder / f"val_{i}.png").write_bytes((squares / "images" / f"val_{i}.png").read_bytes())
    predict(
        run / "best.pt",
        tmp_path / "in",
        out=tmp_path / "out",
        annotations=annotations,
        device="cpu",
        precision="fp32",
    )
    assert (tmp_path / "out" / "below" / "val_1.png.jpg").exists()
    metrics = validate(run / "best.pt", squares, out=tmp_path / "val", device="cpu", precision="fp32")
    ours = score(annotations, tmp_path / "out" / "predictions.json")
    assert metrics.AP is not None and metrics.AP > 0
    assert pytest.approx(metrics.AP, abs=0.02) == ours.AP
    assert pytest.approx(metrics.AP, abs=1e-9) == score(annotations, tmp_path / "val" / "predictions.json").AP
    assert json.loads((tmp_path / "val" / "metrics.json").read_text())["AP"] == pytest.approx(metrics.AP)


def test_a_scoring_that_is_killed_leaves_no_old_score_beside_new_predictions(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: dict[str, Any] = {"out": tmp_path / "val", "device": "cpu", "precision": "fp32"}
    validate(run / "best.pt", squares, **usual)

    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ghmdet.engine.evaluate.write_predictions", cut_off)
    with pytest.raises(KeyboardInterrupt):
        validate(run / "best.pt", squares, split="train", **usual)
    left = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert left["split"] == "train" and "AP" not in left and "checkpoint_digest" not in left


def test_a_turned_or_16_bit_picture_is_the_same_as_its_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray((np.arange(32, dtype=np.uint16) * 2000).reshape(4, 8)).save(tmp_path / "deep.png")
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert torch.equal(to_tensor(picture), to_tensor(path))


def test_pictures_are_never_overwritten_nor_their_drawings_looked_at_again(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    shutil.copy(squares / "images" / "val_0.png", tmp_path / "a.png")
    for out in (tmp_path, tmp_path / "." / ""):
        with pytest.raises(GhmdetError, match="would be overwritten"):
            predict(run / "best.pt", tmp_path, out=out, device="cpu")
    for _ in range(2):
        predict(run / "best.pt", tmp_path, out=tmp_path / "out", device="cpu", precision="fp32")
        assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"a.png.jpg", "predictions.json"}


def test_every_picture_has_a_drawing_of_its_own_and_folders_are_no_pictures(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    names = ["a.png", "a.png.jpg", "b.png", "b.png.jpg/c.png", "folder.jpg/d.jpg", "e.jpeg", "e.JPG", "e"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(squares / "images" / "val_0.png").convert("RGB").save(
            tmp_path / "in" / name, "PNG" if name.endswith("png") else "JPEG"
        )
    results = results_of(run, tmp_path / "in", out=tmp_path / "out", device="cpu", precision="fp32")
    assert {result["file_name"] for result in results} == set(names) - {"e"}
    written = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    assert [path.as_posix() for path in written if (tmp_path / "out" / path).is_file()] == [
        "a.png.jpg",
        "a.png.jpg.jpg",
        "b.png.jpg/c.png.jpg",
        "b.png.jpg.jpg",
        "e.JPG",
        "e.jpeg",
        "folder.jpg/d.jpg",
        "predictions.json",
    ]


@pytest.mark.parametrize("out", [".", "in", "in/.."])
def test_a_folder_that_holds_the_pictures_is_not_drawn_into(
    run: Path, squares: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(squares / "images" / "val_0.png", tmp_path / "in" / "a.png")
    with pytest.raises(GhmdetError, match="would be overwritten: give another folder"):
        predict(run / "best.pt", tmp_path / "in", out=tmp_path / out, device="cpu")


def test_broken_pictures_are_named_and_the_others_get_their_results(
    run: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "c.png"):
        shutil.copy(squares / "images" / "val_0.png", tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes(b"broken")
    (tmp_path / "in" / "d.png").write_bytes((squares / "images" / "val_0.png").read_bytes()[:999])
    (tmp_path / "in" / "e.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(run / "best.pt"), str(tmp_path / "in"), f"--out={tmp_path / 'out'}"])
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert said.err == (
        f"ghmdet: 3 of 5 pictures could not be read; the results of the others are in {tmp_path / 'out'}\n"
    )
    for name, reason in (("b", "unreadable image"), ("d", "unreadable image"), ("e", "missing image")):
        assert f"\n{tmp_path / 'in' / name}.png: {reason}" in said.out
    assert said.out.count("leave it out\n") == 3
    assert not re.search("record|data check|annotation", said.out)
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {result["file_name"] for result in results} == {"a.png", "c.png"}
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {"a.png.jpg", "c.png.jpg"}


def test_predictions_can_be_read_without_their_annotations_and_by_pycocotools(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    shutil.copytree(squares, tmp_path / "set")
    annotations = tmp_path / "set" / "annotations" / "instances_val.json"
    truth = json.loads(annotations.read_text())
    truth["categories"] = [{"id": 1, "name": "blue"}, {"id": 7, "name": "red"}]
    for one in truth["annotations"]:
        one["category_id"] = {1: 7, 2: 1}[one["category_id"]]
    annotations.write_text(json.dumps(truth))
    (tmp_path / "写真").mkdir()
    for i in range(4):
        shutil.copy(squares / "images" / f"val_{i}.png", tmp_path / "写真")
    validate(run / "best.pt", tmp_path / "set", out=tmp_path / "val", device="cpu", precision="fp32")
    returned = results_of(
        run,
        tmp_path / "写真",
        tmp_path,
        out=tmp_path / "out",
        annotations=None,
        device="cpu",
        precision="fp32",
    )
    assert len(returned) > 0
    assert "写真/val_0.png" in (tmp_path / "out" / "predictions.json").read_text(encoding="utf-8")
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    for folder, classes in (("val", {7: "red", 1: "blue"}), ("out", {1: "red", 2: "blue"})):
        results = json.loads((tmp_path / folder / "predictions.json").read_text())
        assert {one["category_id"] for one in results} == set(classes)
        assert all(one["category_name"] == classes[one["category_id"]] for one in results)
        if folder == "val":
            assert all(one["file_name"] == names[one["image_id"]] for one in results)
    loaded = COCO(str(annotations)).loadRes(str(tmp_path / "val" / "predictions.json"))
    assert len(loaded.anns) == len(json.loads((tmp_path / "val" / "predictions.json").read_text())) > 0


def test_drawings_of_an_earlier_predict_go_and_other_files_stay(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    for name in ("one/a.png", "one/deep/b.jpeg", "two/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(squares / "images" / "val_0.png").convert("RGB").save(tmp_path / name)
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    own = {"mine.jpg": "JPEG", "deep/mine.jpeg": "JPEG", "note.png": "PNG"}
    for name, format in own.items():
        Image.new("RGB", (8, 8)).save(out / name, format)
    (out / "broken.jpg").write_bytes(b"mine too")
    kept = {*own, "broken.jpg", "predictions.json"}

    def files() -> set[str]:
        return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}

    options: dict[str, Any] = {"out": out, "device": "cpu", "precision": "fp32"}
    predict(run / "best.pt", tmp_path / "one", **options)
    assert files() == kept | {"a.png.jpg", "deep/b.jpeg"}
    said: list[str] = []
    predict(run / "best.pt", tmp_path / "two", **options, say=said.append)
    assert files() == kept | {"a.png.jpg"}
    assert said[0] == f"2 drawings of an earlier predict are removed from {out}"
    (tmp_path / "two" / "a.png").rename(tmp_path / "two" / "z.png")
    predict(run / "best.pt", tmp_path / "two", **options, say=(again := list[str]()).append)
    assert again[0] == f"1 drawing of an earlier predict is removed from {out}"
    (tmp_path / "two" / "z.png").rename(tmp_path / "two" / "a.png")
    predict(run / "best.pt", tmp_path / "two", **options, say=said.append)
    # Nothing of another origin is drawn over, and nothing is lost by trying.
    shutil.copy(tmp_path / "one" / "deep" / "b.jpeg", tmp_path / "two" / "mine.jpg")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(GhmdetError, match=r"mine\.jpg: would be overwritten, .*give another --out"):
        predict(run / "best.pt", tmp_path / "two", **options)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # A folder in which only drawings were may become a drawing.
    (tmp_path / "three" / "c.png.jpg").mkdir(parents=True)
    shutil.copy(tmp_path / "two" / "a.png", tmp_path / "three" / "c.png.jpg")
    predict(run / "best.pt", tmp_path / "three", tmp_path / "two" / "a.png", **options)
    shutil.rmtree(tmp_path / "three")
    (tmp_path / "three").mkdir()
    shutil.copy(tmp_path / "two" / "a.png", tmp_path / "three" / "c.png")
    predict(run / "best.pt", tmp_path / "three", **options)
    assert files() == kept | {"c.png.jpg"}


def test_results_of_other_data_lie_beside_those_of_the_runs_own(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own)
    for name in ("x/other", "y/other"):
        shutil.copytree(squares, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def folders(*data: Path | str) -> list[str]:
        for each in data:
            validate(own / "best.pt", Path(each), device="cpu", precision="fp32", say=lambda line: None)
        return sorted(path.parent.name for path in own.glob("*/metrics.json"))

    assert folders(squares) == ["val"]
    metrics = (own / "val" / "metrics.json").read_text()
    assert folders("x/other", "x/other", "x/other") == ["val", "val-other"]
    assert folders(tmp_path / "y" / "other", "x/other") == ["val", "val-other", "val-other-2"]
    monkeypatch.chdir(tmp_path / "y")  # the same words mean other data here
    assert folders("other") == ["val", "val-other", "val-other-2"]
    for folder, data in (("val-other", "x/other"), ("val-other-2", "y/other"), ("val", squares)):
        assert json.loads((own / folder / "metrics.json").read_text())["data"] == str(tmp_path / data)
    assert (own / "val" / "metrics.json").read_text() == metrics
    (own / "run.json").unlink()  # nobody knows then whose data is whose
    assert folders(squares) == ["val", "val-other", "val-other-2", f"val-{squares.name}"]


def test_data_is_the_runs_own_however_it_is_named_and_labels_that_were_learnt_are_said_to_be(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    own, copy = tmp_path / "run", tmp_path / "copy"
    shutil.copytree(run, own)
    shutil.copytree(squares, copy)
    (tmp_path / "link").symlink_to(squares)
    file = squares / "annotations" / "instances_{}.json"

    def learnt(data: Path, split: str) -> list[str]:
        said = list[str]()
        where: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
        validate(own / "best.pt", Path(str(data).format(split)), split=split, say=said.append, **where)
        return [line for line in said if "very labels" in line]

    warning = "Warning: 12 of these 12 pictures were trained on, with these very labels: AP says what"
    for data in (squares, file, tmp_path / "link"):
        assert not learnt(data, "val")
        assert learnt(data, "train")[0].startswith(warning)
    assert sorted(path.parent.name for path in own.glob("*/metrics.json")) == ["train", "val"]
    assert learnt(copy, "train")[0].startswith(warning) and (own / "train-copy").exists()
    truth = json.loads((copy / "annotations" / "instances_train.json").read_text())
    truth["annotations"][0]["bbox"][0] += 1  # a label that was mended
    truth["images"][5]["file_name"] = "val_0.png"  # a picture that it has not seen
    (copy / "annotations" / "instances_train.json").write_text(json.dumps(truth))
    assert learnt(copy, "train")[0].startswith("Warning: 10 of these 12 pictures")
    (own / "last.pt").unlink()
    assert not learnt(copy, "train")


def test_two_files_that_say_no_part_are_two_data_sets_in_one_folder(tmp_path: Path) -> None:
    for name in ("a.json", "b.json", "data.yaml", "instances_train.json"):
        (tmp_path / name).touch()
    assert not same_data(tmp_path / "a.json", str(tmp_path / "b.json"))
    assert not same_data(tmp_path / "a.json", tmp_path)
    assert same_data(tmp_path / "data.yaml", tmp_path) and same_data(
        tmp_path, tmp_path / "instances_train.json"
    )


def test_two_pictures_are_not_taken_for_one_of_the_annotations(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "1.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "red"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image 7 is wanted for x/1\.jpg and for y/1\.jpg: leave one out"):
        known_ids(tmp_path / "a.json", [Path("x/1.jpg"), Path("y/1.jpg")], [])


def test_ids_come_from_the_annotations_by_name(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": 7, "file_name": "x/1.jpg"},
            {"id": 8, "file_name": "y/1.jpg"},
            {"id": 9, "file_name": "2.jpg"},
        ],
        "annotations": [],
        "categories": [{"id": 40, "name": "blue"}, {"id": 30, "name": "red"}],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    names = [Path(name) for name in ("x/1.jpg", "y/1.jpg", "z/2.jpg")]
    assert known_ids(file, names, ["red", "blue"]) == ([7, 8, 9], (30, 40))
    with pytest.raises(
        DataError, match=r"2 images of file name 1\.jpg, wanted for z/1\.jpg: give the folder"
    ):
        known_ids(file, [Path("z/1.jpg")], [])
    with pytest.raises(DataError, match=r"no category 'green'.*: give annotations of its classes"):
        known_ids(file, names, ["green"])
    for boxes in ({}, {"annotations": None}):  # as for pictures that nobody has labelled
        file.write_text(json.dumps({name: content[name] for name in ("images", "categories")} | boxes))
        assert known_ids(file, names, ["red", "blue"]) == ([7, 8, 9], (30, 40))
    twice = [{"id": 8, "file_name": "y/1.jpg"}, {"id": 8, "file_name": "z/3.jpg"}]
    file.write_text(json.dumps(content | {"images": twice}))
    for name in ("y/1.jpg", "z/3.jpg"):  # its results would be those of another picture
        with pytest.raises(
            DataError, match=r"no image of file name .*\(not taken: .*3\.jpg', duplicate image id 8"
        ):
            known_ids(file, [Path(name)], ["red"])
    file.write_text("[]")
    with pytest.raises(DataError, match=r"a\.json: a JSON list"):
        known_ids(file, names, [])
    file.write_text(json.dumps({"images": content["images"]}))
    with pytest.raises(DataError, match=r"a\.json: no list 'categories'"):
        known_ids(file, names, [])


def test_pictures_that_cannot_be_used_are_named(run: Path, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such picture or folder"):
        predict(run / "best.pt", tmp_path / "nothing", out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no pictures here \(.{,70}\): give a folder of some"):
        predict(run / "best.pt", tmp_path / "empty", out=tmp_path / "out")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    with pytest.raises(DataError, match="1 of 1 picture could not be read"):
        predict(run / "best.pt", tmp_path / "cut.jpg", out=tmp_path / "out")
    with pytest.raises(DataError, match=r"has no image of file name cut\.jpg.*: add it there, or leave"):
        annotations = squares / "annotations" / "instances_val.json"
        predict(run / "best.pt", tmp_path / "cut.jpg", out=tmp_path / "out", annotations=annotations)
    with pytest.raises(CheckpointError, match=r"cut\.jpg"):
        predict(tmp_path / "cut.jpg", squares / "images", out=tmp_path / "out")
