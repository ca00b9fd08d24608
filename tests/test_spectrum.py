from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ghmdet.spectrum
import naive
from ghmdet import GradientSpectrum
from ghmdet.errors import GhmdetError
from ghmdet.functional.density import RegionCounts
from ghmdet.spectrum import SpectrumCounts, SpectrumSums
from operations import Operations, as_an_accelerator
from spectrum_cases import CLASSES, STRIDES, added, count_batch, make_case


def counts(*regions: float, positives: float = 0.0) -> RegionCounts:
    return RegionCounts(torch.tensor([[*regions, sum(regions), positives]], dtype=torch.float32))


def random_counts(steps: int, bins: int = 3) -> list[RegionCounts]:
    return [RegionCounts(torch.randint(0, 50, (1, bins + 2)).float()) for _ in range(steps)]


def test_without_momentum_the_density_is_the_batchs():
    spectrum = GradientSpectrum(2)
    spectrum.update(counts(5, 1))
    assert torch.equal(spectrum.update(counts(2, 7)).table, counts(2, 7).table)


def test_the_first_average_is_the_first_batch():
    assert torch.equal(GradientSpectrum(2, momentum=0.75).update(counts(5, 1)).table, counts(5, 1).table)


@settings(max_examples=25, deadline=None)
@given(momentum=st.floats(0, 0.99), steps=st.integers(1, 12))
def test_the_average_is_bias_corrected(momentum, steps):
    seen = random_counts(steps)
    spectrum = GradientSpectrum(3, momentum=momentum)
    for c in seen:
        average = spectrum.update(c)
    expected = sum(
        momentum ** (steps - s) * (1 - momentum) * c.table.double() for s, c in enumerate(seen, start=1)
    ) / (1 - momentum**steps)
    torch.testing.assert_close(average.table.double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(spectrum.compute().table, average.table)


def test_an_empty_region_decays():
    spectrum = GradientSpectrum(2, momentum=0.5)
    spectrum.update(counts(8, 8))
    for _ in range(20):
        average = spectrum.update(counts(8, 0))
    assert average.regions[0, 0] == 8 and 0 < average.regions[0, 1] < 1e-4


def test_equal_batches_give_their_counts_whatever_the_momentum():
    spectrum = GradientSpectrum(2, momentum=0.9)
    for _ in range(7):
        average = spectrum.update(counts(3, 4, positives=2))
    torch.testing.assert_close(average.table, counts(3, 4, positives=2).table)


@pytest.mark.parametrize("still", ["eval", "no_grad", "inference_mode"])
def test_the_average_is_only_read_in_evaluation(still):
    spectrum = GradientSpectrum(2, momentum=0.5)
    spectrum.update(counts(4, 0))
    before = copy.deepcopy(spectrum.state_dict())
    if still == "eval":
        spectrum.eval()
        seen = spectrum.update(counts(0, 4))
    else:
        with getattr(torch, still)():
            seen = spectrum.update(counts(0, 4))
    torch.testing.assert_close(seen.regions, torch.tensor([[4 / 3, 8 / 3]]))  # includes the present batch
    assert all(torch.equal(before[name], value) for name, value in spectrum.state_dict().items())


def test_calls_of_one_accumulated_step_move_the_average_once_by_their_mean():
    seen = random_counts(12)
    every_call = GradientSpectrum(3, momentum=0.8, accumulation_steps=3)
    every_step = GradientSpectrum(3, momentum=0.8)
    for i, c in enumerate(seen):
        average = every_call.update(c)
        if i % 3 == 2:
            mean = RegionCounts(torch.stack([s.table for s in seen[i - 2 : i + 1]]).mean(0))
            torch.testing.assert_close(average.table, every_step.update(mean).table)
            torch.testing.assert_close(every_call.compute().table, every_step.compute().table)


def test_within_an_accumulated_step_the_density_includes_the_calls_so_far():
    spectrum = GradientSpectrum(2, momentum=0.5, accumulation_steps=2)
    assert spectrum.update(counts(8, 0)).regions.tolist() == [[8, 0]]
    assert spectrum.compute().regions.tolist() == [[8, 0]]
    assert spectrum.update(counts(0, 8)).regions.tolist() == [[4, 4]]
    torch.testing.assert_close(spectrum.update(counts(10, 10)).regions, torch.tensor([[8.0, 8.0]]))


def test_what_is_kept_of_an_unfinished_step_is_the_mean_of_its_calls():
    spectrum = GradientSpectrum(2, momentum=0.5, accumulation_steps=3)
    for seen in (counts(8, 0), counts(0, 8)):
        average = spectrum.update(seen)
    assert spectrum.compute().regions.tolist() == average.regions.tolist() == [[4, 4]]


def test_before_the_first_batch_the_average_is_zero():
    assert (GradientSpectrum(2).compute().table == 0).all()


def test_reset_forgets_everything():
    spectrum = GradientSpectrum(2, momentum=0.5)
    spectrum.update(counts(6, 1))
    spectrum.reset()
    assert torch.equal(spectrum.update(counts(2, 3)).table, counts(2, 3).table)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), "state dict"])
def test_a_copy_goes_on_as_the_original(copy_of):
    def new():
        return GradientSpectrum(3, momentum=0.7, accumulation_steps=2)

    original, seen = new(), random_counts(6)
    for c in seen[:3]:
        original.update(c)
    if copy_of == "state dict":
        other = new()
        other.load_state_dict(original.state_dict())
    else:
        other = copy_of(original)
    for c in seen[3:]:
        assert torch.equal(original.update(c).table, other.update(c).table)


def half(spectrum: GradientSpectrum, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: value.to(dtype) for name, value in spectrum.state_dict().items()}


def assign(spectrum: GradientSpectrum, dtype: torch.dtype) -> None:
    """As model hubs set what they read from a file."""
    for name, value in half(spectrum, dtype).items():
        setattr(spectrum, name, value)


def cast_in_place(spectrum: GradientSpectrum, dtype: torch.dtype) -> None:
    """As sharded training does with its `buffer_dtype`."""
    for buffer in spectrum.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)


NARROWING = {
    "to": lambda s, dtype: s.to(dtype),
    "load_state_dict": lambda s, dtype: s.load_state_dict(half(s, dtype)),
    "load_state_dict, assign": lambda s, dtype: s.load_state_dict(half(s, dtype), assign=True),
    "setattr": assign,
    "data": cast_in_place,
}


def check_dtypes(spectrum: GradientSpectrum) -> None:
    dtypes = {name: value.dtype for name, value in spectrum.state_dict().items()}
    floats = dict.fromkeys(["total", "mass", "pending"], torch.float32)
    assert dtypes == {**floats, "calls": torch.int64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_statistics_are_float32_whatever_the_default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        spectrum = GradientSpectrum(2, momentum=0.5)
        check_dtypes(spectrum)
        spectrum.update(RegionCounts(torch.tensor([[100_003.0, 3, 100_006, 2]], dtype=torch.float32)))
        spectrum.reset()
        spectrum.update(RegionCounts(torch.tensor([[100_003.0, 3, 100_006, 2]], dtype=torch.float32)))
    finally:
        torch.set_default_dtype(before)
    check_dtypes(spectrum)
    assert spectrum.compute().regions.tolist() == [[100_003, 3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", NARROWING)
def test_statistics_are_float32_whatever_is_done_to_the_model(how, dtype):
    spectrum = GradientSpectrum(2, momentum=0.5, accumulation_steps=2)
    for _ in range(3):
        spectrum.update(counts(2048, 512))  # numbers that half precision has too
    NARROWING[how](spectrum, dtype)
    assert spectrum.compute().regions.tolist() == [[2048, 512]]
    for _ in range(3):
        average = spectrum.update(counts(100_003, 3))
    check_dtypes(spectrum)
    # Steps of 2048 twice, of their mean, and of 100003; the first two calls counted before.
    expected = (0.25 * 2048 + 0.5 * (2048 + 100_003) / 2 + 100_003) / 1.75
    assert average.regions[0, 0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("how", NARROWING)
def test_statistics_too_large_for_half_precision_are_kept_or_begin_anew(how):
    spectrum = GradientSpectrum(2, momentum=0.5)
    spectrum.update(counts(123_457, 3))
    NARROWING[how](spectrum, torch.float16)
    kept = [[123_457, 3]] if how == "to" else [[0, 0]]
    assert spectrum.compute().regions.tolist() == kept
    average = spectrum.update(counts(123_457, 3))
    check_dtypes(spectrum)
    assert average.regions.tolist() == [[123_457, 3]] and spectrum.mass == (1.5 if how == "to" else 1)


def fill_freed_memory_with_nan() -> None:
    junk = [torch.full((size,), torch.nan) for size in (1, 1, 2, 4, 4, 8, 64) for _ in range(20)]
    del junk


def test_memory_without_values_holds_empty_statistics():
    with torch.device("meta"):
        model = torch.nn.Sequential(GradientSpectrum(2, momentum=0.5))
    fill_freed_memory_with_nan()
    model.to_empty(device="cpu")
    assert all((buffer == 0).all() for buffer in model.buffers())
    assert model[0].update(counts(5, 1)).regions.tolist() == [[5, 1]]
    fill_freed_memory_with_nan()
    model.to_empty(device="cpu")  # what has values keeps them
    assert model[0].compute().regions.tolist() == [[5, 1]]
    model[0].reset_parameters()  # the name by which sharded training asks for it
    assert model[0].compute().regions.tolist() == [[0, 0]]
    check_dtypes(model[0])


def test_numpys_whole_numbers_are_whole_numbers():
    spectrum = GradientSpectrum(np.int64(2), num_classes=np.int32(1), accumulation_steps=np.uint8(2))
    assert repr(spectrum) == repr(GradientSpectrum(2, accumulation_steps=2))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: GradientSpectrum(3, momentum=1.1), r"momentum must lie in \[0, 1\], not 1.1"),
        (lambda: GradientSpectrum(3, momentum=-0.1), r"momentum must lie in \[0, 1\], not -0.1"),
        (lambda: GradientSpectrum(3, momentum=float("nan")), r"momentum must lie in \[0, 1\], not nan"),
        *(
            (
                partial(GradientSpectrum, **{"bins": 3, name: value}),
                f"{name} must be a whole number of at least 1, not {value!r}",
            )
            for name in ("bins", "num_classes", "accumulation_steps")
            for value in (0, -1, 2.5, 2.0, True, "2", None)
        ),
        (
            lambda: GradientSpectrum(3).update(counts(1, 2)),
            "1 classes and 2 regions .* 1 classes and 3 regions",
        ),
        (lambda: GradientSpectrum(2).to("meta").update(counts(1, 2)), "on cpu, the spectrum on meta"),
    ],
)
def test_a_mistake_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


# --- the counts of a pass

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
        return count_batch(logits[rows], labels[rows], differences[rows])

    assert equal(added(part(slice(0, 1)), part(slice(1, 4))), part(slice(0, 4)))
    assert equal(added(SpectrumCounts.empty(CLASSES, STRIDES), part(slice(0, 4))), part(slice(0, 4)))
    assert part(slice(0, 4)).pictures.tolist() == [4]


@pytest.mark.parametrize("block", [1, 7, 300])
def test_blocks_and_a_device_that_is_not_waited_for_count_alike(monkeypatch, block):
    random = torch.Generator().manual_seed(2)
    logits, labels = (
        torch.randn(2, 120, 3, generator=random),
        torch.randint(-1, 4, (2, 120), generator=random),
    )
    whole = count_batch(logits, labels, logits.new_zeros(2, 120, 4) + 0.01)
    as_an_accelerator(monkeypatch)
    monkeypatch.setattr(ghmdet.spectrum, "BLOCK", block)
    with Operations() as used:
        parts = count_batch(logits, labels, logits.new_zeros(2, 120, 4) + 0.01)
        assert not used.names & {"bincount", "nonzero"}
    assert (parts.examples == whole.examples).all() and (parts.boxes == whole.boxes).all()
    np.testing.assert_allclose(parts.gradient, whole.gradient, rtol=1e-6)
    np.testing.assert_allclose(parts.box_gradient, whole.box_gradient, rtol=1e-6)
    assert parts.boxes.sum() == 4 * ((labels >= 0) & (labels < 3)).sum()
    assert parts.examples.sum() == 3 * (labels >= 0).sum()


def test_what_was_read_of_a_pass_does_not_change_when_it_goes_on():
    sums = SpectrumSums(("a", "b"), (8,), torch.device("cpu"))
    sums.add_labels(torch.zeros(4, 2), torch.tensor([0, 1, 2, -1]))
    before = sums.counts()
    sums.add_labels(torch.zeros(4, 2), torch.tensor([0, 1, 2, -1]))
    assert before.examples.sum() == 6 and sums.counts().examples.sum() == 12
    assert {before.examples.dtype, before.boxes.dtype} == {np.dtype(np.int64)}
    assert {before.gradient.dtype, before.box_gradient.dtype} == {np.dtype(np.float64)}


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_a_spectrum_file_cannot_run_code(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("spectrum.npz", pictures=np.array([Trap()], dtype=object))
    with pytest.raises(GhmdetError, match="not a spectrum"):
        SpectrumCounts.load("spectrum.npz")
    assert not Path("trapped").exists()


def test_counts_beyond_float32_stay_exact():
    sums = SpectrumSums(("a",), (8,), torch.device("cpu"))
    sums.tables["examples"][0, 0, 0, 0] = 2**53
    sums.add_labels(torch.full((1, 1), -100.0), torch.tensor([1]))
    assert sums.counts().examples[0, 0, 0, 0, 0] == 2**53 + 1


def test_epochs_stack_and_come_back_from_a_file(tmp_path: Path):
    first, second = make_case(0).spectrum, make_case(1).spectrum
    both = SpectrumCounts.stack([first, second])
    loaded = SpectrumCounts.load(both.save(tmp_path / "runs" / "spectrum.npz"))
    assert (loaded.examples.dtype, loaded.boxes.dtype) == (np.int64, np.int64)
    assert equal(loaded, both) and (loaded.classes, loaded.strides) == (CLASSES, STRIDES)
    assert equal(loaded[1:], second) and len(loaded[:0].pictures) == 0


def test_what_does_not_predict_a_number_or_is_ignored_is_told_apart():
    logits, labels = torch.zeros(1, 120, 3), torch.full((1, 120), 3)
    differences = torch.full((1, 120, 4), torch.nan)  # of background: not looked at
    labels[0, 0] = -1
    logits[0, 0] = torch.nan  # ignored: not looked at
    assert count_batch(logits, labels, differences).examples.sum() == 119 * 3
    labels[0, 5] = 1
    with pytest.raises(GhmdetError, match="box offsets are no numbers"):
        count_batch(logits, labels, differences)
    logits[0, 7] = torch.nan
    with pytest.raises(GhmdetError, match="class scores are no numbers"):
        count_batch(logits, labels, differences)


def test_spectra_that_do_not_fit_together_are_refused(tmp_path: Path):
    spectrum = make_case().spectrum
    other = SpectrumCounts.empty(("a", "b", "d"), STRIDES)
    with pytest.raises(GhmdetError, match=r"classes .* cannot be put together"):
        SpectrumCounts.stack([spectrum, other])
    with pytest.raises(GhmdetError, match="'examples' of a spectrum"):
        SpectrumCounts(("a",), STRIDES, *(getattr(spectrum, name) for name in ARRAYS))
    (tmp_path / "x.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "y.npz", classes=np.array(["a"]))
    for name in ("x.npz", "y.npz", "none.npz"):
        with pytest.raises(GhmdetError, match=rf"{name}: not a spectrum"):
            SpectrumCounts.load(tmp_path / name)
