# CONTRIBUTING.md lists the plain commands behind each target.
PYTHON ?= python3
RUN ?= runs/demo

VENV := .venv
PARITY := .venv-parity
ACCELERATORS := .venv-accelerators
NEXT := $(VENV)/bin/python experiments/train.py --config configs/digits_lenet.py --workdir runs/digits_lenet

.PHONY: demo test lint parity survive sweeps accelerators gpu

demo: $(VENV)/ready
	$(VENV)/bin/python experiments/train.py --config configs/digits_vit.py --workdir $(RUN)
	$(VENV)/bin/python experiments/figures.py --workdir $(RUN)
	@echo
	@$(VENV)/bin/python experiments/evaluate.py --workdir $(RUN)
	@echo "run folder:    $(RUN)"
	@echo "open:          $(RUN)/figures/learning_curve.png and $(RUN)/figures/attention.png"
	@echo "try next:      $(NEXT)"

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

survive: $(VENV)/ready
	$(VENV)/bin/python -m pytest -m thorough -s

sweeps: $(VENV)/ready
	$(VENV)/bin/python -m pytest -m sweeps

accelerators: $(ACCELERATORS)/ready
	$(ACCELERATORS)/bin/python -m pytest -m accelerators -n 2

gpu: $(ACCELERATORS)/ready
	JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false $(ACCELERATORS)/bin/python -m pytest -m gpu -n 4

parity: $(PARITY)/ready
	$(PARITY)/bin/python -m pytest tests/parity

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.txt -e .
	@touch $@

$(PARITY)/ready: requirements.txt tests/parity/requirements.txt tests/parity/requirements-no-deps.txt pyproject.toml
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install --quiet -r tests/parity/requirements.txt -e .
	$(PARITY)/bin/pip install --quiet --no-deps -r tests/parity/requirements-no-deps.txt
	@touch $@

$(ACCELERATORS)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(ACCELERATORS)
	$(ACCELERATORS)/bin/pip install --quiet -r requirements.txt -e . "jax[cuda13,tpu]"
	@touch $@
