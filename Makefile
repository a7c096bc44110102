# make demo    bake, prove and show the demo recipes          make lint    ruff and mypy
# make test    all tests                                      make bench   how to measure
# make docs    refresh what the pages show                    make clean   remove what these made
# make site    build the site of the pages and of the Python reference, in build/site
# make torture attacks, kills and full disks, in full (see docs/reliability.md)
# make dist    build the packages and check them          make readme  do what the README says, as a new user
#
# PYTHON=python3.12 make test   picks the interpreter of the virtual environment.
# TORCH=cuda make demo          takes torch with CUDA; auto, the default, takes it where there is an NVIDIA driver,
#                               and elsewhere the build for CPUs. The address of another index of PyTorch's will do, too.

PYTHON ?= python3
TORCH ?= auto
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
PIP := $(BIN)/pip -qq --disable-pip-version-check install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test torture lint docs site bench readme dist clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# One stamp a set of packages.
.venv/core: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; try make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lorabake needs Python 3.11 or later" >&2; exit 1; }
	@echo "setting up a virtual environment in .venv (minutes the first time: packages are downloaded)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { echo "no virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) tools/install_torch.py $(TORCH) $(TORCH_CPU_INDEX) $(PIP)
	@$(PIP) -e .
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch", version("torch"), "is installed")'
	@touch $@

.venv/verify: .venv/core
	@echo "installing what sampling needs"
	@$(PIP) -e '.[verify]'
	@touch $@

.venv/test: .venv/core
	@echo "installing what the tests need"
	@$(PIP) -e '.[test,oracle,docs]'
	@touch $@

.venv/docs: .venv/core
	@echo "installing what builds the site"
	@$(PIP) -e '.[docs]'
	@touch $@

.venv/lint: .venv/core
	@echo "installing the linters"
	@$(PIP) -e '.[lint]'
	@touch $@

demo: .venv/verify
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/demo.sh

test: .venv/test
	@$(BIN)/python -m compileall -q lorabake tests  # for the many processes that tests start
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)  # a file a process: what a file makes once is used again

torture: .venv/test
	@$(PIP) atheris 2>/dev/null || echo "no atheris for this Python: its fuzzing is left out"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --torture $(ARGS) tests/torture

lint: .venv/lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

site: .venv/docs
	@$(BIN)/python -m mkdocs build --strict
	@echo "wrote build/site; to read it: $(BIN)/python -m http.server -d build/site"

docs: .venv/verify
	@$(BIN)/python docs/terminal.py

readme:
	@$(PYTHON) tools/follow_readme.py $(ARGS)

.venv/dist: .venv/core
	@echo "installing what builds and checks packages"
	@$(PIP) -e '.[dist]'
	@touch $@

dist: .venv/dist
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/python -m twine check --strict dist/*

bench:
	@echo "The benchmarks bake full-size checkpoints and want 18 GB of disk and a quiet machine:"
	@echo
	@echo "    .venv/bin/pip install -c constraints.txt -e '.[oracle]'"
	@echo "    .venv/bin/python -m benchmarks.inputs DIR"
	@echo "    .venv/bin/python -m benchmarks.run --inputs DIR --peer"
	@echo "    .venv/bin/python -m benchmarks.memory --inputs DIR"
	@echo "    .venv/bin/python -m benchmarks.gpu        # on a machine with a GPU: eight minutes, inputs of its own"
	@echo
	@echo "benchmarks/README.md says what is measured, and how."

clean:
	@rm -rf .venv out recipes/inputs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed .venv, out, recipes/inputs and caches"
