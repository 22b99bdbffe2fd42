PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# ModelOpt's ONNX part without its extra, which wants onnxruntime-gpu and cupy; and requests, which it
# imports without saying so.
MODELOPT_ONNX := onnx_graphsurgeon onnxslim lief cppimport mako pybind11 colorama requests certifi \
	charset-normalizer urllib3 idna

.PHONY: demo test test-all test-emulated lint bench

demo: $(INSTALLED)
	$(BIN)/edgeml demo -o demo-out

test: $(INSTALLED)
	$(BIN)/python -m pytest

# Everything, also what makes environments of its own or takes minutes.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu and not jetson and not emulated"

# The whole of edgeml deploy onto an emulated Jetson; needs root and Debian's openssh-server, qemu-user-static,
# mmdebstrap and bubblewrap.
test-emulated: $(INSTALLED)
	$(BIN)/python -m pytest -m emulated tests/emulated

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

# torch first and by itself: pip then takes the pinned build and nothing later replaces it.
# rapidocr-onnxruntime: the examples' models lie in its wheel. They run on any Python; its code, OpenCV
# and the rest of what it depends on are not wanted.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt $(MODELOPT_ONNX)
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python rapidocr-onnxruntime==1.4.4
	touch $(INSTALLED)
