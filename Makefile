# Two commands matter on a fresh machine: `make demo` and `make test`. They need Python 3.11 to 3.13, git and make.
PYTHON ?= python3
VENV ?= .venv
NEWEST ?= .venv-newest
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

WORKERS ?= 2
# Two workers; a file stays with one of them, and what starts Ray or a federation is one group.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder --durations 15 --durations-min 1
REPORT := .pytest_cache/report.xml

.PHONY: demo test test-all quick mutants durations check format results bench newest clean

demo: $(STAMP)  ## GGEUR beside FedAvg, FedProx and SCAFFOLD on bundled digits: a table, curves, pictures in results/demo
	$(BIN)/umbel compare demo --strategies 'fedavg,fedprox(mu=0.1),scaffold,ggeur(complete=all)' --seeds 8 --output results/demo

test: $(STAMP)  ## the tests: of each product a covering design, Ray and gRPC with real processes; minutes
	$(PYTEST) --junitxml $(REPORT)

quick: $(STAMP)  ## the tests that take fractions of a second each
	$(PYTEST) --tier quick

test-all: $(STAMP)  ## every test, then the quick ones under other kernels; an hour and more
	$(PYTEST) --tier all --junitxml .pytest_cache/report-all.xml
	ATEN_CPU_CAPABILITY=default $(PYTEST) --tier quick
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(PYTEST) --tier quick
	ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(PYTEST) --tier quick

durations: $(STAMP)  ## record how long each test takes, after `make test-all`
	$(BIN)/python tests/budget.py record .pytest_cache/report-all.xml

mutants: $(STAMP)  ## how many small faults in the mathematics the tests notice; half an hour
	$(BIN)/python -m pip install --quiet 'cosmic-ray>=8.7,<9'
	$(BIN)/python tests/mutants.py --workers $(WORKERS)

check: $(STAMP)  ## ruff, mypy --strict, import-linter, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.imports
	$(BIN)/codespell

format: $(STAMP)  ## put the code into the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What has ended is not run again: after a stop, or for the pages alone, give the command once more.
results: $(STAMP)  ## the comparisons behind the tables of accuracy in benchmarks/RESULTS.md; they take many hours
	$(BIN)/python benchmarks/fashion.py
	for method in ggeur fot fedloge creamfl parties; do $(BIN)/python benchmarks/tables.py $$method || exit; done
	$(BIN)/python benchmarks/niid.py

bench: $(STAMP)  ## speed of the engines beside a plain loop and stock Flower
	$(BIN)/python benchmarks/simulation.py

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "umbel needs Python 3.11 to 3.13, this is " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# A reference of the tests, of which they read one file; what it would bring along does not go with the CPU's torch.
	$(BIN)/python -m pip install --quiet --no-deps grad-cam==1.5.7
	touch $(STAMP)

clean:  ## remove the environment and caches; results stay
	rm -rf $(VENV) $(NEWEST) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A federation of two warm nodes over the Fleet API that this Flower has, held against inline, and Flower's own nodes.
newest:  ## the same under the newest Flower, without the pin: the apps, messages, and a federation over HTTP
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --editable '.[dev]'
	$(NEWEST)/bin/python -m pip install --quiet --upgrade 'flwr[simulation]'
	$(NEWEST)/bin/python -m pytest -q tests/core/wire/test_messages.py tests/core/wire/test_flower_versions.py \
	  tests/strategies/test_flower_strategies.py tests/server/test_exchange.py tests/server/test_open_shapes.py \
	  tests/server/test_directory.py tests/server/test_lost_rounds.py tests/server/test_coverage.py \
	  tests/client/test_lost_replies.py tests/client/test_connection.py tests/end_to_end/test_bundle.py -m "not slow"
	$(NEWEST)/bin/python -m pytest -q "tests/end_to_end/test_engines.py::test_grpc_gives_the_same_bits[fedavg]" \
	  "tests/end_to_end/test_engines.py::test_grpc_gives_the_same_bits[scaffold]" \
	  tests/end_to_end/test_engines.py::test_stock_supernodes_give_the_same_bits
