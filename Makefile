# make demo   environment, install, the main job on real data
# make test   environment, install, all checks
# make bench  speed against the peers, in one process each
# CPU only:   make demo TORCH_PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH_PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
export SLAMP_WITNESS_HOME := $(CURDIR)/.venv-witness

.PHONY: demo test lint pytest bench clean

demo: .venv/.installed
	$(BIN)/slamp demo --out build/demo

test: lint pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: .venv/.dev .venv-witness/spikingjelly/ready.json .venv-witness/lava/ready.json .venv-witness/sinabs/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term --cov-fail-under=90 $(PYTEST_ARGS)

bench: .venv/.dev
	$(BIN)/python -m benchmarks

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH_PIP_ARGS) torch
	$(PIP) --editable '.[report,examples]'
	$(BIN)/pip install --quiet --no-deps aeon==1.6.0
	touch $@

.venv/.dev: .venv/.installed
	$(PIP) --editable '.[dev]'
# Peers and data sets of the tests, without what their other parts need.
	$(BIN)/pip install --quiet --no-deps neurobench==2.3.0 tonic==1.7.0 importRosbag expelliarmus
	touch $@

.venv-witness/spikingjelly/ready.json: | .venv/.installed
	$(BIN)/slamp witness install spikingjelly

# The official lava-dl needs Python 3.10; where none is found, Lava runs on this Python behind exporters/lava_shim.py.
# Where it cannot be installed, its tests say so and skip.
.venv-witness/lava/ready.json: | .venv/.installed
	$(BIN)/slamp lava install || echo "no Lava here: its tests will skip"

# sinabs wants another nir, so it has an environment of its own (about 1 GB), for tests/test_sinabs_constraints.py.
# Without samna, whose package is an installer that runs on import; tests/sinabs_runner.py says what stands in for it.
.venv-witness/sinabs/ready: tests/sinabs_requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet $(TORCH_PIP_ARGS) $(shell grep ^torch== constraints.txt)
	$(@D)/bin/pip install --quiet --requirement tests/sinabs_requirements.txt
	$(@D)/bin/pip install --quiet --no-deps sinabs==3.1.3
	touch $@

clean:
	rm -rf .venv .venv-witness build dist *.egg-info
