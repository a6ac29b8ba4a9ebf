# Two commands for a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint spec bench bench-peers soak mutants fuzz clean
.DEFAULT_GOAL := test

# torch comes first and pinned: its CPU build is enough, and a package that pulled it in
# by itself would fetch several gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/chaos demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

spec:
	docs/spec/check.sh

# More seeds, and more peers, than `make test` has time for: `make soak SEEDS=0..99999`. JOBS: 0 is one per core.
SEEDS ?= 0..19999
JOBS  ?= 0
soak: $(VENV)/.installed
	$(BIN)/chaos sim --random --peers 3..9 --seeds $(SEEDS) --jobs $(JOBS)

# Planted bugs, a line for each: the promise that caught it, or SURVIVED.
mutants: $(VENV)/.installed
	$(BIN)/python -m tests.sim.mutants

# Bytes that others could send or leave, by libFuzzer: `make fuzz SECONDS=600` for each of its targets.
SECONDS ?= 60
fuzz: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# Chaos beside others, each in an environment of its own with pinned versions; none of them is needed for Chaos.
# All of it takes hours and writes benchmarks/results/peers-DATE.md as it goes. Some of it:
# `make bench-peers PEERS="torchft --settings tight --links 200mbit --events join,kill"`.
SYSTEMS := torchrun torchft hivemind
PEERS   ?=
bench-peers: $(VENV)/.installed $(SYSTEMS:%=.venv-peers/%/.installed)
	$(BIN)/python -m benchmarks.peers $(PEERS)

.venv-peers/%/.installed: benchmarks/peers/requirements/%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

clean:
	rm -rf $(VENV) .venv-peers build docs/spec/build
