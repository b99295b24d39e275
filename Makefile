# Two commands matter: `make chat` (set up, then talk) and `make test` (set up, then prove).
# WHEELS=FOLDER_OR_PAGE takes packages that are compiled already from there (the releases have llama-cpp-python's).
# `make test JOBS=0` runs the tests in one process; LOCKED=1, with any target, installs the versions of requirements.lock.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# A worker holds models of its own, about half a GB at most. Stealing keeps the tests of a file, which share a model, together.
PYTEST := $(BIN)/pytest -q -n $(JOBS) --maxprocesses 8 --dist worksteal
CPP := $(wildcard runtime/kernels/src/*.cpp runtime/kernels/src/*.h tests/runtime/kernels/*.cpp tests/runtime/*.c)

# An environment of its own, for its engine is another. VULKAN_HEADERS=FOLDER names headers newer than the system's.
VENV_VULKAN ?= .venv-vulkan
VULKAN_CMAKE := -DGGML_VULKAN=ON $(if $(VULKAN_HEADERS),-DVulkan_INCLUDE_DIR=$(VULKAN_HEADERS))

.PHONY: chat chat-vulkan test test-vulkan test-model test-slow test-export check docs dist lock hooks clean
.DELETE_ON_ERROR:

chat: FETCH := --fetch
chat: $(VENV)/.installed
	@$(BIN)/edgellm chat $(if $(PROMPT),--prompt "$$PROMPT")

chat-vulkan: FETCH := --fetch
chat-vulkan: $(VENV_VULKAN)/.installed
	@$(VENV_VULKAN)/bin/edgellm chat $(if $(PROMPT),--prompt "$$PROMPT")

test: $(VENV)/.installed-dev
	$(PYTEST)

# One after the other, for the device's memory is one; in a process that may end, as drivers do to processes.
test-vulkan: $(VENV_VULKAN)/.installed-dev
	$(VENV_VULKAN)/bin/pytest -q -n 1 -m vulkan

test-model: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m model

test-slow: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m slow

test-export: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m differential

check: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/generate_cli.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The sdist, the wheel made from it, and both looked into and installed outside the checkout.
dist: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python tests/packaging/check_dist.py dist

# The newest versions that pyproject.toml allows, for every platform, with their hashes.
lock: $(VENV)/.installed
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.lock pyproject.toml

# The checks that git makes before a commit (.pre-commit-config.yaml).
hooks: $(VENV)/.installed-dev
	$(PIP) pre-commit
	$(BIN)/pre-commit install

$(VENV)/.installed: pyproject.toml $(if $(LOCKED),requirements.lock)
	@$(PYTHON) install/environment.py $(VENV) $(FETCH) $(if $(LOCKED),--locked) $(if $(WHEELS),--wheels $(WHEELS))
	@touch $@

$(VENV_VULKAN)/.installed: pyproject.toml $(if $(LOCKED),requirements.lock)
	@$(PYTHON) install/vulkan.py $(VULKAN_HEADERS)
	@CMAKE_ARGS="$(VULKAN_CMAKE) $(CMAKE_ARGS)" $(PYTHON) install/environment.py $(VENV_VULKAN) $(FETCH) $(if $(LOCKED),--locked)
	@touch $@

$(VENV_VULKAN)/.installed-dev: $(VENV_VULKAN)/.installed
	$(VENV_VULKAN)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV_VULKAN) build site dist *.egg-info

export PROMPT
