"""Where tests look for a Hub: at one on the loopback, or nowhere."""

from __future__ import annotations

import sys
from typing import Any

import pytest

NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once, so that no test asks the real Hub by accident


def point_hub_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    if constants := hub_constants():
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def hub_constants() -> Any:
    """huggingface_hub's settings, which it took from the environment if it has been imported before the test."""
    return sys.modules.get("huggingface_hub.constants")
