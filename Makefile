# Every target sets up what it needs by itself, once: a virtual environment in .venv.
#   make train ARGS="--minutes 5"     ARGS reaches the script
#   make train PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup train sample evaluate export data test test-slow parity mutants lint format bench soak figures film notebook uses restoration atlas segmenter pretrained translation prompts embeddings ablations sweep examples clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

# An environment, whole or not at all: what a failed one leaves behind must not be taken for one.
define venv
	$(PYTHON) -m venv $(1) || { rm -rf $(1); echo "error: $(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
endef

$(BIN)/pip:
	$(call venv,.venv)

# A stamp a requirements file, so that a changed file is installed again and an unchanged one costs nothing.
$(STAMP): requirements.txt | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r $<
	@touch $@

$(STAMP)-%: requirements/%.txt $(STAMP)
	$(BIN)/pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r $<
	@touch $@

setup: $(STAMP) ## make .venv and install requirements.txt (the other targets do it by themselves)

train: $(STAMP) ## train on the embedded data (about 20 minutes on 2 cores)
	$(BIN)/python train.py $(ARGS)

sample: $(STAMP) ## draw images that follow the masks in examples/masks
	$(BIN)/python sample.py --mask $(ARGS)

evaluate: $(STAMP) $(STAMP)-plots ## how good are the newest checkpoint's samples? a table and a report (about 10 minutes)
	$(BIN)/python evaluate.py $(ARGS)

export: $(STAMP)-export ## the network as ONNX and safetensors, and how to draw from it, for other programs
	$(BIN)/python tools/export.py $(ARGS)

test: lint $(STAMP)-dev ## lint, then every test but the slow ones
	$(BIN)/python -m pytest -q -m "not slow" $(ARGS)

test-slow: $(STAMP)-dev ## the slow proofs
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# What the reference packages and the mutation tool need must not meet ours: each has an environment of its own.
.venv-%/.installed: requirements/%.txt requirements.txt
	$(call venv,.venv-$*)
	.venv-$*/bin/pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r $<
	@touch $@

parity: .venv-parity/.installed ## our metrics and our network against the reference packages
	.venv-parity/bin/python tools/parity.py $(ARGS)

mutants: .venv-mutants/.installed ## break the core in 2000 small ways: which of them does no test notice? (about half an hour)
	.venv-mutants/bin/python tools/mutants.py $(ARGS)

lint: $(STAMP)-dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)-dev ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

data: $(STAMP)-kaggle ## fetch a data set: make data KAGGLE=owner/name
	$(BIN)/python tools/fetch.py '$(KAGGLE)'

bench: $(STAMP) ## share of the machine's convolution speed that a training step reaches
	$(BIN)/python benchmarks/roofline.py $(ARGS)

ablations: $(STAMP) $(STAMP)-plots ## what is each choice of the default worth? (20 minutes a choice, two at a time)
	$(BIN)/python benchmarks/ablations.py $(ARGS)

sweep: $(STAMP) $(STAMP)-plots ## which settings train best? ARGS="--grid lr=1e-3,2e-3 ema-decay=0.99,0.995" (about 20 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sweep.py $(ARGS)

soak: $(STAMP) ## kill a training 200 times (ARGS="--kills N"), and see that nothing is lost (about 20 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tools/soak.py $(ARGS)

figures: $(STAMP)-plots ## loss.png in the folder of the newest run (ARGS="--progress 100 1000": progress.png, what it drew after those steps)
	$(BIN)/python tools/figures.py $(ARGS)

film: $(STAMP) ## the film and the samples in the README, from the models in the box
	$(BIN)/python tools/film.py $(ARGS)

notebook: $(STAMP)-notebook ## execute docs/notebooks/tour.ipynb anew, outputs and all (under 10 minutes)
	$(BIN)/python tools/notebook.py $(ARGS)

uses: $(STAMP) ## the figure of docs/uses.md, from the model in the box
	$(BIN)/python tools/uses.py $(ARGS)

restoration: $(STAMP)-filters ## the network against classical restoration, on held-out slices (about an hour)
	$(BIN)/python benchmarks/restoration.py $(ARGS)

atlas: $(STAMP)-data ## make ddpm/data/atlas.npz again from the MNI average brain
	$(BIN)/python tools/build_atlas.py $(ARGS)

segmenter: $(STAMP) ## make ddpm/metrics/segmenter.pt again, the judge of the embedded data (about 30 minutes)
	$(BIN)/python tools/train_segmenter.py $(ARGS)

pretrained: $(STAMP) ## make ddpm/pretrained.pt again, the model in the box (minutes of a GPU, then rounds of refinement; ARGS="--run RUN" takes a run that is there)
	OMP_NUM_THREADS=1 $(BIN)/python tools/pretrained.py $(ARGS)

translation: $(STAMP) ## image to image against the paired truth (ARGS="--ckpt RUN", a run with --source or --segment)
	$(BIN)/python benchmarks/translation.py $(ARGS)

prompts: $(STAMP) ## do images show what prompts ask for? (ARGS="--ckpt RUN", a run with --words)
	$(BIN)/python benchmarks/prompts.py $(ARGS)

embeddings: $(STAMP)-text ## vectors that another program made of texts, for train.py --text-embeddings
	$(BIN)/python tools/embed.py $(ARGS)

examples: $(STAMP) ## make examples/masks again
	$(BIN)/python tools/example_masks.py $(ARGS)

clean: ## remove .venv and the caches, not results/
	rm -rf .venv .venv-parity .venv-mutants .cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
