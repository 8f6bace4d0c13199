# Everything a fresh machine with Python 3.11+ and make needs: `make quickstart`, `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all lint bench docs wheel-test clean

quickstart: $(VENV)/.installed-sweep
	$(BIN)/tokred sweep configs/sweeps/quickstart.yaml --out runs/quickstart --resume
	$(BIN)/tokred plot runs/quickstart --x speedup --y top1

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=15

test-all: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --full --golden-strict --durations=25

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-dev
	$(BIN)/tokred bench --rounds 16 --processes 7 --out docs/results/bench_tome.json
	MALLOC_TRIM_THRESHOLD_=10000000000 MALLOC_MMAP_THRESHOLD_=10000000000 $(BIN)/tokred bench \
		--r 8 --r 13 --r 16 --rounds 16 --processes 3 --out docs/results/bench_tome_heap_kept.json

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --strict

# The wheel in an environment of its own, far from the checkout; everything but tokred comes from $(VENV).
wheel-test: $(VENV)/.installed-dev
	rm -rf build/wheel
	$(BIN)/python -m build --no-isolation --outdir build/wheel
	$(BIN)/python -m venv build/wheel/venv
	$(BIN)/python -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent.parent)' \
		> "$$(echo build/wheel/venv/lib/python3*/site-packages)/libraries.pth"
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps build/wheel/*.whl
	cd / && env -u PYTHONPATH "$(CURDIR)/build/wheel/venv/bin/tokred" explain vit-fmnist --knob r=16 --no-measure
	cd / && env -u PYTHONPATH "$(CURDIR)/build/wheel/venv/bin/tokred" sweep quickstart --dry-run

$(VENV)/.installed-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("tokred needs Python 3.11 or newer, found " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .hypothesis
