# Every target sets itself up in .venv; a fresh Debian or Ubuntu needs make, python3 >= 3.11, python3-venv.
#
#   make quickstart     the whole story on simulated events (under 6 minutes on 2 cores, no GPU)
#   make test           the whole test suite
#   make check          format, lint, types and tests
#   make wheel          dist/recgpt-*.whl
#
# On a machine without a GPU, PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# saves the download of about 3 GB of CUDA libraries.

PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2
ARGS ?=

PY := .venv/bin/python
export OMP_WAIT_POLICY := PASSIVE

.PHONY: quickstart test lint check wheel clean
.DELETE_ON_ERROR:

quickstart: .venv/core.stamp
	$(PY) -m recgpt quickstart $(ARGS)

# One thread a worker: two pytest workers on two cores, and the same sums on every machine.
test: .venv/dev.stamp
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: .venv/dev.stamp
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

check: lint test

wheel: .venv/dev.stamp
	rm -rf dist
	$(PY) -m build --wheel --no-isolation

clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache

# --clear: what an interrupted set-up left is made anew.
.venv/made.stamp:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "recgpt: $(PYTHON) not found; sudo apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "recgpt: needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1); make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "recgpt: $(PYTHON) has no venv module; sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/core.stamp: .venv/made.stamp pyproject.toml
	@echo "recgpt: installing into .venv (some minutes the first time)"
	$(PY) -m pip install --quiet $(PIP_FLAGS) --editable ".[serve]"
	@touch $@

.venv/dev.stamp: .venv/made.stamp pyproject.toml
	@echo "recgpt: installing with the developer tools into .venv (some minutes the first time)"
	$(PY) -m pip install --quiet $(PIP_FLAGS) --editable ".[dev]"
	@touch .venv/core.stamp $@
