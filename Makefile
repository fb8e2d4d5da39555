# make          set everything up in .venv
# make demo     set up what the demo needs, and run it
# make test     set everything up, and run the linter, the type checker and the tests
# make docs     build the site into build/site; a link that leads nowhere is an error
# make python   print the interpreter that .venv would be made with; nothing where none fits
# make clean    remove .venv and what the tools cached
#
# PYTHON=python3.12 picks an interpreter; JOBS=1 runs the tests in one process.
# pip takes what it is told through its own variables: where PyPI's build of torch, with gigabytes of CUDA,
# isn't wanted, let PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS name a place that has the CPU wheel.

JOBS ?= 2
BIN := .venv/bin
# the first interpreter that runs, is of a supported version and can make a virtual environment
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for python in python3.11 python3.12 python3 /usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3; do \
	if $$python -c '$(FITS)' 2>/dev/null; then echo $$python; break; fi; done)

.PHONY: setup demo test lint types unit docs python clean
.DELETE_ON_ERROR:

setup: .venv/test.stamp

demo: .venv/core.stamp
	$(BIN)/surgeon demo

# one after the other, also under make -j: the last line is the tests' own count
test: .venv/test.stamp
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory types
	$(MAKE) --no-print-directory unit

lint: .venv/test.stamp
	$(BIN)/ruff check .

types: .venv/test.stamp
	$(BIN)/mypy

# every warning is an error, such as a link inside of the site that leads nowhere
docs: .venv/docs.stamp
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/site
	@echo 'build/site/docs/index.html'

unit: .venv/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS) --dist worksteal

# pip takes a package that was half unpacked when it was cut off for an installed one. So .venv/unfinished
# stands while pip works, and an environment in which it still stands is made anew.
INSTALL = touch .venv/unfinished && $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--no-input --only-binary :all: -c constraints.txt -e

.venv/core.stamp: pyproject.toml constraints.txt
	@if [ -e .venv/unfinished ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		rm -rf .venv; \
		if ! $(or $(PYTHON),false) -c '$(FITS)'; then \
			echo 'surgeon needs Python 3.11 or 3.12 with its venv module, and found none that works.' >&2; \
			echo 'On Debian or Ubuntu: apt-get install python3 python3-venv' >&2; \
			echo 'Elsewhere, name one: make PYTHON=/path/to/python3.12' >&2; \
			exit 1; \
		fi; \
		mkdir .venv && touch .venv/unfinished && $(PYTHON) -m venv .venv; \
	fi
	@echo 'installing surgeon into .venv: minutes the first time'
	@$(INSTALL) .
	@rm .venv/unfinished && touch $@

.venv/test.stamp: .venv/core.stamp
	@echo 'installing what the tests need into .venv'
	@$(INSTALL) '.[test,zoo,train]'
	@rm .venv/unfinished && touch $@

.venv/docs.stamp: .venv/core.stamp
	@echo 'installing what the site needs into .venv'
	@$(INSTALL) '.[docs]'
	@rm .venv/unfinished && touch $@

python:
	@echo '$(PYTHON)'

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
