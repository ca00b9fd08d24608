"""The loader: the same batches whatever the workers, ranks and cache; resuming within an epoch; errors that arrive."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ghmdet.data import (
    AugmentConfig,
    DetectionData,
    DetectionDataset,
    EvalTransforms,
    TrainTransforms,
    make_loader,
    read_data,
)
from ghmdet.data import dataset as dataset_module
from ghmdet.data.dataset import Draw
from ghmdet.data.loader import EpochBatches
from ghmdet.errors import DataError, GhmdetError
from small_sets import Picture, write_coco

Batches = list[tuple[list[Tensor], list[dict[str, Any]]]]
EVERYTHING = AugmentConfig(vflip=0.5, mosaic=0.4, hue=0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    """Eleven pictures of two sizes; the last has no box."""
    pictures = [
        Picture(f"{i}.png", 90, 60, [(i % 3, 3 * i, 2 * i, 3 * i + 30, 2 * i + 25)]) for i in range(9)
    ] + [Picture("9.png", 60, 90, [(0, 0, 0, 60, 90), (1, 5, 5, 20, 20)]), Picture("10.png", 90, 60)]
    root = tmp_path_factory.mktemp("set")
    write_coco(root, pictures)
    return read_data(root)


def training_set(data: DetectionData, cache: Any = "auto") -> DetectionDataset:
    return DetectionDataset(data, TrainTransforms(48, 72, EVERYTHING), cache=cache)


def take(loader: Any, *place: int) -> Batches:
    loader.batch_sampler.set_epoch(*place)
    return list(loader)


def ids(batches: Batches) -> list[list[int]]:
    return [[target["image_id"] for target in targets] for _, targets in batches]


def assert_equal(a: Batches, b: Batches) -> None:
    assert ids(a) == ids(b)
    for (images, targets), (others, wanted) in zip(a, b, strict=True):
        for image, other, target, want in zip(images, others, targets, wanted, strict=True):
            assert torch.equal(image, other)
            assert torch.equal(target["boxes"], want["boxes"]) and torch.equal(
                target["labels"], want["labels"]
            )


def test_items_have_the_contract_s_types(data: DetectionData) -> None:
    for dataset in (training_set(data), DetectionDataset(data, EvalTransforms(48, 72))):
        for image, target in dataset:  # type: ignore[attr-defined]
            assert image.dtype == torch.float32 and type(image) is Tensor and image.is_contiguous()
            assert image.min() >= 0 and image.max() <= 1 and image.shape[0] == 3
            assert type(target["boxes"]) is Tensor and target["boxes"].dtype == torch.float32
            assert target["labels"].dtype == torch.int64 and target["boxes"].shape == (
                len(target["labels"]),
                4,
            )
            assert isinstance(target["image_id"], int)
            assert target["original_size"].tolist() in ([60, 90], [90, 60])
        with pytest.raises(IndexError):
            dataset[11]


def test_crowd_regions_are_not_trained_on(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [Picture("a.png", boxes=[(0, 1, 1, 20, 20), (1, 5, 5, 40, 40)])])
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    _, target = DetectionDataset(read_data(tmp_path), EvalTransforms(40, 60))[0]
    assert target["labels"].tolist() == [1]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # loading puts back what it found
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_workers_change_no_batch(data: DetectionData) -> None:
    alone = make_loader(training_set(data), batch_size=4, shuffle=True, seed=5)
    helped = make_loader(training_set(data), batch_size=4, shuffle=True, seed=5, workers=2)
    for epoch in (0, 1):
        assert_equal(take(alone, epoch), take(helped, epoch))


def test_cache_changes_no_batch(data: DetectionData) -> None:
    plain = make_loader(training_set(data, cache=False), batch_size=4, shuffle=True)
    cached = make_loader(training_set(data, cache=True), batch_size=4, shuffle=True)
    for epoch in (0, 1, 2):
        assert_equal(take(plain, epoch), take(cached, epoch))


def test_cache_reads_each_picture_once_and_only_where_all_fit(
    data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = dataset_module.load_image
    monkeypatch.setattr(
        dataset_module,
        "load_image",
        lambda record, limits: (loaded.append(record.path.name), load(record, limits))[1],
    )
    for limit, times in ((1 << 30, 1), (1000, 2)):
        loaded.clear()
        monkeypatch.setattr(dataset_module, "CACHE_LIMIT", limit)
        loader = make_loader(DetectionDataset(data, EvalTransforms(48, 72)), batch_size=4, shuffle=True)
        take(loader, 0), take(loader, 1)
        assert len(loaded) == times * len(data.records)


def test_dataset_can_be_pickled_for_spawned_workers(data: DetectionData) -> None:
    dataset = training_set(data)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(dataset[Draw(3, 9)][0], again[Draw(3, 9)][0])


def test_epochs_and_seeds_differ_and_repeat(data: DetectionData) -> None:
    loader = make_loader(training_set(data), batch_size=4, shuffle=True, seed=1)
    first, second = take(loader, 0), take(loader, 1)
    assert ids(first) != ids(second)
    for batches in (first, second):
        assert sorted(chain.from_iterable(ids(batches))) == list(range(1, 12))
    assert_equal(first, take(loader, 0))
    other = make_loader(training_set(data), batch_size=4, shuffle=True, seed=2)
    assert ids(take(other, 0)) != ids(first)


def test_a_picture_is_varied_anew_each_epoch(data: DetectionData) -> None:
    loader = make_loader(training_set(data), batch_size=11, shuffle=False)
    first, second = take(loader, 0)[0][0], take(loader, 1)[0][0]
    assert sum(torch.equal(a, b) for a, b in zip(first, second, strict=True)) == 0


def test_loading_leaves_the_global_generator_alone(data: DetectionData) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    take(make_loader(training_set(data), batch_size=4, shuffle=True), 0)
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_goes_on_at_the_place(data: DetectionData, workers: int) -> None:
    loader = make_loader(training_set(data), batch_size=3, shuffle=True, seed=4, workers=workers)
    whole = take(loader, 2)
    assert len(whole) == len(loader) == 4
    loader.batch_sampler.set_epoch(2, start_batch=2)
    assert len(loader) == 2
    assert_equal(list(loader), whole[2:])
    assert_equal(take(loader, 2), whole)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_global_batch_in_order(data: DetectionData, world_size: int) -> None:
    def loader(**share: int) -> Any:
        return make_loader(training_set(data), batch_size=4, shuffle=True, seed=6, **share)

    alone = take(loader(), 1)
    ranks = [take(loader(rank=r, world_size=world_size), 1) for r in range(world_size)]
    joined = [
        (
            [image for images, _ in parts for image in images],
            [target for _, targets in parts for target in targets],
        )
        for parts in zip(*ranks, strict=True)
    ]
    assert_equal(joined, alone)


def test_last_batch(data: DetectionData) -> None:
    dataset = training_set(data)
    assert [len(b[0]) for b in take(make_loader(dataset, batch_size=4, shuffle=True), 0)] == [4, 4, 3]
    assert [len(b[0]) for b in take(make_loader(dataset, batch_size=4, shuffle=True, drop_last=True), 0)] == [
        4,
        4,
    ]
    only = take(make_loader(dataset, batch_size=12, shuffle=True, drop_last=True), 0)
    assert [len(b[0]) for b in only] == [11]  # the last batch is not dropped where it is the only one
    with pytest.raises(GhmdetError, match="batches of 5 and a last one of 1 cannot be shared by 2 processes"):
        make_loader(dataset, batch_size=5, shuffle=True, world_size=2)
    with pytest.raises(GhmdetError, match="batch size is 0: choose at least 1"):
        make_loader(dataset, batch_size=0, shuffle=True)
    shares = [
        [len(b[0]) for b in take(make_loader(dataset, batch_size=5, shuffle=False, rank=r, world_size=2), 0)]
        for r in (0, 1)
    ]
    assert shares == [[2, 2, 0], [3, 3, 1]]  # evaluation may leave a rank without a picture


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_picture_is_one_line_from_workers_too(tmp_path: Path, workers: int) -> None:
    write_coco(tmp_path, [Picture(f"{i}.jpg", 60, 40, [(0, 5, 5, 20, 20)]) for i in range(4)])
    bad = tmp_path / "images" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])
    loader = make_loader(
        DetectionDataset(read_data(tmp_path), EvalTransforms(40, 60)),
        batch_size=2,
        shuffle=False,
        workers=workers,
    )
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{bad}: unreadable image (image file is truncated")
    assert "\n" not in str(caught.value) and "ghmdet data check" in str(caught.value)


def test_mosaic_keeps_every_box_on_its_picture(tmp_path: Path) -> None:
    """Each picture has a rectangle of its label's colour; so has each box of a mosaic, and nothing else."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [Picture(f"{i}.png", 90, 60, [(i % 3, 10 + 5 * i, 8, 45 + 5 * i, 50)]) for i in range(6)]
    write_coco(tmp_path, pictures)
    for picture in pictures:
        image = Image.new("RGB", (90, 60), (90, 90, 90))
        label, *corners = picture.boxes[0]
        image.paste(colours[label], tuple(map(int, corners)))
        image.save(tmp_path / "images" / picture.name)
    config = AugmentConfig(mosaic=1.0, scale=(1, 1), min_visible=0, brightness=0, contrast=0, saturation=0)
    dataset = DetectionDataset(read_data(tmp_path), TrainTransforms(96, 144, config))
    seen = 0
    for seed in range(40):
        image, target = dataset[Draw(seed % 6, seed)]
        assert image.shape == (3, 96, 144)
        covered = torch.zeros(96, 144, dtype=torch.bool)
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            inner = image[:, round(y1) + 2 : round(y2) - 2, round(x1) + 2 : round(x2) - 2]
            wanted = torch.tensor(colours[label]) / 255
            assert inner.numel() == 0 or (inner - wanted[:, None, None]).abs().max() < 0.1
            covered[max(0, round(y1) - 2) : round(y2) + 2, max(0, round(x1) - 2) : round(x2) + 2] = True
            seen += 1
        coloured = image.max(0).values - image.min(0).values > 0.5
        missed = (coloured & ~covered).float().mean()
        assert missed < 0.01  # slivers under a pixel are dropped
    assert seen > 80


def test_shuffled_batches_hold_one_orientation_and_lose_no_picture() -> None:
    tall = np.arange(103) % 3 == 0  # 35 tall, 68 wide
    batches = EpochBatches(
        tall=tall, batch_size=8, shuffle=True, seed=0, drop_last=False, rank=0, world_size=1
    )
    for epoch in range(3):
        batches.set_epoch(epoch)
        drawn = [[draw.index for draw in batch] for batch in batches]
        assert sorted(chain.from_iterable(drawn)) == list(range(103))
        assert len(drawn) == len(batches) == 13
        assert all(len({bool(tall[index]) for index in batch}) == 1 for batch in drawn[:-2])
