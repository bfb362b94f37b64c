# `make demo` and `make test` set everything up by themselves, as any user, without a GPU, from a fresh clone.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slurm bench lint format doctor setup system-deps clean

# Choose another interpreter (3.10 to 3.13, with venv) by `make test PYTHON=/path/to/python3.12`.
PYTHON ?=
PY := .venv/bin/python
# Debian packages that tests want beside Python: without them those of Slurm and of the page are skipped.
SYSTEM_PACKAGES := slurm-wlm munge chromium fonts-dejavu-core
CODE := $(wildcard mask_former pisr_maskformer slurm tools)
# Test processes: one a core that this process may use, at most 4.
WORKERS = $$($(PY) -c 'from tools.checks.machine import usable_cores; print(min(4, usable_cores()))')

# What a module system or a user's site adds would come before the packages of .venv.
unexport PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE := 1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## set up, then train, evaluate and compare small models on this machine
	@$(PY) tools/demo.py

test: lint ## set up, then every check: ruff, mypy, pytest
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

test-slurm: setup ## only the tests on a real Slurm, which they start on this machine (as root)
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/slurm -rs

# QUICK=1: small sizes, two minutes; BENCH="loader matching": only these. The peer's rows want `transformers`.
bench: setup ## measure speed and memory against plain forms and the public peer; tables, JSON in output/benchmarks
	$(PY) -m tools.benchmarks --output output/benchmarks $(if $(QUICK),--quick) $(BENCH)

lint: setup ## ruff check, ruff format --check, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(CODE)

format: setup ## put the code into ruff's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

doctor: setup ## what this machine has, what is missing, and how to mend it
	@$(PY) tools/doctor.py

# The .venv that is there goes on being used; else the first interpreter that will do makes one.
CANDIDATES = $(if $(PYTHON),"$(PYTHON)",python3 python3.12 python3.11 python3.13 python3.10)
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
setup: ## make .venv (the other targets call this; does nothing when it is up to date)
	@if $(PY) -c '$(FITS)' 2>/dev/null; then exec $(PY) tools/setup_env.py; fi; \
	for python in $(CANDIDATES); do \
	  if "$$python" -c 'import venv, ensurepip; $(FITS)' 2>/dev/null; then exec "$$python" tools/setup_env.py; fi; \
	done; \
	echo "error: Python 3.10 to 3.13 with venv is needed; these will not do:" $(CANDIDATES) \
	  "(Debian, Ubuntu: apt-get install python3-venv; or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python)" >&2; \
	exit 1

system-deps: ## install the Debian packages that tests want (as root)
ifeq ($(strip $(SYSTEM_PACKAGES)),)
	@echo "no system packages are needed"
else
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES)
endif

clean: ## remove caches; data, outputs and .venv stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
