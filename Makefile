# Every target makes .venv and installs what it needs the first time; nothing must be activated.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
NEWEST := .venv-newest/bin/python
# The laws of all families, the front door, the doctests, and of each room the files that take little.
QUICK := lossopt tests/contract \
	$(filter-out %_examples.py %_benchmarks.py %_textbook.py %_mutants.py %_measure.py %_devices.py \
		%_weights.py, $(wildcard tests/test_*.py)) \
	$(addprefix tests/schedules/test_,combinators.py cycles.py shapes.py) \
	tests/losses/test_decisions.py tests/losses/test_regression.py \
	tests/transforms/test_proximal.py tests/fused/test_inputs.py tests/training/test_evaluation.py \
	tests/checkpoint/test_digest.py tests/checkpoint/test_manifest.py \
	tests/sweeps/test_laws.py tests/sweeps/test_modes.py \
	tests/testing/test_gradients.py tests/testing/test_schedules.py tests/testing/test_transforms.py
# Of these, what a version of jax may change; variants go the ways of their rows.
NEWER := $(filter-out tests/contract $(addprefix tests/test_,architecture.py claims.py docs.py glossary.py \
		paths.py) tests/transforms/test_proximal.py tests/checkpoint/%,$(QUICK)) \
	$(filter-out %_variants.py %_members.py,$(wildcard tests/contract/test_*.py))
export MPLBACKEND ?= Agg
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test quick newest lint bench docs pictures

demo: .venv/ready
	$(BIN)/python examples/digits.py

test: .venv/ready
	$(BIN)/python -m pytest

quick: .venv/ready
	$(BIN)/python -m pytest $(QUICK)

# Programs that XLA has compiled once; not for benchmarks, which time it.
test quick newest: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/$(if $(filter newest,$@),.venv-newest,.venv)/cache
test quick newest: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test quick newest: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1

# The newest jax on the newest Python at hand, or on that of `make newest PYTHON=...`.
newest:
	python=$$(.ci/newest $(if $(findstring file,$(origin PYTHON)),,"$(PYTHON)")) && \
		{ [ "$$($(NEWEST) -V 2>&1)" = "$$("$$python" -V)" ] || "$$python" -m venv --clear .venv-newest; }
	$(NEWEST) -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[tests]'
	$(NEWEST) -c "import sys; from importlib.metadata import version as v; \
		print('Python', sys.version.split()[0], *(f'{x} {v(x)}' for x in ('jax', 'jaxlib', 'optax', 'flax')))"
	$(NEWEST) -m pytest -W default::DeprecationWarning $(NEWER)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/ready
	$(BIN)/python -m benchmarks.exactness
	$(BIN)/python -m benchmarks.fit
	$(BIN)/python -m benchmarks.learning_rate
	$(BIN)/python -m benchmarks.sweeps
	$(BIN)/python -m benchmarks.rungs
	$(BIN)/python -m benchmarks.fused
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.parallel
	$(BIN)/python -m benchmarks.processes
	$(BIN)/python -m benchmarks.sparsity
	$(BIN)/python -m benchmarks.optax_rules
	$(BIN)/python -m benchmarks.low_memory
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.resume
	$(BIN)/python -m benchmarks.killed_sweeps

docs: .venv/ready
	$(BIN)/mkdocs build --strict

# The pictures of the README, of what `make demo` wrote.
pictures: demo
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1100,1390 \
		--screenshot=figures/report.png file://$(CURDIR)/figures/digits.html
	$(BIN)/python -c "from PIL import Image; [Image.open(f'figures/{name}.png').convert('RGB').quantize(64) \
		.save(f'docs/pictures/{name}.png', optimize=True) for name in ('digits', 'report')]"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
