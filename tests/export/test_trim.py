"""A smaller vocabulary: the same numbers for what is kept, and every text can still be written."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_model
from vocabularies import NASTY, EngineVocabulary

from edgellm.export.convert import engine_jobs
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.convert.trim import TrimError, choose, trim_vocabulary, write_words
from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import read_header
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel

CORPUS = "The river carries the boat down to the harbour. def add(a, b):\n    return a + b\n" * 3


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[int]]:
    """A model with a real vocabulary, the same with an eighth of it, and the tokens that were kept."""
    folder = tmp_path_factory.mktemp("trim")
    to_gguf(tiny_model(folder / "model", request.param, real_tokenizer=True), folder / "half.gguf")
    engine_jobs.quantise(folder / "half.gguf", folder / "whole.gguf", "Q8_0")
    kept = choose(folder / "whole.gguf", 0.125, CORPUS)
    trim_vocabulary(folder / "whole.gguf", folder / "trimmed.gguf", kept)
    assert write_words(folder / "whole.gguf", folder / "trimmed-words.gguf", kept)
    return folder / "whole.gguf", folder / "trimmed.gguf", kept


def text_of(vocabulary: EngineVocabulary, tokens: list[int]) -> bytes:
    return b"".join(vocabulary.piece(token) for token in tokens)


def test_an_eighth_of_the_vocabulary_is_an_eighth_of_its_rows(pair: tuple[Path, Path, list[int]]) -> None:
    whole, trimmed, kept = pair
    n_vocab = read_header(whole).metadata["tokenizer.ggml.tokens"].n_items
    assert len(kept) == -(-n_vocab // 8 // 64) * 64
    rows = {tensor.name: tensor.shape[-1] for tensor in read_header(trimmed).tensors}
    assert {rows[name] for name in ("token_embd.weight", "output.weight") if name in rows} == {len(kept)}


def test_texts_of_kept_tokens_are_cut_as_before(pair: tuple[Path, Path, list[int]]) -> None:
    whole, trimmed, kept = (EngineVocabulary(pair[0]), EngineVocabulary(pair[1]), pair[2])
    new_ids = {old: new for new, old in enumerate(kept)}
    rng, n_same = random.Random(3), 0
    words = [*CORPUS.split(" "), *NASTY]
    for _ in range(500):
        text = " ".join(rng.choices(words, k=rng.randrange(1, 6)))
        before = whole.encode(text)
        if all(token in new_ids for token in before):
            assert trimmed.encode(text) == [new_ids[token] for token in before], text
            n_same += 1
    assert n_same > 50


def test_every_text_can_still_be_written(pair: tuple[Path, Path, list[int]]) -> None:
    whole, trimmed = EngineVocabulary(pair[0]), EngineVocabulary(pair[1])
    rng = random.Random(4)
    for _ in range(500):
        text = "".join(rng.choices(NASTY, k=3)) + chr(rng.randrange(0xA0, 0xD800))
        assert text_of(trimmed, trimmed.encode(text)) == text_of(whole, whole.encode(text)), text


def test_logits_of_kept_tokens_are_the_same_numbers(pair: tuple[Path, Path, list[int]]) -> None:
    whole, trimmed, kept = pair
    tokens = engine_jobs.tokenise(whole, ["The river carries the boat"])[0]
    new_ids = {old: new for new, old in enumerate(kept)}
    before, after = engine_jobs.logits(whole, tokens), engine_jobs.logits(trimmed, [new_ids[token] for token in tokens])
    np.testing.assert_allclose(after, before[:, kept], rtol=1e-5, atol=1e-5)


def test_control_tokens_keep_their_part(pair: tuple[Path, Path, list[int]]) -> None:
    headers = [read_header(path) for path in pair[:2]]
    for key in ("bos", "eos", "padding", "unknown"):
        texts = []
        for header in headers:
            token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
            texts.append(None if token is None else header.array("tokenizer.ggml.tokens")[token])
        assert texts[0] == texts[1]


def test_a_share_below_the_bytes_and_control_tokens_is_refused(pair: tuple[Path, Path, list[int]]) -> None:
    with pytest.raises(TrimError, match="its bytes and control tokens alone are"):
        choose(pair[0], 0.001)


def test_with_its_words_a_trimmed_model_reads_every_token_as_the_whole_one(pair: tuple[Path, Path, list[int]]) -> None:
    rows = []
    for path in pair[:2]:
        model = LlamaModel(path)
        backend = LlamaBackend(model, ContextSettings(256, n_ubatch=16, n_outputs=8))
        tokens = model.vocabulary.encode("".join(NASTY).encode())[:100]
        backend.forward(tokens[:50], n_outputs=0)
        rows.append((tokens, backend.forward(tokens[50:], n_outputs=8).copy(), model.vocabulary.fingerprint()))
        backend.close()
        model.close()
    (tokens, whole, name), (tokens_too, trimmed, name_too) = rows
    assert (tokens, name) == (tokens_too, name_too)
    assert not set(tokens) <= set(pair[2])
    np.testing.assert_allclose(trimmed[:, pair[2]], whole[:, pair[2]], rtol=1e-5, atol=1e-5)
    seen = np.setdiff1d(tokens, pair[2])  # what the context holds can be written too
    np.testing.assert_allclose(trimmed[:, seen], whole[:, seen], rtol=2e-2, atol=2e-2)
    left_out = np.setdiff1d(np.arange(whole.shape[1]), [*pair[2], *seen])
    assert np.isneginf(trimmed[:, left_out]).all()


def test_with_its_words_a_few_tokens_at_once_are_read_as_one_by_one(pair: tuple[Path, Path, list[int]]) -> None:
    model = LlamaModel(pair[1])
    tokens = model.vocabulary.encode("".join(NASTY).encode())[:40]
    rows = []
    for width in (1, 2, 5):
        backend = LlamaBackend(model, ContextSettings(256, n_ubatch=16))
        for start in range(0, len(tokens), width):
            row = backend.forward(tokens[start : start + width], n_outputs=1)[0].copy()
        rows.append(row[pair[2]])
        backend.close()
    model.close()
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows[2], rows[0], rtol=1e-4, atol=1e-4)


def test_without_its_words_or_with_damaged_ones_it_is_a_model_of_its_own(
    tmp_path: Path, pair: tuple[Path, Path, list[int]]
) -> None:
    _, trimmed, kept = pair
    (tmp_path / "trimmed.gguf").symlink_to(trimmed)
    words = trimmed.with_name("trimmed-words.gguf").read_bytes()
    broken = words.replace(b"edgellm.embedding_scale", b"edgellm.embedding_scalp")
    for data in (None, b"GGUF", words[:-1], broken):
        if data is not None:
            (tmp_path / "trimmed-words.gguf").write_bytes(data)
        model = LlamaModel(tmp_path / "trimmed.gguf")
        assert (model.full_vocabulary, model.vocabulary.n_tokens) == (None, len(kept))
        model.close()
