# make demo    set up everything, and run the demonstration
# make test    set up everything, and run the tests for every change
# make test-all    run all tests
# make bench   run the benchmarks; the long-run benchmark takes MINUTES (10)
# make flame   record process PID for SECONDS (30) as docs/performance/flame-NAME.svg
# make chaos   inject faults at random for MINUTES (3), by SEED (any)
# make fuzz    fuzz all readers of untrusted bytes for MINUTES (3)
# make reference   write docs/reference from the code
# make lock    update the locked dependencies
# make clean   remove all generated folders

VENV   := .venv
BENCH  := .bench
PYTHON ?= python3
STAMP  := $(VENV)/.ready
PEERS  := $(BENCH)/.ready
SALT   := .bench-salt
MINUTES ?= 3
SECONDS ?= 30
# Tests mostly wait, so run more of them in parallel than there are processors.
PYTEST := $(VENV)/bin/pytest -n 6 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-all test-rest check bench flame chaos fuzz reference lock clean rabbitmq
.DELETE_ON_ERROR:

demo: $(STAMP) rabbitmq
	@$(VENV)/bin/python docs/examples/demo.py

test: check rabbitmq
	$(PYTEST) -m "not full"

test-all: test test-rest

# What `make test` leaves out.
test-rest: $(STAMP) rabbitmq
	@./setup.sh nginx || echo "nginx cannot be installed: tests of packages on it are skipped"
	@./setup.sh chromium || echo "chromium cannot be installed: the tests in a browser are skipped"
	$(PYTEST) -m "full or hypothesis"
	@$(MAKE) --no-print-directory chaos MINUTES=2 SEED=6
	@$(MAKE) --no-print-directory fuzz MINUTES=1 SEED=6

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@$(VENV)/bin/python -m tests.audit

bench: $(STAMP) $(PEERS) $(SALT)/.ready rabbitmq
	@$(VENV)/bin/python -m benchmarks.one_workstation
	@$(VENV)/bin/python -m benchmarks.publishing
	@$(VENV)/bin/python -m benchmarks.history
	@$(VENV)/bin/python -m benchmarks.window
	@$(VENV)/bin/python -m benchmarks.packages
	@$(VENV)/bin/python -m benchmarks.fleet
	@$(VENV)/bin/python -m benchmarks.simulated
	@$(VENV)/bin/python -m benchmarks.footprint
	@$(VENV)/bin/python -m benchmarks.steady
	@$(BENCH)/bin/python -m benchmarks.charts

flame: $(PEERS)
	$(BENCH)/bin/py-spy record --duration $(SECONDS) --pid $(PID) --output docs/performance/flame-$(NAME).svg

chaos: $(STAMP) rabbitmq
	@$(VENV)/bin/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Guided by coverage where atheris supports this Python; else at random.
fuzz: $(STAMP)
	@$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes \
		--only-binary :all: -r tests/fuzz/requirements.lock 2>/dev/null || true
	@$(VENV)/bin/python -m tests.fuzz --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

$(STAMP): tests/requirements.lock pyproject.toml setup.sh
	@PYTHON=$(PYTHON) ./setup.sh python $(VENV)
	@touch $@

# The peers of the benchmarks, and the library for the charts.
$(PEERS): benchmarks/requirements.lock setup.sh
	@PYTHON=$(PYTHON) ./setup.sh bench $(BENCH)
	@touch $@

# Salt has its own pinned dependencies; without it, the benchmarks leave it out.
$(SALT)/.ready: benchmarks/requirements-salt.lock
	@echo "setting up $(SALT)"
	@rm -rf $(SALT) && $(PYTHON) -m venv $(SALT) && \
		$(SALT)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes \
			-r benchmarks/requirements-salt.lock && touch $@ || \
		{ rm -rf $(SALT); echo "Salt cannot be installed: it is not measured"; }

reference: $(STAMP)
	@$(VENV)/bin/python -m tests.reference

rabbitmq:
	@./setup.sh rabbitmq

lock: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --require-hashes -r tests/uv.lock
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --extra postgresql --extra s3 --extra web \
		pyproject.toml -o requirements.lock
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --constraint requirements.lock \
		pyproject.toml --group dev -o tests/requirements.lock
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --constraint requirements.lock \
		--group bench -o benchmarks/requirements.lock
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header \
		--group bench-salt -o benchmarks/requirements-salt.lock
	echo uv | $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-header - -o tests/uv.lock

clean:
	rm -rf $(VENV) $(BENCH) $(SALT) .fuzz .mypy_cache .pytest_cache .ruff_cache .import_linter_cache \
		.hypothesis
