from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import naive
from ghmdet.errors import GhmdetError
from ghmdet.spectrum import SpectrumCounts, count_batch
from spectrum_cases import CLASSES, LEVELS, STRIDES, make_case

ARRAYS = ("pictures", "examples", "gradient", "boxes", "box_gradient")


def equal(one: SpectrumCounts, other: SpectrumCounts) -> bool:
    """The same counts; sums up to how a processor rounds a sigmoid at another place in memory."""
    counts = all(
        (getattr(one, name) == getattr(other, name)).all() for name in ("pictures", "examples", "boxes")
    )
    return counts and all(
        np.allclose(getattr(one, name), getattr(other, name)) for name in ("gradient", "box_gradient")
    )


def test_each_cell_counts_the_naive_examples_of_its_kind_class_level_and_region():
    spectrum, examples, coordinates = make_case()
    counts, sums = np.zeros((2, 3, 2, 30)), np.zeros((2, 3, 2, 30))
    for one in examples:
        counts[one.kind, one.label, one.level, naive.region(one.g, 30)] += 1
        sums[one.kind, one.label, one.level, naive.region(one.g, 30)] += one.g
    assert spectrum.examples.dtype == np.int64 and (spectrum.examples[0] == counts).all()
    np.testing.assert_allclose(spectrum.gradient[0], sums, rtol=1e-5)
    counts, sums = np.zeros((3, 2, 30)), np.zeros((3, 2, 30))
    for one in coordinates:
        counts[one.label, one.level, naive.region(one.gr, 30)] += 1
        sums[one.label, one.level, naive.region(one.gr, 30)] += one.gr
    assert (spectrum.boxes[0] == counts).all()
    np.testing.assert_allclose(spectrum.box_gradient[0], sums, rtol=1e-5)


def test_parts_add_up_to_the_whole():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 120, 3, generator=random)
    labels = torch.randint(-1, 4, (4, 120), generator=random)
    differences = torch.randn(4, 120, 4, generator=random)

    def part(rows: slice) -> SpectrumCounts:
        return count_batch(logits[rows], labels[rows], differences[rows], LEVELS, CLASSES, STRIDES)

    assert equal(part(slice(0, 1)) + part(slice(1, 4)), part(slice(0, 4)))
    assert equal(SpectrumCounts.empty(CLASSES, STRIDES) + part(slice(0, 4)), part(slice(0, 4)))
    assert part(slice(0, 4)).pictures.tolist() == [4]


def test_counts_beyond_float32_stay_exact():
    one = SpectrumCounts.empty(("a",), (8,))
    one.examples[..., 0] = 2**53
    other = SpectrumCounts.empty(("a",), (8,))
    other.examples[..., 0] = 1
    assert (one + other).examples[0, 0, 0, 0, 0] == 2**53 + 1


def test_epochs_stack_and_come_back_from_a_file(tmp_path: Path):
    first, second = make_case(0).spectrum, make_case(1).spectrum
    both = SpectrumCounts.stack([first, second])
    loaded = SpectrumCounts.load(both.save(tmp_path / "runs" / "spectrum.npz"))
    assert equal(loaded, both) and (loaded.classes, loaded.strides) == (CLASSES, STRIDES)
    assert equal(loaded[1:], second) and len(loaded[:0].pictures) == 0
    assert equal(both + both, SpectrumCounts.stack([first + first, second + second]))


def test_what_does_not_predict_a_number_or_is_ignored_is_told_apart():
    logits, labels = torch.zeros(1, 120, 3), torch.full((1, 120), 3)
    differences = torch.full((1, 120, 4), torch.nan)  # of background: not looked at
    labels[0, 0] = -1
    logits[0, 0] = torch.nan  # ignored: not looked at
    assert count_batch(logits, labels, differences, LEVELS, CLASSES, STRIDES).examples.sum() == 119 * 3
    labels[0, 5] = 1
    with pytest.raises(GhmdetError, match="box offsets are no numbers"):
        count_batch(logits, labels, differences, LEVELS, CLASSES, STRIDES)
    logits[0, 7] = torch.nan
    with pytest.raises(GhmdetError, match="class scores are no numbers"):
        count_batch(logits, labels, differences, LEVELS, CLASSES, STRIDES)


def test_spectra_that_do_not_fit_together_are_refused(tmp_path: Path):
    spectrum = make_case().spectrum
    other = SpectrumCounts.empty(("a", "b", "d"), STRIDES)
    with pytest.raises(GhmdetError, match=r"classes .* cannot be put together"):
        _ = spectrum + other
    with pytest.raises(GhmdetError, match=r"classes .* cannot be put together"):
        SpectrumCounts.stack([spectrum, other])
    with pytest.raises(GhmdetError, match="1 and 2 epochs"):
        _ = spectrum + SpectrumCounts.stack([spectrum, spectrum])
    with pytest.raises(GhmdetError, match="'examples' of a spectrum"):
        SpectrumCounts(("a",), STRIDES, *(getattr(spectrum, name) for name in ARRAYS))
    (tmp_path / "x.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "y.npz", classes=np.array(["a"]))
    for name in ("x.npz", "y.npz", "none.npz"):
        with pytest.raises(GhmdetError, match=rf"{name}: not a spectrum"):
            SpectrumCounts.load(tmp_path / name)
