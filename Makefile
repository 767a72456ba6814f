# Short names for the commands of README.md and CONTRIBUTING.md.
#   make setup                  install fedsim editable with its development tools, and the commit hooks
#   make check                  static checks
#   make test ARGS="-k fedavg"  tests
#   make docs                   the pages as a site, in build/site
#   make bench                  the programs that need no files, no GPU and no other simulator; BENCH=bench/NAME.py: one

PYTHON ?= python
NEEDY := $(addprefix bench/,algorithms.py robust.py virtual_time.py gpu.py)
BENCH ?= $(filter-out $(NEEDY),$(sort $(wildcard bench/*.py)))

.PHONY: setup check test docs bench

setup:
	$(PYTHON) -m pip install -e ".[dev]"
	$(PYTHON) -m pre_commit install

check:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m basedpyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command as main; main()' --no-logo

test:
	$(PYTHON) -m pytest $(ARGS)

docs:
	$(PYTHON) -m mkdocs build --strict

bench:
	@for program in $(BENCH); do echo "== $$program"; $(PYTHON) "$$program" || exit 1; done
