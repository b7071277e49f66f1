# make demo    set up, then run the main job on the bundled world and write demo/report.html
# make test    set up, check style and types, run every test but the long proofs
# make prove   the long statistical and crash proofs
# make bench   all benchmarks, or one: make bench NAME=shards_write [SIZE=small]
# tiny networks on two processes: a second thread each costs more than it brings
export OMP_NUM_THREADS ?= 1
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
TYPED := $(foreach p,catalogs stratify generate curate train_min,-p distdata.$(p)) -m distdata.cli -p distdata.cycle -m distdata.projects

.PHONY: setup demo test prove bench lint format clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@mkdir -p $(VENV)/typing && ln -sfn "$(CURDIR)" $(VENV)/typing/distdata
	@touch $@

demo: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh demo

lint: setup
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	MYPYPATH=$(VENV)/typing $(BIN)/mypy --no-error-summary $(TYPED)

test: setup lint
	$(BIN)/python -m pytest -q -m "not prove" -n 2 --dist loadfile $(ARGS)

prove: setup
	$(BIN)/python -m pytest -q -m prove $(ARGS)

bench: setup
	$(BIN)/python -m benchmarks $(NAME)

format: setup
	$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
