# Every target sets up what it needs in .venv first, and finds it there the next time. `make help` lists them.
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PYTHON ?= python3.11 python3 python3.12 python3.13 python3.14
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --no-compile --constraint constraints.txt

DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
TEST_JOBS ?= 2

# Emptied, for Python reads a set value as "keep no bytecode" and would compile torch's and transformers' sources
# anew in every process. Installation leaves compiling to the first import, which compiles only what is used.
export PYTHONDONTWRITEBYTECODE :=

# $(call install,REQUIREMENT): by uv, which takes seconds; by pip where uv is missing or fails.
define install
	@if test -x $(BIN)/uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '$(1)'; \
	then :; \
	else echo 'unteach: installing with pip, which takes minutes where uv takes seconds'; $(PIP_INSTALL) --quiet --quiet --editable '$(1)'; \
	fi
endef

.DELETE_ON_ERROR:
.PHONY: help demo test lint docs package bench clean distclean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'Options are passed on: DEMO_ARGS, TEST_ARGS, BENCH_ARGS; TEST_JOBS says how many processes test at a time; PYTHON names the interpreter to build $(VENV) with.'
	@echo 'For example: make demo DEMO_ARGS="--scenario hallucination --seed 1"'

demo: $(STAMPS)/core  ## make a real model forget a text, and show it (writes runs/demo)
	@$(BIN)/unteach demo --out runs/demo $(DEMO_ARGS)

# Files go to processes whole, so that none makes another's fixtures anew; tests/conftest.py puts the longest first.
test: $(STAMPS)/test  ## run the tests, save those on the real model
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

lint: $(STAMPS)/dev  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMPS)/docs  ## build the documentation into site/ (dead links and missing pages fail)
	@PYTHONPATH=docs/site NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'unteach: open site/index.html, or serve it: .venv/bin/python -m http.server --directory site'

package: $(STAMPS)/core  ## build the sdist, and the wheel from it, into dist/
	@rm -rf dist
	@$(BIN)/uv build --quiet --out-dir dist

bench: $(STAMPS)/baselines  ## run every benchmark and experiment in its short form (writes runs/bench)
	@mkdir -p runs/bench
	@set -e; for file in benchmarks/*.py experiments/*.py; do \
		echo "== $$file"; \
		$(BIN)/python "$$file" --short --json "runs/bench/$$(basename "$$file" .py).json" $(BENCH_ARGS); \
	done

clean:  ## remove caches and build products (keeps runs/ and .venv)
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks experiments examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## remove .venv too
	rm -rf $(VENV)

$(STAMPS)/venv:
	@found=; for python in $(PYTHON); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if test -z "$$found"; then \
		echo 'unteach needs Python 3.11 or newer and found none under these names: $(PYTHON).' >&2; \
		echo 'Install one, or name yours: make PYTHON=/path/to/python3' >&2; \
		exit 1; \
	fi; \
	"$$found" -m venv $(VENV) || { \
		echo "unteach: $$found cannot make a virtual environment (on Debian and Ubuntu the package python3-venv is missing)." >&2; \
		exit 1; \
	}
	@mkdir -p $(STAMPS) && touch $@

# torch by pip, and alone: its settings, which uv does not read, may say where the build for this machine lies.
$(STAMPS)/core: pyproject.toml constraints.txt $(STAMPS)/venv
	@echo 'unteach: installing into $(VENV) (again only when pyproject.toml or constraints.txt change)'
	@$(PIP_INSTALL) --quiet --quiet uv || true
	@$(PIP_INSTALL) --no-deps torch
	$(call install,.)
	@touch $@

$(STAMPS)/test $(STAMPS)/dev $(STAMPS)/docs $(STAMPS)/baselines: $(STAMPS)/core
	@echo 'unteach: adding what the extra [$(@F)] names'
	$(call install,.[$(@F)])
	@touch $@
