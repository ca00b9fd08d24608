"""Parts of a data set of which no two have pictures that look alike: a validation part, and folds."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torchvision.transforms.v2.functional import to_pil_image

from ghmdet.data.images import load_image
from ghmdet.data.records import DetectionData, Problem, Record
from ghmdet.errors import DataError
from ghmdet.words import many

ALIKE = 6  # of 64 bits: in how many the hashes of two pictures of one group may differ
BLOCK = 1024  # pictures compared with all others at a time
RUNS = 20  # into which a group of more than half of the pictures is cut
CHANGES = 256  # groups that each chosen one may change places with

Ints = NDArray[np.int64]


def difference_hash(record: Record) -> NDArray[np.bool_]:
    """Whether the picture gets brighter to the right at 8 x 8 places: [64] bits (dHash, Krawetz 2013)."""
    grey = to_pil_image(load_image(record, (72, 72))).convert("L").resize((9, 8))
    pixels = np.asarray(grey, dtype=np.int16)
    return (pixels[:, 1:] > pixels[:, :-1]).ravel()


def alike(hashes: NDArray[np.bool_]) -> Ints:
    """The group of each of N pictures [N, 64], named by its first: chains of pictures that differ in few bits."""
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    parent = np.arange(len(signs))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for start in range(0, len(signs), BLOCK):
        near = signs[start : start + BLOCK] @ signs.T >= 64 - 2 * ALIKE
        for a, b in zip(*np.nonzero(near), strict=True):
            first, second = sorted((root(a + start), root(b)))
            parent[second] = first
    return np.array([root(index) for index in range(len(signs))], dtype=np.int64)


def scenes(data: DetectionData) -> tuple[Ints, NDArray[np.float64]]:
    """Groups of pictures that look alike: that of each picture [N], and what each holds [groups, K + 1].

    That is its boxes of each class, crowds left out, and its pictures. If more than half of the pictures look alike,
    they are cut into runs of consecutive names. Raises DataError when a picture cannot be read.
    """
    records, classes = data.records, len(data.classes)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        hashes = np.array(list(threads.map(difference_hash, records)), dtype=bool).reshape(-1, 64)
    group = alike(hashes)
    by_name = sorted(range(len(records)), key=records.name)
    for name, size in zip(*np.unique(group, return_counts=True), strict=True):
        if 2 * size > len(records):
            run = [index for index in by_name if group[index] == name]
            group[run] = len(records) + np.arange(size) * RUNS // size
    groups, group = np.unique(group, return_inverse=True)
    used = ~records.crowd
    picture = np.repeat(np.arange(len(records)), np.diff(records.offsets))[used]
    counts = np.zeros((len(groups), classes + 1))
    np.add.at(counts, (group[picture], records.labels[used]), 1)
    counts[:, classes] = np.bincount(group)
    return group, counts


def folds(data: DetectionData, number: int) -> list[Ints]:
    """The pictures of each of so many parts, of about equal numbers of pictures and of boxes of each class.

    Pictures that look alike are in one part (see `scenes`). The same for the same pictures. Raises DataError when there
    are fewer groups of them than parts, or a picture cannot be read.
    """
    group, counts = scenes(data)
    if len(counts) < number:
        groups = (
            f" in {many(len(counts), 'group')} that look alike" if len(counts) < len(data.records) else ""
        )
        raise DataError(
            f"{data.root}: {many(len(data.records), 'picture')}{groups} "
            f"are too few for {number} folds: give fewer --folds, or a --checkpoint that was trained on other pictures"
        )
    shares = counts / np.maximum(counts.sum(0), 1)
    parts, part_of = np.zeros((number, counts.shape[1])), np.zeros(len(counts), dtype=np.int64)
    # Those that weigh most first, each to the part that has least of it.
    for index in np.argsort(-shares.max(1), kind="stable"):
        part = int(((parts + shares[index]) ** 2 - parts**2).sum(1).argmin())
        parts[part] += shares[index]
        part_of[index] = part
    return [np.flatnonzero(part_of[group] == part) for part in range(number)]


def share_out(data: DetectionData, share: float = 0.2) -> tuple[DetectionData, DetectionData]:
    """A training and a validation part of a split; the same for the same pictures, and said in the first's problems.

    Pictures that look alike, as the frames of a film do, are in one part: groups of them go to the validation part
    until it has about `share` of the pictures and of the boxes of each class, the rarest first (see `scenes`). Every
    class stays in training; it is in both parts where more than one group has it.

    Raises DataError when there are too few pictures for two parts, or one cannot be read.
    """
    records, classes = data.records, len(data.classes)
    group, counts = scenes(data)
    groups = range(len(counts))
    total = counts.sum(0)
    wanted = np.maximum(share * total, 1)
    rarity = np.where(counts[:, :classes] > 0, total[:classes], np.inf).min(1)
    chosen, has = np.zeros(len(groups), dtype=bool), np.zeros(classes + 1)
    random = np.random.default_rng(0)
    for index in np.lexsort((random.permutation(len(groups)), rarity)):
        then = has + counts[index]
        nearer = (((then - wanted) / wanted) ** 2).sum() < (((has - wanted) / wanted) ** 2).sum()
        new_class = bool(((counts[index] > 0) & (has == 0)).any())
        if (nearer or (new_class and then[-1] <= 1.5 * wanted[-1])) and (then < total)[
            counts[index] > 0
        ].all():
            chosen[index], has = True, then
    # Going by the rarest class takes too much of what lies beside it: groups change places where that is nearer.
    for index in random.permutation(np.flatnonzero(chosen)):
        others = random.permutation(np.flatnonzero(~chosen))[:CHANGES]
        # None for it, or one.
        then = has - counts[index] + np.concatenate([np.zeros((1, classes + 1)), counts[others]])
        cost = (((then - wanted) / wanted) ** 2).sum(1)
        cost[((then == total) & (has < total)).any(1)] = np.inf  # a class would be gone from training
        cost[((then == 0) & (has > 0)).any(1)] = np.inf
        best = int(cost.argmin())
        if cost[best] < (((has - wanted) / wanted) ** 2).sum():
            chosen[index], has = False, then[best]
            if best:
                chosen[others[best - 1]] = True
    if not chosen.any():
        raise DataError(f"{data.root}: too few pictures ({len(records)}) for a validation part: add one")
    said = f"{int(has[-1])} of {many(len(records), 'picture')}"
    alike = len(groups) < len(records)
    said += (
        f", in {chosen.sum()} of {many(len(groups), 'group')} that look alike"
        if alike
        else ", no two of which look alike"
    )
    mend = "give a split of your own to choose it"
    made = Problem("note", "validation part made of the training part", str(data.root), "", said, mend)
    parts = np.flatnonzero(~chosen[group]), np.flatnonzero(chosen[group])
    train, val = (records.take(indices) for indices in parts)
    return (
        dataclasses.replace(data, records=train, problems=(*data.problems, made)),
        dataclasses.replace(data, records=val, problems=(), split="val"),
    )
