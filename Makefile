# make demo      a network that memorised wrong labels, repaired
# make test      lint, format check, type check, docs site, tests and doctests
# make gpu       everything that a GPU must show, in nine minutes: make gpu DATA=folder
# make campaign  kills, mutated files, flipped bits and small disks
# make docs      the site, in build/site; strict
# make package   wheel and sdist; the wheel is tried in a fresh environment without extras
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Tests start many processes: without bytecode each of them would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint docs gpu package campaign clean
.DEFAULT_GOAL := test

# Installed again whenever the requirements change.
$(VENV)/installed: pyproject.toml benchmarks/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1,<26.2"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[audio,faiss,huggingface,onnx,review,text]" --editable ./benchmarks --group test --group docs
	touch $@

demo: $(VENV)/installed
	$(BIN)/expunge demo $(DEMO)

lint: $(VENV)/installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# mypy takes one core and the site the other one.
test: $(VENV)/installed
	$(MAKE) --jobs 2 lint docs
	$(BIN)/pytest --numprocesses 2 --dist loadscope

gpu: $(VENV)/installed
	PYTHON=$(CURDIR)/$(BIN)/python scripts/gpu.sh $(DATA)

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

package: $(VENV)/installed
	rm -rf build/dist build/smoke
	$(BIN)/python -m build --outdir build/dist .
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build/dist/*.whl
	build/smoke/bin/python tests/smoke.py

# Kills, mutated files, flipped bits and small disks, for an hour or more.
campaign: $(VENV)/installed
	cd tests && ../$(BIN)/python -m campaigns $(CAMPAIGN)

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache
