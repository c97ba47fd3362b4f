# `make` shows the targets. Everything runs in .venv, which `make setup` makes and the others call for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread for each numeric library: on 2 shared cores more were measured to be slower.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast coverage lint types bench docs browser soak

help: ## Show this list
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with everything that the demo and the tests need (3-5 minutes, once)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: setup ## Compare three networks and two losses on real music; leaderboard and report (5 minutes after set-up)
	$(BIN)/musicnet-train experiment=demo

test: setup browser ## Run every test that CI runs (20-25 minutes)
	$(BIN)/python -m pytest -n 2 --durations=25

coverage: setup browser ## The same, and print which lines no test reaches (half as long again)
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term

test-fast: setup ## Run the tests that are not marked slow
	$(BIN)/python -m pytest -n 2 -m 'not slow'

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check types (mypy --strict)
	$(BIN)/mypy

browser: ## Get a headless Chromium for the tests of the pages, unless there is one
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable || command -v chrome; } > /dev/null \
	  && command -v chromedriver > /dev/null; then true; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver > /dev/null; \
	else echo "The tests open the pages in a browser: install Chromium and chromedriver (Debian, Ubuntu: chromium chromium-driver) on PATH." >&2; exit 2; fi

bench: setup ## Measure speed side by side and write experiments/benchmarks/README.md (35 minutes)
	$(BIN)/python experiments/benchmarks/bench.py

# Ray's plugin wants another cloudpickle than the rest, and Ray is 345 MB: it has an environment of its own on top of .venv.
RAY := .venv-ray
$(RAY)/.ready: $(READY)
	$(BIN)/python -m venv $(RAY)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > "$$($(RAY)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth"
	$(RAY)/bin/python -m pip install --quiet 'hydra-ray-launcher>=1.2.1,<1.3' 'ray>=2.40'
	touch $@

soak: setup $(RAY)/.ready ## Kill sweeps of every engine at random moments; nothing is lost, done twice or half-written (30 minutes)
	$(BIN)/python experiments/soak/soak.py --ray $(RAY)/bin/python

docs: setup ## Write docs/backbones.md: what each of timm's families makes of a spectrogram (10 minutes)
	$(BIN)/python -m experiments.backbones.table
