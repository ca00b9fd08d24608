"""What `ghmdet predict` looks at: picture files, and the frames of videos, one after the other, by PyAV."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ghmdet.errors import DataError, GhmdetError
from ghmdet.pictures import image_size, read_pixels

VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


class Frame(NamedTuple):
    """A picture of a video; the first is number 0."""

    video: Path
    number: int

    def __str__(self) -> str:
        return f"{self.video}: frame {self.number}"


def count_frames(video: Path, say: Callable[[str], None] = lambda line: None) -> int:
    """How many frames a video has at most, by its packets: nothing is decoded; `say` is told where some are lost.

    Raises:
        GhmdetError: PyAV is not installed.
        DataError: no video, or a damaged one, or one without a frame.
    """
    with _opened(video) as container, _errors() as errors:
        try:
            times = [packet.dts for packet in container.demux(video=0) if packet.size]
        except Exception as error:  # whatever the reader of its format tripped over
            raise _unreadable(video, "cannot be read", error) from None
        told: int = container.streams.video[0].frames  # by its header; 0 where that does not say
        if times and container.format.name == "avi":  # which counts a frame that is shown again
            told -= (times[-1] or 0) + 1 - len(times)
    count = len(times)
    if not count:
        raise _empty(video)
    if told > count or errors:
        of = f" of {told}" if told > count else ""
        why = f" ({errors[0][2].strip()})" if errors else ""
        say(f"{video}: damaged or cut short: {count}{of} frames are left{why}")
    return count


@contextmanager
def _errors() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg reports of errors in the block, its threads' too; else nobody hears of it."""
    from av import logging

    before = logging.get_level(), logging.get_skip_repeated()
    logging.set_level(logging.ERROR)
    logging.set_skip_repeated(False)  # the next video may have the same
    try:
        with logging.Capture(local=False) as heard:
            yield heard
    finally:
        logging.set_level(before[0])
        logging.set_skip_repeated(before[1])


Source = Path | Frame
"""A picture file, or a frame of a video."""
MOST_SIDE = 4096
"""Pixels of the longer side of a picture that is looked at and drawn: more need gigabytes."""


def file_of(source: Source) -> Path:
    """The file that a picture is in."""
    return source.video if isinstance(source, Frame) else source


def with_frames(
    found: Mapping[Path, Path],
    given: Collection[Path],
    say: Callable[[str], None],
    *,
    passed_over: bool = False,
) -> dict[str, Source]:
    """Pictures by their names, with the frames of each video in its place: NAME/000000.jpg and so on.

    given: what the user named; a video that is not, but lies in a folder, is passed over without PyAV. passed_over:
    whether it is in any case. say: told of each such video, and of each that is damaged. Raises GhmdetError where a
    video was named and PyAV is not installed.
    """
    sources: dict[str, Source] = {}
    for name, file in found.items():
        if file.suffix.lower() in VIDEOS and file not in given and (passed_over or find_spec("av") is None):
            why = "its frames have no annotations" if passed_over else "pip install 'ghmdet[video]'"
            say(f"{file}: a video, passed over: {why}")
            continue
        sources[name.as_posix()] = file
        if file.suffix.lower() in VIDEOS:
            with suppress(DataError):  # it is named where it is read
                frames = [Frame(file, number) for number in range(count_frames(file, say))]
                del sources[name.as_posix()]
                sources |= {f"{name.as_posix()}/{frame.number:06}.jpg": frame for frame in frames}
    return sources


class Reader:
    """Reads sources; frames in rising order are each decoded once, and only the present one is in memory."""

    def __init__(self) -> None:
        self._video: Path | None = None
        self._next = 0
        self._rest: Iterator[tuple[Any, bool]] = iter(())
        self._sizes: dict[Path, tuple[int, int]] = {}
        self.damaged = Counter[Path]()
        """Frames by their video of which the decoder had to make up parts."""
        self.absent = Counter[Path]()
        """Packets by their video that gave no frame."""

    def read(self, source: Source, most: int = MOST_SIDE) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
        """A picture as [h, w, 3] RGB, upright, and its own (height, width); None where a video ends before its frame.

        most: the longest side in pixels; a larger picture is shrunk to it.

        Raises:
            DataError: a file that cannot be read; of a video, nothing can be read from there on.
        """
        if isinstance(source, Path):
            if source.suffix.lower() in VIDEOS:
                count_frames(source)  # which says why it has none
            return read_pixels(source, most)
        pixels = self._frame(source)
        if pixels is None:
            return None
        size = self._sizes[source.video] = pixels.shape[0], pixels.shape[1]
        if (share := most / max(size)) < 1:
            width, height = (max(1, round(side * share)) for side in size[::-1])
            pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        return pixels, size

    def size(self, source: Source) -> tuple[int, int]:
        """(height, width) of an upright picture; raises DataError where it cannot be read."""
        if isinstance(source, Path):
            return image_size(source)[::-1]
        if source.video not in self._sizes:
            self.read(Frame(source.video, 0), 1)
        return self._sizes[source.video]

    def _frame(self, frame: Frame) -> NDArray[np.uint8] | None:
        if frame.video != self._video or frame.number < self._next:
            self._video, self._next, self._rest = frame.video, 0, _decode(frame.video)
        for picture, damaged in self._rest:
            self._next += 1
            self.damaged[frame.video] += damaged
            if self._next > frame.number:
                return np.ascontiguousarray(
                    np.rot90(picture.to_ndarray(format="rgb24"), picture.rotation // 90)
                )
        if not self._next:
            raise _empty(frame.video)
        self.absent[frame.video] += 1
        return None


def _decode(video: Path) -> Iterator[tuple[Any, bool]]:
    """The frames of a video, each with whether it is damaged or its decoder told of errors in the meantime."""
    number = 0
    with _opened(video) as container:
        try:
            frames = container.decode(video=0)
            while True:
                with _errors() as errors:
                    frame = next(frames, None)
                if frame is None:
                    return
                yield frame, bool(frame.is_corrupt or errors)
                number += 1
        except Exception as error:  # whatever the decoder tripped over
            raise _unreadable(video, f"cannot be decoded from frame {number} on", error) from None


def _opened(video: Path) -> Any:
    try:
        import av
    except ImportError:
        raise GhmdetError(
            f"{video}: a video needs PyAV: pip install 'ghmdet[video]', or leave it out"
        ) from None
    try:
        container = av.open(str(video), metadata_errors="ignore")  # a title may be in any encoding
        if container.streams.video:
            return container
    except Exception as error:
        raise _unreadable(video, "cannot be opened", error) from None
    raise DataError(f"{video}: holds no video: leave it out")


def _empty(video: Path) -> DataError:
    return DataError(f"{video}: not one frame can be read, the file is damaged or cut short: leave it out")


def _unreadable(video: Path, what: str, error: Exception) -> DataError:
    return DataError(
        f"{video}: {what} ({getattr(error, 'strerror', None) or type(error).__name__}): leave it out"
    )
