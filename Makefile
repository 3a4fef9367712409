# Everything happens in .venv/. `make serve` sets up the server alone; `make test` adds the rest.
PYTHON ?= python3
ARGS ?=
# Processes that run tests: as many as there are cores, four at most; 0 runs them in one.
JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
# Exact versions that the tests ran with; other Python versions resolve on their own.
CONSTRAIN := $(addprefix -c ,$(wildcard constraints/$(VERSION).txt))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAIN)

.PHONY: serve test lint setup bench fuzz mutants proto clean

serve: $(VENV)/serve.done
	$(BIN)/segserve serve --repository model_repository $(ARGS)

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist loadgroup $(ARGS)

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy clients/examples/*.py deploy/triton/start.py deploy/triton/onnxruntime/model.py docs/make_*.py
	$(BIN)/lint-imports

setup: $(VENV)/test.done

# 200,000 mutants of images and requests (docs/testing.md); goes on where it was stopped.
fuzz: $(VENV)/test.done
	$(BIN)/python tests/fuzz/run.py $(ARGS)

bench: $(VENV)/test.done
	$(BIN)/python benchmarks/fps.py --model icnet --served
	$(BIN)/python benchmarks/guard.py

# One fault after the other in a copy of what differs from main: which do the tests not notice?
mutants: $(VENV)/test.done
	$(BIN)/python tests/mutants/mutate.py $(ARGS)

# Old tools on purpose: generated code demands at least the protobuf that made it.
proto:
	$(PYTHON) -m venv $(VENV)/proto
	$(VENV)/proto/bin/python -m pip install --quiet 'grpcio-tools==1.62.3' 'setuptools<80'
	cd clients/python && ../../$(VENV)/proto/bin/python -m grpc_tools.protoc -I. \
	    --python_out=. --pyi_out=. --grpc_python_out=. segserve_client/proto/segserve.proto

$(VENV)/serve.done: pyproject.toml $(wildcard constraints/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@$(BIN)/python -c 'import cv2' || \
	    { echo 'OpenCV needs two system libraries: apt-get install libgl1 libglib2.0-0'; exit 1; }
	@# Compiles the native loops into their cache, so that the first start does not.
	$(BIN)/python -c 'from serving.server import warm_stages; warm_stages()'
	touch $@

$(VENV)/test.done: $(VENV)/serve.done
	$(PIP) --editable '.[export,training,test]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
