# make demo and make test set up everything themselves: python3, make and pip are all they need.
PYTHON ?= python3
comma := ,
BIN := .venv/bin
EXTRAS := dev,browser,serving,examples,play,docs,trackio
INSTALLED := .venv/installed-$(shell cat constraints.txt setup.cfg pyproject.toml | cksum | cut -d' ' -f1)

.PHONY: help install lock system demo demo-full demo-browser smoke-2b smoke-8b gpu-check bench-peers bench bench-quick test test-system test-avx2 torture torture-quick lint format

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## .venv with the pinned packages (HASHES=1: each file by its hash; TORCH_INDEX=URL: torch from there first; docs/INSTALL.md)

$(INSTALLED):
	$(PYTHON) -m venv .venv
ifdef HASHES
	sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > .venv/build.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/build.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-build-isolation --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
else
	@if [ -n "$(TORCH_INDEX)" ]; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --index-url $(TORCH_INDEX) torch torchvision; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
endif
	@rm -f .venv/installed-* && touch $@

lock:  ## requirements.lock anew: every pin with the hashes of all its published files, for every machine (needs uv and a network)
	uv pip compile setup.cfg --universal --python-version 3.11.5 --generate-hashes --constraint constraints.txt \
		$(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) --no-annotate --no-header --quiet --output-file requirements.lock

demo: $(INSTALLED)  ## a tiny Qwen3-VL learns the safari: data, training, evaluation, report (CPU, minutes)
	. $(BIN)/activate && bash scripts/demo.sh

demo-full: $(INSTALLED)  ## the whole recipe: varied worlds, longer; then the full game and held-out suites, too (CPU, hours)
	. $(BIN)/activate && bash scripts/demo_full.sh

demo-browser: $(INSTALLED) system  ## a tiny Qwen3-VL learns to click: pages, training, 500 unseen screenshots, live Chromium, report
	. $(BIN)/activate && bash scripts/demo_browser.sh

smoke-2b: $(INSTALLED)  ## the true 2B with random weights on a CPU (PROCESSOR=folder with tokenizer and configs)
	$(BIN)/python scripts/smoke.py --config configs/safari_2b.json --size 2b --processor $(PROCESSOR) --out generated/smoke_2b --set train.accumulation=1

smoke-8b: $(INSTALLED)  ## the true 8B in 4 bit on a CPU (PROCESSOR=folder with tokenizer and configs)
	$(BIN)/python scripts/smoke.py --config configs/computer_use_8b.json --size 8b --processor $(PROCESSOR) --out generated/smoke_8b --set train.accumulation=1

gpu-check: $(INSTALLED)  ## right on this GPU? then measured beside planned (MODEL=folder for random weights)
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py
	$(BIN)/python scripts/check_gpu.py --config configs/safari_2b.json $(if $(MODEL),--set model.path=$(MODEL))

PEERS := $(patsubst %,generated/peers/%/installed,trl llamafactory swift)

bench-peers: $(PEERS)  ## TRL, LLaMA-Factory and ms-swift, each in an environment of its own beside our packages

generated/peers/%/installed: benchmarks/requirements-%.txt $(INSTALLED)
	rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $$(echo $(@D)/lib/python3*/site-packages)/project.pth
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

generated/bench/text.jsonl: $(INSTALLED)
	$(BIN)/python benchmarks/prepare.py --out generated/bench

bench: bench-peers generated/bench/text.jsonl  ## ours beside its peers on equal rows, masks and weights
	$(BIN)/python benchmarks/compare.py --out generated/bench

bench-quick: generated/peers/trl/installed generated/bench/text.jsonl  ## equality with TRL alone, never time
	$(BIN)/python benchmarks/compare.py --out generated/bench --peers trl --only equality

test: $(INSTALLED)  ## the fast tests, no network
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-docs: $(INSTALLED)  ## every command of README and docs: parsed, and run in a small form or marked; links; the site
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" tests/test_documents.py tests/test_site.py

docs: $(INSTALLED)  ## the pages as a site: site/index.html (mkdocs-material; dead links and anchors are errors)
	$(BIN)/mkdocs build --strict

system:  ## Chromium, fonts, Slurm and g++ from the distribution, where apt-get is there and allowed
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-noto-color-emoji \
			fonts-noto-cjk slurmctld slurmd slurm-client munge g++ >/dev/null; then echo "system packages are there"; \
	else echo "nothing installed (it needs apt-get, root and a network): tests without Chromium, Slurm or g++ are skipped or fail"; fi

test-system: $(INSTALLED) system  ## what takes minutes: ranks, real quantisation, Slurm, Chromium, full-size worlds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or browser" -n 2 --dist loadfile --durations 15

test-avx2: $(INSTALLED)  ## precision, a training and its equality tests as on a CPU without bfloat16 units (x86)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
		tests/test_precision.py tests/test_ranks.py tests/test_export.py tests/test_decoding.py tests/test_train.py::test_other_methods_resume_too

torture: $(INSTALLED)  ## every attack of tests/torture in full, at most two hours on two cores; ATTACKS="kills disks" for some
	OMP_NUM_THREADS=1 $(BIN)/python scripts/torture.py $(ATTACKS)

torture-quick: $(INSTALLED)  ## the same attacks, a few cases of each: five minutes at most
	OMP_NUM_THREADS=1 $(BIN)/python scripts/torture.py --quick $(ATTACKS)

lint: $(INSTALLED)  ## what CI checks of style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(INSTALLED)  ## apply the style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
