# make demo   install, then the main job end to end on images that ship with a dependency
# make test   install, then all but the slow tests (under 5 minutes on 2 cores)
# make test-kill  kill a run at 40 random moments; it must end with the same bits (also, smaller, in make test-slow)
# make test-index-kill  kill a picture index at 200 random moments; nothing may be lost or doubled
# make test-oldest  the fast tests on the oldest versions that pyproject.toml allows, in an environment of its own (4 GB, removed by make clean)
# make check  style, types and the fast tests: before each commit
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: install demo test test-slow test-oldest test-kill test-index-kill check bench bench-distill bench-memory bench-eval bench-index docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ssl_kd needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/ssl-kd demo

# two processes; hashing is fixed so that both collect the same tests
test: install
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -n 2 -m 'not slow'

OLDEST = $(VENV)-oldest

test-oldest:
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/oldest.py dev > $(OLDEST)/versions.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -r $(OLDEST)/versions.txt 'setuptools>=77,<82' wheel
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	PYTHONHASHSEED=0 $(OLDEST)/bin/python -m pytest -n 2 -m 'not slow'

test-kill: install
	$(BIN)/python -m benchmarks.kill --kills 40 --spawn

# KILLS=1000 for longer
test-index-kill: install
	$(BIN)/python -m benchmarks.index_kill --kills $(or $(KILLS),200)

test-slow: install
	$(BIN)/python -m pytest -m slow --timeout 3600

check: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -n 2 -m 'not slow' -x

bench: install
	$(BIN)/python -m benchmarks

# With LIGHTLY=path/to/python, an interpreter that has lightly-train and timm, against that as well.
bench-distill: install
	$(BIN)/python -m benchmarks distill_speed $(if $(LIGHTLY),--python $(LIGHTLY))

# IMAGES=1281167 for the whole of an ImageNet-1k index.
bench-memory: install
	$(BIN)/python -m benchmarks memory $(if $(IMAGES),--images $(IMAGES))

# a million made-up vectors beside bare faiss; ROWS=10000000 where there is room
bench-index: install
	$(BIN)/python -m benchmarks index $(if $(ROWS),--rows $(ROWS))

# the goals of evaluation beside its peers' times; SIZE=--quick for a look of some minutes
bench-eval: install
	$(BIN)/python -m benchmarks eval_extract $(SIZE)
	$(BIN)/python -m benchmarks eval_knn $(SIZE)
	$(BIN)/python -m benchmarks eval_probe $(SIZE)

# the docs as a site, in site/index.html: broken links and missing pages are errors
docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	rm -rf build/docs && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/docs .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -f .ci/mkdocs.yml

clean:
	rm -rf $(VENV) $(VENV)-oldest build site docs/reference *.egg-info .pytest_cache .mypy_cache .ruff_cache
