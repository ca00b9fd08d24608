"""The exported detector without PyTorch: what it makes of a picture before the network sees it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghmdet import runtime
from ghmdet.engine.detect import to_tensor
from ghmdet.errors import CheckpointError, DataError, GhmdetError
from ghmdet.models import PRESETS
from ghmdet.models.preprocess import make_batch


def about(config: object, **more: object) -> runtime.About:
    names = {field.name for field in dataclasses.fields(runtime.About)}
    values = {name: value for name, value in dataclasses.asdict(config).items() if name in names}  # type: ignore[call-overload]
    return runtime.About(
        format=1, version="0", outputs="detections", classes=["a"], category_ids=[1], **values | more
    )


@pytest.mark.parametrize("preset", ["nano", "r50"])
@pytest.mark.parametrize(
    "sides",
    [(288, 384), (480, 640), (1200, 900), (100, 130), (7, 5), (1, 500), (2000, 31), (287, 384), (383, 383)],
)
def test_a_picture_is_prepared_as_for_training(preset: str, sides: tuple[int, int]) -> None:
    config = dataclasses.replace(PRESETS[preset], min_size=288, max_size=384)
    picture = np.random.default_rng(0).integers(0, 256, (*sides, 3), np.uint8)
    wanted = make_batch(
        [torch.from_numpy(picture).permute(2, 0, 1).float() / 255], config, torch.device("cpu")
    )
    batch, size = runtime.prepare(picture, about(config))
    assert [size] == wanted.sizes
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, wanted.images.numpy(), rtol=0, atol=2e-4)


def forms(folder: Path) -> list[runtime.Picture]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (20, 30, 3), np.uint8)
    turned, palette, grey16 = folder / "turned.jpg", folder / "palette.png", folder / "grey.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(turned, exif=exif)
    Image.fromarray(colours).quantize(8).save(palette)
    Image.fromarray(rng.integers(0, 65536, (20, 30), np.uint16)).save(grey16)
    alpha = rng.integers(0, 256, (20, 30, 4), np.uint8)
    return [
        turned,
        str(palette),
        grey16,
        colours,
        colours[..., 0],
        colours[..., :1],
        alpha,
        Image.open(turned),
    ]


def test_every_form_of_a_picture_is_read_as_by_the_detector_of_pytorch(tmp_path: Path) -> None:
    for form in forms(tmp_path):
        wanted = (to_tensor(form) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(runtime.read(form), wanted)
    assert runtime.read(tmp_path / "turned.jpg").shape == (30, 20, 3)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"cut\.jpg: unreadable"):
        runtime.read(tmp_path / "cut.jpg")
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(DataError, match="a picture of shape"):
            runtime.read(wrong)


def test_what_is_no_exported_detector_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(CheckpointError, match=r"no\.onnx: there is no such file"):
        runtime.Detector(tmp_path / "no.onnx")
    (tmp_path / "cut.onnx").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"cut\.onnx: no ONNX file"):
        runtime.Detector(tmp_path / "cut.onnx")
    with pytest.raises(GhmdetError, match="unknown device 'tpu'"):
        runtime.Detector(tmp_path / "cut.onnx", device="tpu")


def test_without_onnxruntime_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None\nfrom ghmdet.runtime import Detector\nDetector('x.onnx')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("an ONNX file needs onnxruntime: pip install onnxruntime")


def test_it_is_imported_without_torch() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'torchvision', 'timm', 'accelerate', 'matplotlib'))\n"
        "import ghmdet.runtime, ghmdet\nprint(ghmdet.runtime.Detector.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "Detector\n", done.stderr
