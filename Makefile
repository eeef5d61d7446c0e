# Each command makes its own .venv first, and is safe to repeat. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
# Python compiles a file when it is first imported. To compile all files at once takes longer than to install them.
PIP := $(BIN)/python -m pip install --quiet --no-compile
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
FAMILIES ?=
DTYPES ?=
RESULTS ?= results/run.jsonl

.DEFAULT_GOAL := help
.PHONY: help quick quick-tests quick-zoo run test every format lint hooks wheel legs leg-oldest leg-newest real spec sequences fairness kernels mutants coverage subjects bench bench-compare bench-scaling gpu clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s:

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/installed-real: .venv/installed
	$(PIP) --constraint constraints.txt --editable '.[dev,real]'
	touch $@

run: .venv/installed ## judge reference and bridge on the zoo of tiny random layers
	$(BIN)/ropebridge check --jobs $(JOBS) --results $(RESULTS) $(addprefix --family ,$(FAMILIES)) $(addprefix --dtype ,$(DTYPES))
	$(if $(filter all,$(FAMILIES)),$(BIN)/pytest -q -n $(JOBS) tests/test_families.py tests/test_generation.py tests/test_half_precision.py)

quick: .venv/installed ## the fast tests, and the bridge on the smoke profile in float32, side by side
	@$(MAKE) --no-print-directory --jobs=2 quick-tests quick-zoo

quick-tests: .venv/installed
	@mkdir -p results
	@$(BIN)/pytest -q -m 'not slow and not every' > results/quick.txt 2>&1 || { cat results/quick.txt; exit 1; }
	@tail -n 1 results/quick.txt

# One process: quick-tests, beside it, has the other core.
quick-zoo: .venv/installed
	@$(BIN)/ropebridge check ropebridge.subject:Factory --profile smoke --dtype float32 --jobs 1 --results results/quick.jsonl

test: .venv/installed ## the test suite, of many alike a few
	$(BIN)/pytest -n $(JOBS) -m 'not every'

every: .venv/installed ## what the test suite leaves out: every family, every hook point, every mutant
	$(BIN)/pytest -n $(JOBS) -m every

format: .venv/installed ## lay the code out as `make lint` wants it
	$(BIN)/ruff check --fix --silent --exit-zero
	$(BIN)/ruff format --quiet

hooks: .venv/installed ## have git run the checks of .pre-commit-config.yaml before a commit and a push
	$(BIN)/pre-commit install --hook-type pre-commit --hook-type pre-push

lint: .venv/installed ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

coverage: .venv/installed ## judge the classes that are out of date, or FAMILIES, and write docs/COVERAGE.md
	$(BIN)/ropebridge coverage --jobs $(JOBS) $(addprefix --family ,$(FAMILIES))

leg-oldest: .venv/installed ## the oldest supported transformers: the bridge on the core zoo in float32, and generation
	.ci/leg oldest 'transformers==5.17.*'

leg-newest: .venv/installed ## the newest transformers that pip has: the same
	.ci/leg newest transformers

legs: leg-oldest leg-newest ## both

wheel: .venv/installed ## the wheel as strangers get it, in an environment and a folder of its own
	.ci/wheel

subjects: .venv/installed ## judge Hugging Face's own eager attention, and write docs/subjects
	-$(BIN)/ropebridge check ropebridge_conformance.subjects.hugging_face:Factory --jobs $(JOBS) --results results/hugging_face.jsonl
	$(BIN)/python -m ropebridge_conformance.results.subject_report results/hugging_face.jsonl \
		--known-failures conformance/ropebridge_conformance/subjects/hugging_face.toml --page docs/subjects/hugging_face.md

sequences: .venv/installed ## the public API in any order: 1,000 sequences (`make test` tries 15)
	ROPEBRIDGE_SEQUENCES=1000 $(BIN)/pytest -q --timeout 3600 tests/test_stateful.py

fairness: .venv/installed ## a subject with one hook point missing, or one stage wrong, each in turn
	$(BIN)/pytest -q -n $(JOBS) tests/subjects/test_gaps.py tests/subjects/test_blame.py

kernels: .venv/installed ## each kernel of the bridge, forced, on the whole core of the zoo
	$(BIN)/pytest -q -n $(JOBS) tests/kernels/test_paths.py

mutants: .venv/installed ## judge the judge: every mutant must be killed at its stage
	$(BIN)/ropebridge mutants --jobs $(JOBS)

real: .venv/installed-real ## attach to Gemma 3 270M and judge it on real text
	$(BIN)/python -m ropebridge_conformance.real

bench: .venv/installed ## time and memory of a bridged layer, each row against Hugging Face, round by round
	@mkdir -p results
	$(BIN)/pytest -q -p benchmark -p no:xdist --timeout 0 --benchmark-json results/bench.json --benchmark-quiet tests/benchmarks/bench_rows.py $(if $(ROWS),-k '$(ROWS)')
	$(BIN)/python tests/benchmarks/table.py results/bench.json

bench-scaling: .venv/installed ## how time and memory grow with the number of positions, and a picture of it
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/scaling.py docs/scaling.png

bench-compare: .venv/installed ## the last `make bench` beside the committed one
	$(BIN)/python tests/benchmarks/table.py results/bench.json --compare

gpu: ## on a machine with an accelerator: the conformance suite there, and times in half precision
	PYTHONPATH=impl:reference:conformance:tests $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/gpu.py results

spec: .venv/installed ## write SPEC.md and the README's hook table from the contract
	$(BIN)/python -m ropebridge_spec

clean: ## remove what the other commands made
	rm -rf .venv .legs results .pytest_cache .mypy_cache .ruff_cache .hypothesis
