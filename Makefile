# make help lists the targets. `make demo` and `make test` do all the set-up they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
VENV35 := .venv-spark35
STAMP35 := $(VENV35)/.installed
# Each version of Spark between the oldest and the newest, in a venv of its own.
MATRIX := 4.0 4.1 4.2
MATRIX_STAMPS := $(MATRIX:%=.venv-spark%/.installed)
MATRIX_RUNS ?= matrix-runs
# The only package that carries Iceberg for Spark. Its version 1.0.3 lacks classes that Iceberg needs.
ICEBERG := $(VENV35)/iceberg/snowpark_connect_deps_iceberg/jars/iceberg-spark-runtime-3.5_2.12-1.10.2.jar
# Encoders need torch and its company, which nothing else does.
VENV_ENCODERS := .venv-encoders
STAMP_ENCODERS := $(VENV_ENCODERS)/.installed
# The site of the documentation, which needs nothing of the package.
VENV_DOCS := .venv-docs
STAMP_DOCS := $(VENV_DOCS)/.installed
# What is never imported need not be compiled: without it, setting up takes half the time.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile
# Two at a time: each has a Spark of its own.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-faults test-s3a test-spark35 test-matrix test-encoders test-browser docs reference pictures emr-archive lint format bench lock clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv with the locked dependencies (a Java runtime among them)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --require-hashes -r requirements.lock
	$(BIN)/python -m pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Cluster and prune scikit-learn's handwritten digits into demo-run/
	$(BIN)/spark-dbp demo demo-run

test: $(STAMP)  ## Run what shows that the program works: unit tests and the core of the others (5 minutes)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES)

test-all: $(STAMP)  ## Run all tests but the long ones
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m 'not long and not s3a and not matrix and not browser'

test-faults: $(STAMP)  ## Run the longer tests: more kills and faults, random jobs, lanes
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m long

# Neither PyPI nor the wheel of Spark has the connector as such; this package of AWS carries one that fits.
S3A := $(VENV)/s3a/sagemaker_pyspark-1.4.5/deps/jars
S3A_JARS := $(S3A)/hadoop-aws-3.3.1.jar,$(S3A)/aws-java-sdk-bundle-1.11.901.jar

test-s3a: $(STAMP)  ## Run the job on an S3 server (fetches jars of 200 MB)
	test -d $(S3A) || { mkdir -p $(VENV)/s3a && $(BIN)/python -m pip download --quiet --no-deps --no-binary :all: \
	  --no-build-isolation --dest $(VENV)/s3a sagemaker-pyspark==1.4.5 && \
	  tar -xzf $(VENV)/s3a/sagemaker_pyspark-1.4.5.tar.gz -C $(VENV)/s3a; }
	SPARK_DBP_S3A_JARS=$(S3A_JARS) $(BIN)/python -m pytest -m s3a tests/job/test_object_store.py

test-spark35: $(STAMP35) $(STAMP) $(ICEBERG)  ## Run the tests that need Spark on Spark 3.5, with Iceberg (fetches jars of 90 MB)
	SPARK_DBP_ICEBERG_JAR=$(CURDIR)/$(ICEBERG) SPARK_DBP_NEWEST_PYTHON=$(BIN)/python $(VENV35)/bin/python -m pytest -n $(TEST_PROCESSES) -m 'not long and not s3a and not matrix and not browser' tests/lanes tests/spark tests/job

$(ICEBERG): $(STAMP35)
	$(VENV35)/bin/python -m pip download --quiet --no-deps --ignore-requires-python --dest $(VENV35)/iceberg \
	  snowpark-connect-deps-iceberg==1.0.2
	$(VENV35)/bin/python -m zipfile -e $(VENV35)/iceberg/snowpark_connect_deps_iceberg-1.0.2-*.whl $(VENV35)/iceberg
	@touch $@

$(STAMP35): requirements-spark35.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13) and "numpy 1 needs Python 3.10 to 3.12: make test-spark35 PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV35)
	$(VENV35)/bin/python -m pip install $(PIP_OPTIONS) --require-hashes -r requirements-spark35.lock
	$(VENV35)/bin/python -m pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	@touch $@

# Spark 3.5 and 4.3 have locks of their own. The versions between take all but pyspark from the lock of the newest.
test-matrix: $(STAMP) $(STAMP35) $(MATRIX_STAMPS)  ## Run demo and lanes on Spark 3.5 to 4.3, compare digests; run the archive for EMR (40 minutes)
	rm -rf $(MATRIX_RUNS)
	for venv in $(VENV35) $(MATRIX:%=.venv-spark%) $(VENV); do \
	  $$venv/bin/spark-dbp demo $(MATRIX_RUNS)/$$venv > /dev/null && \
	  SPARK_DBP_NEWEST_PYTHON=$(BIN)/python $$venv/bin/python -m pytest -m 'not long and not matrix and not browser' tests/lanes || exit 1; done
	$(BIN)/python -m pytest -m matrix
	$(BIN)/python tests/lanes/compare_demos.py $(MATRIX_RUNS)/.venv*

.venv-spark%/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make test-matrix PYTHON=python3.11")'
	$(PYTHON) -m venv .venv-spark$*
	sed -n 's/ \\$$//; /^py\(spark\|4j\)==/d; /^[a-z].*==/p' requirements.lock > .venv-spark$*/constraints.txt
	.venv-spark$*/bin/python -m pip install $(PIP_OPTIONS) --constraint .venv-spark$*/constraints.txt \
	  setuptools 'pyspark[connect]==$*.*' --editable '.[local,dev]'
	@touch $@

test-encoders: $(STAMP_ENCODERS)  ## Run the tests of encoders and loaders that need torch, in a venv of its own (fetches 1 GB)
	OMP_NUM_THREADS=1 $(VENV_ENCODERS)/bin/python -m pytest -n $(TEST_PROCESSES) tests/encoders

$(STAMP_ENCODERS): requirements-encoders.txt requirements.lock pyproject.toml tests/encoders/mend_torchvision.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make test-encoders PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV_ENCODERS)
	sed -n 's/ \\$$//; /^[a-z].*==/p' requirements.lock > $(VENV_ENCODERS)/constraints.txt
	$(VENV_ENCODERS)/bin/python -m pip install $(PIP_OPTIONS) --constraint $(VENV_ENCODERS)/constraints.txt \
	  --requirement requirements-encoders.txt --editable '.[local,dev,notebook]'
	$(VENV_ENCODERS)/bin/python tests/encoders/mend_torchvision.py
	@touch $@

# SPARK_DBP_CHROMIUM names one that is not on the PATH.
test-browser: $(STAMP)  ## Run the tests of reports and of a site that is built in headless Chromium (fetches Debian's package unless there is one)
	SPARK_DBP_CHROMIUM="$$(sh tests/browser/find_chromium.sh)" && export SPARK_DBP_CHROMIUM && \
	  $(BIN)/python -m pytest -m browser tests/browser

docs: $(STAMP_DOCS)  ## Build the site of the documentation into site/, and check its links
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict
	@echo "site/index.html"

$(STAMP_DOCS): requirements-docs.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make docs PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install $(PIP_OPTIONS) --require-hashes -r requirements-docs.lock
	@touch $@

reference: $(STAMP)  ## Write docs/reference anew from the configuration's model and the parser
	$(BIN)/python docs/tools/write_reference.py

pictures: $(STAMP)  ## Draw docs/pictures anew from a run on scikit-learn's digits
	$(BIN)/python docs/tools/draw_pictures.py

emr-archive:  ## Pack a Python 3.11 with this package for EMR: dist/environment.tar.gz (for EMR itself: conf/emr/Dockerfile)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make emr-archive PYTHON=python3.11")'
	$(PYTHON) conf/emr/make_archive.py

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_STAMP)  ## Measure against peers (BENCH=--quick for a quick look)
	$(BIN)/python -m benchmarks $(BENCH)

$(BENCH_STAMP): requirements-bench.lock $(STAMP)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --require-hashes -r requirements-bench.lock
	@touch $@

LOCK := uv pip compile --universal --python-version 3.10 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --quiet

lock:  ## Resolve all locked versions anew (needs uv)
	$(LOCK) --extra local --extra notebook --extra dev pyproject.toml --output-file requirements.lock
	$(LOCK) --extra spark35 --extra dev pyproject.toml --output-file requirements-spark35.lock
	$(LOCK) --extra bench --constraint requirements.lock pyproject.toml --output-file requirements-bench.lock
	$(LOCK) --group docs --output-file requirements-docs.lock

clean:  ## Delete what the targets above made
	rm -rf $(VENV) $(VENV35) $(VENV_ENCODERS) $(VENV_DOCS) site $(MATRIX:%=.venv-spark%) $(MATRIX_RUNS) build dist demo-run demo-images-run demo-texts-run *.egg-info
