# Every target runs in .venv, and first makes or updates it if it is missing or older than the
# requirements. make PYTHON=python3.12 ... chooses the Python of .venv.
PYTHON ?= python3
# Number of tests that run at the same time, each on one thread.
WORKERS ?= 2
# PyTorch is installed first. Without an NVIDIA GPU it is the tested version, because pip may have a
# CPU build of it at hand and then need not download gigabytes of CUDA libraries.
ANY_TORCH = $(shell grep '^torch>' requirements.txt)
TORCH ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo "$(ANY_TORCH)" || echo torch==2.13.0)

VENV_PYTHON = .venv/bin/python
PIP_INSTALL = $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check
PYTEST = $(VENV_PYTHON) -m pytest
DEMO = runs/demo
# On processors the demo trains in two processes with half a batch each. They synchronize once per
# update; threads would synchronize after every small operation. With a GPU or on one core, one
# process trains.
HALVES = 0.batch_size=8 1500.batch_size=8 3400.batch_size=8
DEMO_FLAGS ?= $(shell nvidia-smi -L >/dev/null 2>&1 || test "$$(nproc 2>/dev/null || echo 1)" -lt 2 \
    || echo --num_processes 2 $(addprefix --set ,$(HALVES))) $(DEMO_PRECISION)
# On processors with AMX, bfloat16 products are several times as fast, so the demo's
# discriminator uses them.
DEMO_PRECISION = $(shell nvidia-smi -L >/dev/null 2>&1 || ! grep -qw amx_bf16 /proc/cpuinfo 2>/dev/null \
    || echo --set precision=bf16)

.PHONY: help venv demo demo-training gallery assets test test-slow test-gpu lint bench clean
.DEFAULT_GOAL := help

help:  ## list these targets
	@awk -F ':.*## +' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

venv: .venv/installed  ## make .venv and install requirements.txt into it

demo: demo-training  ## train on the built-in toy cars, 10 to 20 minutes on two cores
	$(VENV_PYTHON) render_multiview_images.py $(DEMO)/generator.pth --seeds 0-5 --image_size 128 \
	    --output_dir $(DEMO)/imgs
	$(VENV_PYTHON) render_video.py $(DEMO)/generator.pth --seeds 0 --trajectory orbit \
	    --output_dir $(DEMO)/vids
	$(VENV_PYTHON) extract_shapes.py $(DEMO)/generator.pth --seed 0 --format glb \
	    --output_dir $(DEMO)/shapes
	$(VENV_PYTHON) plot_run.py $(DEMO)
	@echo
	@echo "The demo is in $(DEMO):"
	@find $(DEMO) -maxdepth 1 -name '*_*.png' | sort -V | tail -n 5
	@ls $(DEMO)/run.png $(DEMO)/imgs/sheet.png $(DEMO)/vids/0.mp4 $(DEMO)/shapes/0.glb

# The training of the demo; python -m benchmarks.cpu --demo uses MORE to stop it after each part.
demo-training: .venv/installed
	$(VENV_PYTHON) train.py --curriculum Demo --output_dir $(DEMO) --resume $(DEMO_FLAGS) $(MORE)

gallery: .venv/installed  ## rebuild the pictures of the documents from assets/demo
	$(VENV_PYTHON) -m docs.gallery

assets: .venv/installed  ## replace the included generator by that of RUN=runs/demo
	$(VENV_PYTHON) -m docs.gallery --run $(or $(RUN),$(DEMO))

test: .venv/installed-dev  ## run the default tests, at most 5 minutes on two cores
	$(PYTEST) -n $(WORKERS) --dist worksteal

test-slow: .venv/installed-dev  ## run the tests that take minutes
	$(PYTEST) -m slow

test-gpu: .venv/installed-dev  ## run the tests that need a CUDA device
	$(PYTEST) -m gpu -W default

lint: .venv/installed-dev  ## check style and types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy .
	$(VENV_PYTHON) -m mypy --platform win32 .

bench: .venv/installed  ## measure the speed of this machine's processor
	$(VENV_PYTHON) -m benchmarks.cpu

clean:  ## remove .venv and the caches of tools, never runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

# A release of torchvision fits one release of PyTorch: without torch==... pip would take the newest
# torchvision and replace PyTorch to fit it.
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or \
	    sys.exit("Python 3.10 or newer is needed; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) "$(TORCH)" || { echo "no $(TORCH) here; taking $(ANY_TORCH)"; \
	    $(PIP_INSTALL) "$(ANY_TORCH)"; }
	$(PIP_INSTALL) -r requirements.txt "torch==$$($(VENV_PYTHON) -c \
	    'import importlib.metadata as m; print(m.version("torch"))')"
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@
