"""What the worker processes of a loader add to the memory of a data set of COCO's size.

python benchmarks/worker_memory.py

Reads the data set of `read_coco.py` (its pictures are names of one made picture), loads 150 batches of 16 with one
worker and with four, and prints after each 50 the memory of all processes together (their proportional set sizes, so
Linux alone). Needs 500 MB in the temporary folder.
"""

import gc
import tempfile
from itertools import islice
from pathlib import Path

import psutil
from PIL import Image

from ghmdet.data import read_data
from ghmdet.data.dataset import DetectionDataset
from ghmdet.data.loader import make_loader
from ghmdet.data.transforms import TrainTransforms
from read_coco import write

SIDE = 32  # pixels: what the pictures that wait to be used take is not the question
LINKS = 50_000  # a file system may allow 65,000 names of one file


def fill(root: Path) -> None:
    """Make every empty picture a name of a real one."""
    for number, path in enumerate(sorted((root / "images").iterdir())):
        if number % LINKS == 0:
            picture = root / f"{number}.jpg"
            Image.effect_mandelbrot((640, 480), (-2, -1, 1, 1), 30).convert("RGB").save(picture)
        path.unlink()
        path.hardlink_to(picture)


def together() -> float:
    """MiB of this process and its workers."""
    main = psutil.Process()
    return sum(one.memory_full_info().pss for one in (main, *main.children(recursive=True))) / 2**20


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        write(Path(home))
        fill(Path(home))
        data = read_data(home, "train")
        print(f"no worker: {together():.0f} MiB", flush=True)
        dataset = DetectionDataset(data, TrainTransforms(SIDE, SIDE))
        for workers in (1, 4):
            loader = make_loader(dataset, batch_size=16, shuffle=True, workers=workers)
            batches = iter(loader)
            for loaded in (50, 100, 150):
                for _ in islice(batches, 50):
                    pass
                print(f"{workers} workers, {loaded} batches: {together():.0f} MiB", flush=True)
            del batches, loader
            gc.collect()
