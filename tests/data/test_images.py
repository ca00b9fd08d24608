"""Opening pictures: upright, RGB, shrunk, and damaged ones named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghmdet.data import read_data, require_images
from ghmdet.data.images import load_image, require_apart, shrunk_size
from ghmdet.data.records import Record
from ghmdet.errors import DataError, GhmdetError
from ghmdet.pictures import image_size, read_pixels, upright_pixels
from small_sets import draw, three_pictures, write_coco, write_yolo


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


def test_loading_shrinks_to_the_limits_and_never_enlarges() -> None:
    assert shrunk_size(4000, 100, (288, 384)) == (384, 9)
    assert shrunk_size(480, 640, (288, 384)) == (288, 384)
    assert shrunk_size(10, 10, (288, 384)) == (10, 10)
    assert shrunk_size(640, 480, None) == (640, 480)


def test_picture_file_and_picture_in_memory_are_read_as_a_record_is(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(gradient(16, 32)).convert("RGB").save(tmp_path / "turned.jpg", exif=tags)
    Image.fromarray(gradient().astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("turned.jpg", "deep.png"):
        path = tmp_path / name
        pixels, loaded = read_pixels(path)[0], load_image(record(path, 32, 16))
        assert loaded.dtype == torch.uint8 and loaded.shape == (3, 16, 32) and loaded.is_contiguous()
        assert np.array_equal(pixels, loaded.permute(1, 2, 0))
        with Image.open(path) as image:
            assert np.array_equal(pixels, upright_pixels(image))
    assert 200 < int(read_pixels(tmp_path / "deep.png")[0].max()) <= 216  # not clipped to white
    with pytest.raises(DataError, match=r"no\.jpg: missing image"):
        read_pixels(tmp_path / "no.jpg")
    with pytest.raises(GhmdetError, match="float pixels have no known range"):
        upright_pixels(Image.fromarray(gradient().astype(np.float32)))


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
    assert message(path).startswith(f"{path}: unreadable image (cannot identify image file): replace")
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
    assert message(path).startswith(f"{path}: is a folder, not a picture (")
    assert "takes folders): remove its record; list" in message(path)


def test_missing_pictures_are_counted_and_the_first_named(tmp_path: Path) -> None:
    write_coco(tmp_path, three_pictures())
    data = read_data(tmp_path)
    require_images(data)
    for name in ("b.jpg", "c.jpg"):
        (tmp_path / "images" / name).unlink()
    (tmp_path / "images" / "c.jpg").symlink_to("nowhere")
    with pytest.raises(DataError) as caught:
        require_images(data)
    assert str(caught.value) == (
        f"{tmp_path / 'images' / 'b.jpg'}: missing image, the first of 2 of the 3 images of split train: "
        "put them there or remove their records; list every such image with 'ghmdet data check'"
    )
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError, match=r"a\.jpg: missing image, the first of 3 of the 3 images"):
        require_images(data)


def test_pictures_in_several_folders_and_outside_the_root_are_found(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", three_pictures())
    draw(tmp_path / "elsewhere" / "d.jpg", 20, 20)
    places = f"[images/train, {tmp_path / 'elsewhere'}]"
    (tmp_path / "set" / "data.yaml").write_text(f"train: {places}\nnames: [cat, dog, emu]\n")
    data = read_data(tmp_path / "set")
    assert len(data.records) == 4
    require_images(data)
    (tmp_path / "elsewhere" / "d.jpg").unlink()
    with pytest.raises(DataError, match=r"d\.jpg: missing image, the first of 1 of the 4 images"):
        require_images(data)


def test_a_picture_of_too_many_pixels_is_to_be_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wide.png"
    Image.new("L", (300, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert message(path).startswith(
        f"{path}: unreadable image (9000 pixels, more than 2000): cut it into tiles or "
    )


def test_a_folder_all_of_whose_pictures_count_is_no_place_for_others(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures(), "train/deep")
    write_yolo(tmp_path, three_pictures(), "val")
    part = read_data(tmp_path, "train")
    for inside in ("images/train", "images/train/run", "images/train/deep/run", "images/val/run"):
        with pytest.raises(DataError, match=r"images/(train|val), all of whose pictures are a part"):
            require_apart(tmp_path / inside, part)
    for outside in ("runs/x", "images"):
        require_apart(tmp_path / outside, part)
    (tmp_path / "train.txt").write_text("images/train/deep/a.jpg\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog, emu]\ntrain: train.txt\n")
    require_apart(tmp_path / "images" / "train" / "run", read_data(tmp_path, "train"))  # a list names its own


@pytest.mark.parametrize(
    "pattern", ["images/train/**/*.*", "images/tr*n/deep/*.jpg", "images/t[r]ain/**/*.jpg"]
)
def test_a_folder_that_a_pattern_searches_is_no_place_for_others(
    tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_yolo(tmp_path, three_pictures(), "train/deep")
    (tmp_path / "data.yaml").write_text(f"names: [cat, dog, emu]\ntrain: {pattern}\n")
    with pytest.raises(DataError, match=r"all of whose pictures are a part"):
        require_apart(tmp_path / "images" / "train" / "deep" / "run", read_data(tmp_path, "train"))
    require_apart(tmp_path / "runs" / "x", read_data(tmp_path, "train"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat, dog, emu]\ntrain: '**/*.jpg'\n")
    with pytest.raises(DataError, match=r"all of whose pictures are a part"):
        require_apart(Path("runs"), read_data("data.yaml", "train"))
