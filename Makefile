# Two commands matter: `make chat` (set up, then talk) and `make test` (set up, then prove).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: chat test test-model test-export check docs clean
.DELETE_ON_ERROR:

chat: $(VENV)/.installed
	@$(BIN)/edgellm chat $(if $(PROMPT),--prompt "$$PROMPT")

test: $(VENV)/.installed-dev
	$(BIN)/pytest -q

test-model: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m model

test-export: $(VENV)/.installed-dev
	$(BIN)/pytest -q -m differential

check: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/generate_cli.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.installed: pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build site *.egg-info

export PROMPT
