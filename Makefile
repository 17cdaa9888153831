# make train           the environment if needed, then the demonstration: two tables and a report (CONFIG=... for another job)
# make test            the environment if needed, then lint, types and the test suite
# make test-fast       the tests of mathematics, kernels, configuration and data alone: the inner loop, under 90 seconds
# make test-slow       the same properties at more sizes and architectures
# make test-faults     the matrix of faults (tests/faults/matrix.py), launchers and the soak included; writes its outcomes
# make audit           the locked versions against the lists of known weaknesses; needs a network that reaches PyPI
# make bench-check     a few ratios of the benchmarks beside those of the records, in wide bounds: half a minute
# make docs            the documentation as a site, in docs/_site; fails on a warning, a broken link or an unchecked command
# make test-lowest     the tests of kernels, step, learners and models with the lowest versions promised; left out, with a
#                      sentence, where these cannot be installed
# make bench           what a step costs on this CPU, by itself and beside what people use; writes records, and every table of
#                      README.md and docs from the records. Forty minutes on a quiet machine
# make gpu-check       what a GPU is asked: is every kernel, graph and stream right, and how fast; writes records (docs/gpu.md).
#                      Any python3 with torch will do: no environment is built then. ARGS="--part correct --seconds 560"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
ENV    := $(VENV)/.installed
BUILD  := $(VENV)/.built
FAST   := tests/test_imports.py tests/config tests/step/test_identities.py tests/step/test_identities_broken.py \
          tests/learners/test_optimisers.py tests/kernels/test_student_objective.py tests/kernels/test_batch_norm_act.py tests/data/test_split.py
LOWEST := .venv-lowest
AUDIT  := .venv-audit
LOWEST_TESTS := tests/kernels tests/step tests/learners tests/models
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: train test test-fast test-slow test-faults test-lowest audit bench bench-check docs gpu-check lint lock clean

train: $(BUILD)
	@$(if $(CONFIG),$(BIN)/fastmpl train $(CONFIG),$(BIN)/fastmpl demo)

test: lint docs
	$(PYTEST) -n 2 --dist worksteal --durations=15

test-fast: $(BUILD)
	$(PYTEST) -n 2 --dist worksteal -m 'not slow and not gpu' $(FAST)

docs: $(BUILD)
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_site
	$(PYTEST) -q tests/docs/test_commands.py -k 'runs_or_says'

test-slow: $(BUILD)
	$(PYTEST) -n 2 --dist worksteal -m slow

bench-check: $(BUILD)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_check

test-faults: $(BUILD)
	FASTMPL_RECORD_FAULTS=1 $(PYTEST) -n 2 --dist worksteal -m faults --durations=10
	$(BIN)/python -m tests.faults.matrix

# --strict: a version that could not be looked up is a failure too
audit: $(AUDIT)/bin/pip-audit
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

$(AUDIT)/bin/pip-audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit

test-lowest: $(BUILD)
	@$(MAKE) --no-print-directory $(LOWEST)/.installed || \
	  { echo "skipped: the lowest versions cannot be installed here (requirements-lowest.txt)"; exit 0; }; \
	  test -e $(LOWEST)/.installed || exit 0; \
	  echo "$(LOWEST)/bin/python -m pytest $(LOWEST_TESTS)"; \
	  OMP_NUM_THREADS=1 FASTMPL_NATIVE_LIBRARY=$(firstword $(wildcard $(CURDIR)/build/*/libfastmpl_native.so)) \
	  $(LOWEST)/bin/python -m pytest -q $(LOWEST_TESTS)

$(LOWEST)/.installed: requirements-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lowest.txt
	@touch $@

bench: $(BUILD)
	$(BIN)/python -m benchmarks.bench_step
	$(BIN)/python -m benchmarks.bench_batch_norm
	$(BIN)/python -m benchmarks.bench_peers --compiled
	$(BIN)/python -m benchmarks.bench_ranks
	$(BIN)/python -m benchmarks.bench_ladder
	$(BIN)/python -m benchmarks.bench_growth
	$(BIN)/python -m benchmarks.bench_scale
	$(BIN)/python -m benchmarks.bench_start
	$(BIN)/python -m benchmarks.tables

gpu-check:
	@if test -e $(BUILD); then python=$(BIN)/python; \
	elif python3 -c 'import torch' 2>/dev/null; then python=python3; \
	else $(MAKE) --no-print-directory $(BUILD) && python=$(BIN)/python; fi && \
	$$python -m benchmarks.gpu_check $(ARGS)

lint: $(BUILD)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(ENV): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fastmpl needs Python 3.11 or newer; $(PYTHON) is older. Call: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

# editable: Python files are used where they lie, the C++ kernels are built once here
$(BUILD): $(ENV) pyproject.toml CMakeLists.txt $(wildcard kernels/csrc/*)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'from fastmpl_kernels import library; library.available() or print("The C++ kernels were not built (no compiler): the reference forms are used.")'
	@touch $@

lock: $(ENV)
	{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip freeze --exclude fastmpl; } > requirements.new
	mv requirements.new requirements.lock

clean:
	rm -rf $(VENV) $(LOWEST) $(AUDIT) build dist .pytest_cache .mypy_cache .ruff_cache
