"""Opening pictures: upright, RGB, shrunk, and damaged ones named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghmdet.data.images import fit_size, image_size, load_image, shrunk_size
from ghmdet.data.records import Record
from ghmdet.errors import DataError


def record(path: Path, width: int, height: int) -> Record:
    none = np.zeros(0)
    return Record(
        1,
        path,
        width,
        height,
        none.reshape(0, 4).astype("f4"),
        none.astype("i8"),
        none > 0,
        none.astype("f4"),
    )


def gradient(width: int = 32, height: int = 16) -> np.ndarray:
    """Grey levels that rise to the right and, less, downwards."""
    return (np.arange(width)[None, :] * 6 + np.arange(height)[:, None] * 2).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16", "I", "1"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    if suffix == ".png" and mode in ("CMYK", "I"):
        suffix = ".tif"  # PNG has neither
    grey = gradient()
    if mode in ("I;16", "I"):
        image = Image.fromarray(
            grey.astype(np.uint16) * 257 if mode == "I;16" else grey.astype(np.int32) * 257
        )
    elif mode == "P":
        image = Image.fromarray(grey).quantize(256)
    elif mode == "1":
        grey = np.where(grey > 127, 255, 0)
        image = Image.fromarray(grey.astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / f"a{suffix}"
    image.save(path)
    pixels = load_image(record(path, 32, 16))
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 16, 32) and pixels.is_contiguous()
    assert np.abs(pixels.numpy().astype(int) - grey).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    """A camera writes what stands upright after the turn that its tag names."""
    upright = Image.fromarray(gradient())
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    tags = Image.Exif()
    tags[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", quality=95, exif=tags)
    assert image_size(tmp_path / "a.jpg") == (32, 16)
    pixels = load_image(record(tmp_path / "a.jpg", 32, 16))
    assert np.abs(pixels[0].numpy().astype(int) - gradient()).mean() < 3


def test_annotation_made_on_the_unturned_picture_is_explained(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=tags)
    with pytest.raises(
        DataError, match=r"has 16x32 pixels, its annotation says 32x16: its EXIF orientation turns it: "
    ):
        load_image(record(tmp_path / "a.jpg", 32, 16))


def test_large_jpeg_decoded_small_keeps_its_content(tmp_path: Path) -> None:
    large = Image.fromarray(gradient()).resize((1600, 800), Image.Resampling.BICUBIC)
    for orientation in (1, 6):
        tags = Image.Exif()
        tags[0x0112] = orientation
        stored = large.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else large
        stored.save(tmp_path / "a.jpg", quality=95, exif=tags)
        pixels = load_image(record(tmp_path / "a.jpg", 1600, 800), (100, 200))
        assert pixels.shape == (3, 100, 200)
        whole = torch.from_numpy(np.asarray(large.resize((200, 100), Image.Resampling.BILINEAR)).copy())
        assert (pixels[0].float() - whole.float()).abs().mean() < 1


def test_fit_size_keeps_the_aspect_within_both_limits() -> None:
    assert fit_size(640, 480, 288, 384) == (384, 288)
    assert fit_size(480, 640, 288, 384) == (288, 384)
    assert fit_size(4000, 100, 288, 384) == (384, 10)
    assert fit_size(10, 10, 288, 384) == (288, 288)
    assert fit_size(1, 5000, 288, 384) == (1, 384)
    assert shrunk_size(10, 10, (288, 384)) == (10, 10)  # loading never enlarges
    assert shrunk_size(640, 480, None) == (640, 480)


def message(path: Path, width: int = 32, height: int = 16) -> str:
    with pytest.raises(DataError) as caught:
        load_image(record(path, width, height))
    text = str(caught.value)
    assert "\n" not in text and text.endswith("; list every such image with 'ghmdet data check'")
    return text


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    assert message(path).startswith(f"{path}: missing image: put it there or remove its record")
    path.write_bytes(b"")
    assert message(path).startswith(f"{path}: unreadable image (cannot identify image file")
    Image.fromarray(gradient(320, 160)).save(path)
    assert message(path).startswith(
        f"{path}: size mismatch: the file has 320x160 pixels, its annotation says 32x16: "
    )
    path.write_bytes(path.read_bytes()[:900])
    assert message(path, 320, 160).startswith(f"{path}: unreadable image (image file is truncated")
    png = tmp_path / "a.png"
    Image.fromarray(gradient(320, 160)).save(png)
    png.write_bytes(png.read_bytes()[:-80])
    assert message(png, 320, 160).startswith(f"{png}: unreadable image (")
    tif = tmp_path / "a.tif"
    Image.fromarray(gradient().astype(np.float32)).save(tif)
    assert "float pixels have no known range" in message(tif)
    path.unlink()
    path.mkdir()
    assert message(path).startswith(f"{path}: unreadable image (")
