"""What reading annotations of COCO's size takes: 118,000 pictures, 860,000 boxes with outlines of 20 points, made up.

python benchmarks/read_coco.py

Prints the processor time of `read_data` and the memory at its peak beyond that of the imports, and the same of
Python's `json.load` on the same file, in turn, three times each in a process of its own. The pictures are empty files:
reading annotations opens none. Needs 500 MB in the temporary folder.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PICTURES, BOXES, CLASSES = 118_000, 860_000, 80


def write(root: Path) -> None:
    """Write the data set."""
    rng = random.Random(0)
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    with (root / "annotations" / "instances_train.json").open("w") as file:
        file.write('{"images": [')
        for number in range(1, PICTURES + 1):
            name = f"{number:012}.jpg"
            (root / "images" / name).touch()
            record = {"license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/{name}"}
            record |= {"height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", "id": number}
            file.write(", " * (number > 1) + json.dumps(record))
        file.write('], "annotations": [')
        for number in range(1, BOXES + 1):
            x, y, width, height = (round(rng.uniform(1, 230), 2) for _ in range(4))
            record = {"segmentation": [[round(rng.uniform(0, 400), 2) for _ in range(40)]]}
            record |= {
                "area": round(width * height / 2, 4),
                "iscrowd": 0,
                "image_id": rng.randint(1, PICTURES),
            }
            record |= {"bbox": [x, y, width, height], "category_id": rng.randint(1, CLASSES), "id": number}
            file.write(", " * (number > 1) + json.dumps(record))
        file.write('], "categories": ')
        json.dump([{"id": number, "name": f"c{number}"} for number in range(1, CLASSES + 1)], file)
        file.write("}")


def measure(root: Path, what: str) -> None:
    """Read the data set once, or load its text with `json`, and print what that took."""
    from ghmdet.data import read_data

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1 << (20 if sys.platform == "darwin" else 10)
        )

    before, began = peak(), time.process_time()
    if what == "read_data":
        data = read_data(root, "train")
        assert (len(data.records), len(data.records.boxes)) == (PICTURES, BOXES)
    else:
        with (root / "annotations" / "instances_train.json").open() as file:
            assert len(json.load(file)["annotations"]) == BOXES
    seconds = time.process_time() - began
    print(
        f"{what}: {seconds:.1f} s of processor time, {peak() - before:.0f} MiB beyond the imports", flush=True
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(Path(sys.argv[1]), sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as home:
            write(Path(home))
            for what in ("read_data", "json.load") * 3:
                subprocess.run([sys.executable, __file__, home, what], check=True)
