# The two commands of the README. Both make their own environment in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-lowest fuzz soak package bench docs lint format clean

demo: .venv/installed
	$(BIN)/ghmdet demo --out demo

# Their networks are so small that threads mostly wait for each other; beside another busy process they spin while they
# wait, and a test of seconds took minutes.
test test-lowest soak: export OMP_NUM_THREADS ?= 1

# A process of tests needs 2 GB.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

# What a CPU computes to the last bit is tested there, also where there is a GPU.
test: lint
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest --ignore tests/test_gpu.py $(PARALLEL)
	$(BIN)/python -m pytest tests/test_gpu.py

# Damages small data sets of every layout, checkpoints, detections, spectra and runs, 20,000 times: their readers may refuse them, and never
# crash, nor take 2 s or 1 GiB.
fuzz: .venv/installed
	$(BIN)/python tests/fuzz_readers.py --count 20000

# Too long for `make test`: kills trainings while they run, compares processes, watches memory, damages data sets 100,000 times.
soak: .venv/installed
	$(BIN)/python tests/soak.py --kills 30
	$(BIN)/python tests/parity.py
	$(BIN)/python tests/endurance.py
	$(BIN)/python tests/fuzz_readers.py --count 100000

# Builds sdist and wheel, and does the main job with the wheel in an environment of its own: make package PYTHON=python3.13
package:
	tests/smoke.sh $(PYTHON)

# Adds rows to benchmarks/results and draws docs/performance.md; the machine should have nothing else to do.
bench: .venv/installed
	$(BIN)/python benchmarks/class_losses.py --threads 1
	$(BIN)/python benchmarks/class_losses.py --threads 2
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/many_classes.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/step_share.py
	$(BIN)/python benchmarks/performance_page.py

# The documentation as a site: site/index.html. Its search needs a server: python -m http.server -d site
docs: .venv/installed
	$(BIN)/zensical build --strict --clean

# The lower bounds of pyproject.toml, with the oldest Python: make test-lowest PYTHON=python3.10
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --editable '.[pretrained,tensorboard,export,video,dev]' --constraint lowest.txt
	.venv-lowest/bin/python -m pytest $(PARALLEL)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ghmdet needs Python 3.10 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[pretrained,tensorboard,detr,export,video,docs,dev]'
	touch $@

clean:
	rm -rf .venv .venv-lowest demo build site
