"""What a server offers: by which names, drafted by what, kept for how long, and nothing that a request could fetch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loras import gguf_adapter
from tiny_gguf import write_tiny

from edgellm.app.defaults import BadSetting
from edgellm.app.listener import SILENCE, Silence
from edgellm.app.loading import prepare
from edgellm.app.served_models import ServedModels
from edgellm.app.served_pairs import KEEP_ALIVE_S, Offer
from edgellm.export.obtain import store
from edgellm.export.obtain.models_lock import ModelFile
from edgellm.memory.plan import DoesNotFit
from edgellm.runtime.bringup.planning import EngineOptions, beside_bytes, left_bytes, plan_here

OPTIONS = EngineOptions(n_ctx=64, copy=False, learn="off")
Offers = Callable[..., ServedModels]


class Heard(Silence):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Words that name models."""
    return {name: str(write_tiny(tmp_path / f"{name}.gguf", seed=i)) for i, name in enumerate("abc")}


def offer(
    *words: str, aliases: tuple[str, ...] = (), options: EngineOptions = OPTIONS, listener: Any = SILENCE, **more: Any
) -> ServedModels:
    first = prepare(words[0], "none", options, offline=True)
    return Offer(words, first, options, "none", aliases, offline=True, listener=listener).models(**more)


def test_each_model_answers_to_its_names(files: dict[str, str]) -> None:
    a, b = files["a"], files["b"]
    with offer(a, b, aliases=("x", f"y={b}", f"p=q={b}")) as models:
        assert {name: models.get(name).name for name in models.names} == {
            "a": "a", "b": "b", "x": "a", "y": "b", "p=q": "b"
        }  # fmt: skip
        assert models.load(models.get("y")).name == "b"


def test_an_alias_of_a_model_that_is_not_named_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(BadSetting, match="'nobody' is none of the models named"):
        offer(files["a"], aliases=("x=nobody",))


def test_two_models_of_one_name_are_refused(files: dict[str, str]) -> None:
    with pytest.raises(BadSetting, match="two models are called a"):
        offer(files["a"], files["b"], files["a"])


def test_one_model_stays_and_several_are_let_go_if_nothing_is_said(files: dict[str, str]) -> None:
    a, b = files["a"], files["b"]
    assert offer(a).keep_alive_s is None
    assert offer(a, b).keep_alive_s == KEEP_ALIVE_S
    assert offer(a, keep_alive="2m").keep_alive_s == 120
    assert offer(a, b, keep_alive="forever").keep_alive_s is None


def test_what_was_pulled_is_offered_but_for_adapters_and_what_is_no_model(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (broken := tmp_path / "broken.gguf").write_bytes(b"no model")
    adapter = gguf_adapter(tmp_path / "adapter.gguf", Path(files["a"]))
    paths = [Path(files["b"]), Path(files["c"]), broken, adapter]
    pulled = [ModelFile(path, path.stem, "F32", path.stat().st_size, "0" * 64, None, "hf") for path in paths]
    pulled.append(replace(pulled[0], name="a", quant="Q8_0"))  # another file by the first one's name
    monkeypatch.setattr(store, "installed", lambda: pulled)
    heard = Heard()
    with offer(files["a"], files["b"], all_local=True, listener=heard) as models:
        assert [model.name for model in models.all] == ["a", "b", "b:F32", "c", "a:Q8_0"]
    assert [warning.partition(" is not offered")[0] for warning in heard.warnings] == ["broken:F32"]


def test_a_model_that_cannot_fit_is_told_at_the_start_and_refused_when_it_is_asked_for(files: dict[str, str]) -> None:
    plans = [plan_here(Path(files[name]), None, OPTIONS)[0] for name in "ab"]
    assert plans[0] is not None
    budget_bytes = plans[0].required_bytes
    large = write_tiny(Path(files["c"]).with_name("large.gguf"), n_vocab=60_000)
    heard = Heard()
    options = replace(OPTIONS, budget_bytes=budget_bytes)
    with offer(files["a"], str(large), options=options, listener=heard) as models:
        assert heard.warnings[0].startswith("large cannot be loaded as it is: ")
        models.load(models.first)
        with pytest.raises(DoesNotFit, match="a budget of"):
            models.load(models.get("large"))
        assert models.first.state == "loaded"


def test_a_budget_is_of_all_that_is_loaded_and_counts_the_interpreter_once(files: dict[str, str]) -> None:
    plan, _ = plan_here(Path(files["a"]), None, OPTIONS)
    assert plan is not None
    one = beside_bytes(plan)
    for budget_bytes, expected in ((plan.required_bytes + one, "ab"), (plan.required_bytes + one - 1, "b")):
        options = replace(OPTIONS, budget_bytes=budget_bytes)
        assert left_bytes(options, one) == budget_bytes - plan.required_bytes
        with offer(files["a"], files["b"], options=options) as models:
            for model in models.all:
                models.load(model)
            assert "".join(model.name for model in models.all if model.loaded is not None) == expected
