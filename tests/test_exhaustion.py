"""Inputs that would exhaust a machine, or a reader's patience: refused or read in linear time, in words of one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from ghmdet import Detector
from ghmdet.cli import main
from ghmdet.data import check_data, read_data
from ghmdet.data.values import shown
from ghmdet.engine.checkpoint import load_checkpoint, save_checkpoint
from ghmdet.errors import CheckpointError, DataError, GhmdetError
from ghmdet.models import RetinaNet
from ghmdet.models.presets import preset
from ghmdet.models.weights import load_weights
from small_sets import coco_content, draw, three_pictures, voc_xml, write_coco, write_voc, write_yolo

BOMB = "names: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", three_pictures())
    pictures = tmp_path / "set" / "images" / "train"
    os.mkfifo(pictures / "pipe.jpg")
    os.mkfifo(tmp_path / "set" / "labels" / "train" / "pipe.txt")
    (pictures / "zero.jpg").symlink_to("/dev/zero")
    assert len(read_data(tmp_path / "set").records) == 3
    check_data(tmp_path / "set")
    (tmp_path / "set" / "data.yaml").write_text("train: /dev/zero\nnames: [a, b, c]\n")
    with pytest.raises(DataError):
        read_data(tmp_path / "set" / "data.yaml")
    os.mkfifo(tmp_path / "instances_train.json")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_data(tmp_path / "instances_train.json")
    write_coco(tmp_path / "coco", three_pictures())
    content = coco_content(three_pictures())
    for name in ("/dev/zero", str(pictures / "pipe.jpg")):
        content["images"][0] |= {"file_name": name, "width": 0}
        (tmp_path / "coco" / "annotations" / "instances_train.json").write_text(json.dumps(content))
        said = " ".join(map(str, check_data(tmp_path / "coco")))
        assert "unreadable image (no file)" in said or "missing" in said


@pytest.mark.parametrize(
    "entry", ["/", "[images/train, /]", "/**", "//**/*.jpg", "..", "../..", "../**/*.jpg", "../*/**"]
)
def test_what_a_set_lies_in_is_no_part_of_it(entry: str, tmp_path: Path) -> None:
    write_yolo(tmp_path / "sets" / "one", three_pictures())
    (tmp_path / "sets" / "one" / "data.yaml").write_text(
        f"train: images/train\nval: {entry}\nnames: [a, b, c]\n"
    )
    with pytest.raises(DataError, match=r"val is [/.*jpg]+, which the data set lies in: give it a folder$"):
        read_data(tmp_path / "sets" / "one", "val")


@pytest.mark.parametrize(
    ("path", "entry"), [("..", "."), ("..", "images/val"), ("../images", "val"), (".", "../images/v*/*")]
)
def test_what_lies_beside_a_data_yaml_can_be_a_part(path: str, entry: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    write_yolo(tmp_path, three_pictures(), "val")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "data.yaml").write_text(f"path: {path}\ntrain: {entry}\nnames: [a, b, c]\n")
    (tmp_path / "data.yaml").unlink(missing_ok=True)
    assert len(read_data(tmp_path / "config" / "data.yaml", "train").records) >= 3


def test_what_lies_above_a_set_that_names_a_picture_there_is_not_looked_through(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", three_pictures())
    draw(tmp_path / "extra.jpg", 60, 40)
    draw(tmp_path / "home" / "no_part_of_it.jpg", 60, 40)
    (tmp_path / "set" / "list.txt").write_text("images/train/a.jpg\n../extra.jpg\n/\n")
    (tmp_path / "set" / "data.yaml").write_text("train: list.txt\nnames: [a, b, c]\n")
    began = time.process_time()
    said = " ".join(map(str, check_data(tmp_path / "set" / "data.yaml")))
    assert time.process_time() - began < 2
    assert (
        "b.jpg" in said and "no_part_of_it" not in said
    )  # which lies in a folder of the set, and which does not


def test_a_yaml_that_stands_for_millions_of_values_is_refused_at_once(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", three_pictures())
    for names in ("*a8", "{0: *a8, 1: b}"):
        bomb = BOMB.replace("names", "k0") + f"train: images/train\nnames: {names}\n"
        (tmp_path / "set" / "data.yaml").write_text(bomb)
        began = time.process_time()
        with pytest.raises(DataError) as raised:
            read_data(tmp_path / "set" / "data.yaml")
        assert time.process_time() - began < 2
        assert len(str(raised.value)) < 500
    nested: Any = "x"
    for _ in range(40):
        nested = [nested, nested, nested]
    for value in (nested, {"a": nested}, [nested] * 3):
        assert len(shown(value)) <= 60


ENTITIES = {
    "a bomb": (
        '<!ENTITY a0 "x">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)),
        "&a11;",
    ),
    "a long text": (f'<!ENTITY e "{"x" * 100_000}">', "&e;" * 20_000),
    "a file": ('<!ENTITY e SYSTEM "file:///etc/hostname">', "&e;"),
}


@pytest.mark.parametrize("what", ENTITIES)
def test_entities_of_an_xml_are_not_followed(what: str, tmp_path: Path) -> None:
    write_voc(tmp_path, three_pictures())
    declared, used = ENTITIES[what]
    content = voc_xml(three_pictures()[0]).replace("<name>cat", f"<name>{used}")
    (tmp_path / "Annotations" / "a.xml").write_text(f"<!DOCTYPE annotation [{declared}]>{content}")
    began = time.process_time()
    data = read_data(tmp_path)
    assert time.process_time() - began < 2
    assert data.classes == ("cat", "dog")  # those of the other picture
    assert "a.xml" in str(data.problems[0]) and len(str(data.problems[0])) < 500


def test_a_tag_of_a_yaml_runs_nothing(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    tags = [f"!!python/object/apply:os.system ['touch {tmp_path}/{name}']" for name in "abc"]
    (tmp_path / "data.yaml").write_text(
        "train: images/train\nnames:\n" + "".join(f"- {tag}\n" for tag in tags)
    )
    with pytest.raises(DataError):
        read_data(tmp_path / "data.yaml")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_many_categories_are_read_in_linear_time(tmp_path: Path) -> None:
    write_coco(tmp_path, three_pictures())
    content = coco_content(three_pictures())
    took = []
    for count in (10_000, 40_000):
        content["categories"] = [{"id": i, "name": f"c{i}"} for i in range(1, count + 1)]
        (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
        began = time.process_time()
        assert len(read_data(tmp_path).classes) == count
        took.append(time.process_time() - began)
    assert took[1] < 8 * took[0] + 0.2  # quadratic: 16 times, and 10 s


@pytest.mark.parametrize("name", ["train.json", "obj.data", "data.yaml"])
def test_a_key_that_is_there_twice_among_many_is_found_at_once(tmp_path: Path, name: str) -> None:
    keys = [*(f"k{i}" for i in range(12_000)), "last", "last"]
    lines = {"obj.data": "{} = 1", "data.yaml": "{}: 1", "train.json": '"{}": 1'}[name]
    text = (",\n" if name == "train.json" else "\n").join(map(lines.format, keys))
    (tmp_path / name).write_text(f"{{{text}}}" if name == "train.json" else text)
    began = time.process_time()
    with pytest.raises(DataError, match="'last' is given twice"):
        read_data(tmp_path / name)
    assert time.process_time() - began < (4 if name == "data.yaml" else 1)  # PyYAML's own pace


def test_what_a_name_may_hold_reaches_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["val", "\x1b[31m\x07\x9bred.pt", str(tmp_path)])
    error = capsys.readouterr().err
    assert r"\x1b[31m\x07\x9bred.pt" in error and error.count("\n") == 1
    assert all(one.isprintable() for one in error[:-1])


FULL = """
import resource, sys, torch
from pathlib import Path
from PIL import Image
from ghmdet import cli, files
def val(*given):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    files.write_atomic(Path(sys.argv[1]), CONTENT)
cli.app.command(val, name="fill")
cli.main(["fill"])
"""


@pytest.mark.parametrize(
    "content",
    [
        "lambda f: torch.save(torch.zeros(99_999), f)",
        "b'0' * 99_999",
        "lambda f: Image.effect_noise((300, 300), 99).save(f, 'JPEG')",
    ],
)
def test_a_full_disk_is_named_with_the_file_and_how_to_go_on(content: str, tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    file.write_text("before")
    done = subprocess.run(
        [sys.executable, "-c", FULL.replace("CONTENT", content), str(file)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"ghmdet: {file}: File too large: make room and give the same command again (train: with --resume)\n"
    )
    assert file.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["last.pt"]


CLOSED = """
import errno, resource, sys
from ghmdet import cli
def val():
    raise OSError(errno.EROFS, "Read-only file system", "x")
cli.app.command(val, name="closed")
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
cli.main(sys.argv[1:])
"""


def test_a_disk_that_takes_no_picture_and_one_that_may_not_be_written_say_what_to_do(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", three_pictures())
    for file in (tmp_path / "set").rglob("*.jpg"):  # larger than the disk takes
        Image.effect_noise((40, 60), 99).convert("RGB").save(file, quality=100)
    said = {
        (
            "data",
            "synth",
            str(tmp_path / "s"),
            "--images=4",
        ): "_00000.jpg: File too large: make room and give",
        (
            "data",
            "thin",
            str(tmp_path / "set"),
            str(tmp_path / "thin"),
            "--keep",
            "dog=1",
        ): f"{tmp_path / 'thin'}/",
        ("closed",): "ghmdet: x: Read-only file system: give a folder to write that is elsewhere (--out)",
    }
    for command, wanted in said.items():
        done = subprocess.run([sys.executable, "-c", CLOSED, *command], capture_output=True, text=True)
        assert done.returncode == 2 and wanted in done.stderr


NONSENSE: tuple[tuple[str, Any, str], ...] = (
    ("version", 0, "format version 0, this ghmdet reads 1: no ghmdet wrote that"),
    ("version", 2, "upgrade ghmdet"),
    ("version", "1", "no ghmdet wrote that"),
    ("config", [1], "'config' is a list"),
    ("config", {1: 2}, "are no text"),
    ("classes", [1, 2], "are no text"),
    ("classes", {"red": 1}, "'classes' is a dict"),
    ("classes", ["red", "red"], "named twice"),
    ("model", {3: torch.zeros(1)}, "are no text"),
    ("category_ids", [1], "category ids"),
    ("category_ids", [1, 1], "category ids"),
    ("category_ids", [1, 1, 2], "category ids"),
    ("category_ids", [1, "2"], "category ids"),
    ("category_ids", 5, "category ids"),
    *(
        ("config", {name: value}, "does not fit together")
        for name, value in (
            ("channels", -1),
            ("channels", "many"),
            ("extra_levels", 10**12),
            ("backbone", "no_such_network"),
            ("backbone", 7),
            ("tower_depth", 10**12),
            ("norm_groups", 7),
            ("anchor_ratios", [float("nan")]),
            ("anchor_scales", []),
            ("anchor_sizes", [[1.0]]),
            ("anchor_sizes", 3),
            ("anchor_rule", "anywhere"),
            ("size_divisible", 0),
            ("min_size", "small"),
            ("max_size", -5),
            ("std", [0.0, 1.0, 1.0]),
            ("mean", [float("inf"), 0.0, 0.0]),
            ("mean", 0.5),
            ("batch_norm_eps", [1e-5]),
            ("channels", [8, 8]),
            ("std", [0.2]),
            ("anchor_ratios", 1.0),
            ("nms_iou", None),
            ("topk_candidates", 0),
            ("unknown", 1),
        )
    ),
)


@pytest.mark.parametrize(("part", "value", "said"), NONSENSE)
def test_a_checkpoint_that_holds_nonsense_is_refused_in_one_line(
    part: str, value: Any, said: str, run: Path, tmp_path: Path
) -> None:
    state = dict(load_checkpoint(run / "best.pt"))
    state[part] = {**state[part], **value} if part == "config" and isinstance(value, dict) else value
    save_checkpoint(tmp_path / "a.pt", state)
    with pytest.raises(CheckpointError) as raised:
        Detector.load(tmp_path / "a.pt", device="cpu")
    text = str(raised.value)
    assert text.startswith(f"{tmp_path / 'a.pt'}: ") and "\n" not in text
    assert said in text


def test_without_a_network_the_hub_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    offline: list[bool] = []

    def unreachable(*address: object, **options: object) -> None:
        raise OSError("no network")

    def create(*arguments: object, **options: object) -> None:
        offline.append(constants.HF_HUB_OFFLINE)
        raise RuntimeError("not in the cache")

    model = RetinaNet(preset("r18"), ["a"])
    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(timm, "create_model", create)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(GhmdetError, match=r"no ImageNet weights .*go online once"):
        load_weights(model, "auto")
    assert offline == [True] and not constants.HF_HUB_OFFLINE
