# make demo: the main job on the shipped data. make test: all tests. Both set up .venv/ first.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
EXTRAS ?= dev
# At most so many test processes, one a core.
WORKERS ?= 4

.PHONY: setup demo test lint bench docs gpu-check clean

setup: .venv/ready

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 to 3.13 with venv: install one, or make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	-$(BIN)/deploykit doctor --install-triton
	@touch $@

demo: setup
	$(BIN)/deploykit run recipes/quickstart.yaml
	$(BIN)/deploykit ask support_intents --repository model_repository --top-k 2 \
	  "hi, my parcel should have been here on monday, where is it??" \
	  "I was charged twice for the same order, please give me the money back" \
	  "what is the capital of Peru?"

test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses $(WORKERS) --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@test -n "$(TRAIN)" -a -n "$(TEST)" || { echo "make bench TRAIN=train.csv TEST=test.csv (BANKING77)"; exit 1; }
	$(BIN)/python benchmarks/banking77.py --train $(TRAIN) --test $(TEST) --save
	$(BIN)/python benchmarks/serving.py --model "$$(ls -dt .deploykit/store/quantize/*/ | head -1)" --test $(TEST) --save

docs: setup
	$(BIN)/python docs/generate_reference.py

# onnxruntime and onnxruntime-gpu break each other, so this takes the first out of .venv; `make clean setup` brings it back.
gpu-check: setup
	$(BIN)/python -m pip uninstall --quiet --yes onnxruntime
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps onnxruntime-gpu
	$(BIN)/python -m pip install --quiet --editable '.[gpu,models]'
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf .venv .deploykit .pytest_cache .mypy_cache .ruff_cache
