"""Models with an encoder and a decoder: the prompt is encoded once, and all else is the loop that every model runs."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny
from tiny_t5 import WORDS, write_tiny_t5

from edgellm.memory.buffers import estimate
from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import read_header
from edgellm.memory.kv import UnsupportedCache
from edgellm.memory.shape import from_header
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.backends.base import ContextFull, EngineError, LoadError, OneTextOnly, PromptTooLong
from edgellm.runtime.backends.llama_encoder import LlamaEncoderDecoder
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.bringup.probe import probe
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import Draft, NoDrafter
from edgellm.runtime.embedding import CannotEmbed, embed
from edgellm.runtime.engine import Engine
from edgellm.runtime.generation import Generation
from edgellm.runtime.parallel.load import load_parallel
from edgellm.runtime.request import BadRequest, Request
from edgellm.runtime.sampling import GREEDY
from edgellm.runtime.text.template import Message, TemplateError

PLAIN = EngineOptions(learn="off", copy=False)
SETTINGS = ContextSettings(512, n_outputs=9)
START, END = 0, 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_t5(tmp_path_factory.mktemp("t5") / "tiny-t5.gguf")


@pytest.fixture
def backend(path: Path) -> Iterator[LlamaEncoderDecoder]:
    opened = LlamaEncoderDecoder(LlamaModel(path), SETTINGS)
    yield opened
    opened.close()
    opened.model.close()


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    with load(path, None, PLAIN) as loaded:
        yield loaded


def a_prompt(seed: int, n: int = 12) -> list[int]:
    rng = random.Random(seed)
    return [*(rng.randrange(4, 110) for _ in range(n)), END, START]


class Erring:
    """Drafts what the target says, wrong from a random place on, or wrong throughout."""

    engine_s = 0.0

    def __init__(self, truth: Sequence[int], seed: int) -> None:
        self._truth, self._rng = list(truth), random.Random(seed)
        self._n_said = 0

    def begin(self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: object = None) -> None:
        self._n_said = 0

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        n = min(limit, self._rng.randint(1, 8))
        drafted = self._truth[self._n_said : self._n_said + n]
        for i in range(self._rng.randint(0, n), len(drafted)):
            drafted[i] = self._rng.randrange(3, 110)
        return Draft(drafted, source="model")

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        self._n_said += n_new

    def close(self) -> None: ...


def greedy(backend: LlamaEncoderDecoder, drafter: object, prompt: Sequence[int], n: int) -> tuple[list[int], int]:
    backend.truncate(0)
    drafter.begin(prompt)  # type: ignore[attr-defined]
    rounds = list(generate(backend, drafter, prompt, GREEDY, n_draft=8, max_new=n))  # type: ignore[arg-type]
    return [token for result in rounds for token in result.tokens], sum(result.n_accepted for result in rounds)


def test_a_drafter_that_errs_changes_no_answer(backend: LlamaEncoderDecoder) -> None:
    n_accepted = n_drafted_wrong = 0
    for seed in range(20):
        prompt = a_prompt(seed, 5 + seed)
        plain, _ = greedy(backend, NoDrafter(), prompt, 24)
        drafted, n = greedy(backend, Erring(plain, seed), prompt, 24)
        assert drafted == plain
        n_accepted += n
        n_drafted_wrong += n < 24
    assert n_accepted > 100
    assert n_drafted_wrong == 20


def test_rows_after_any_rejections_are_those_of_single_tokens_in_a_fresh_text(backend: LlamaEncoderDecoder) -> None:
    source, rng = a_prompt(1, 30), random.Random(5)
    rows: dict[int, np.ndarray] = {}  # type: ignore[type-arg]
    held: list[int] = [START]
    backend.forward(source, 1)
    for _ in range(60):
        drafted = [rng.randrange(110) for _ in range(rng.randint(1, 9))]
        if len(source) + len(held) + len(drafted) > 400:
            break
        found = backend.forward(drafted, len(drafted)).copy()
        n_kept = rng.randint(1, len(drafted))
        backend.truncate(len(source) - 1 + len(held) + n_kept)
        rows |= {len(held) + i: found[i] for i in range(n_kept)}
        held += drafted[:n_kept]
        assert backend.tokens == [*source[:-1], *held]
    backend.truncate(0)
    backend.forward(source, 1)
    for position in range(1, len(held)):
        assert np.array_equal(backend.forward([held[position]], 1)[0], rows[position]), position


def test_an_input_is_encoded_once_for_all_answers_to_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = engine.backend
    assert isinstance(backend, LlamaEncoderDecoder)
    encoded: list[int] = []
    run = backend._run_encoder
    monkeypatch.setattr(backend, "_run_encoder", lambda source: (encoded.append(len(source)), run(source)))
    first = engine.generate("the cat in the hat", max_tokens=10).finish()
    again = engine.generate("the cat in the hat", max_tokens=10).finish()
    assert len(encoded) == 1
    assert first.tokens == again.tokens
    assert again.stats.n_cached == encoded[0]
    other = engine.generate("the cat in a hat", max_tokens=10).finish()
    assert len(encoded) == 2
    assert other.stats.n_cached == 0
    assert other.tokens != first.tokens  # the decoder attends to what was encoded


def test_a_message_is_answered_as_if_nothing_had_been_said_before(engine: Engine) -> None:
    alone = engine.generate("a cat is a cat", max_tokens=8).finish()
    session = ChatSession(engine)
    list(session.reply("the hat of the cat", max_tokens=8))
    assert "".join(session.reply("a cat is a cat", max_tokens=8)) == alone.text
    assert any("reads each message alone" in note for note in engine.notes)


def test_the_input_is_cut_as_the_tokenizer_cuts_it_and_ends_with_its_own_end(engine: Engine) -> None:
    ids = engine.template.render([Message("user", "the  cat </s>in")])
    words = {word: 4 + i for i, word in enumerate(WORDS)}
    assert ids[:2] == [words["▁the"], words["▁cat"]]
    assert ids[-2:] == [END, START]
    assert ids.count(END) == 1  # what spells a control token is text


def test_drafts_are_copied_from_the_input(path: Path) -> None:
    with load(path, None, EngineOptions(learn="off", fixed=True, n_draft=4)) as engine:
        prompt = engine.template.render([Message("user", "the cat in the hat is of the cat and a dog")])
        engine.drafter.begin(prompt)
        said = [*prompt, *prompt[1:3]]
        engine.drafter.observe(said, 2)
        assert list(engine.drafter.propose(said, 4).tokens) == prompt[3:7]


def test_a_drafter_of_the_same_kind_drafts_and_the_answer_stays(path: Path, tmp_path: Path) -> None:
    with load(path, None, PLAIN) as engine:
        expected = [engine.generate(q, max_tokens=20).finish().tokens for q in ("the cat", "a hat of the cat")]
    small = write_tiny_t5(tmp_path / "small.gguf", n_layers=1)
    for draft in (small, path):
        options = EngineOptions(learn="off", copy=False, fixed=True, n_draft=4)
        with load(path, draft, options) as engine:
            answers = [engine.generate(q, max_tokens=20).finish() for q in ("the cat", "a hat of the cat")]
        assert [answer.tokens for answer in answers] == expected
        assert all(answer.stats.n_drafted for answer in answers)
    assert sum(answer.stats.n_accepted for answer in answers) > 20  # it was its own drafter


def test_sampling_with_a_seed_is_the_same_whatever_is_drafted(path: Path) -> None:
    from edgellm.runtime.sampling import Sampling

    sampling = Sampling(temperature=1.0, seed=3)
    with load(path, None, EngineOptions(learn="off", fixed=True, n_draft=4)) as engine:
        plain = engine.generate("the cat is in", max_tokens=30, sampling=sampling, n_draft=0).finish()
        drafted = engine.generate("the cat is in", max_tokens=30, sampling=sampling).finish()
    assert plain.tokens == drafted.tokens


def test_what_does_not_fit_is_one_sentence(path: Path) -> None:
    with load(path, None, EngineOptions(n_ctx=64, learn="off")) as engine:
        with pytest.raises(PromptTooLong, match="shorten it"):
            engine.generate("cat " * 80, max_tokens=4).finish()
        answer = engine.generate("cat " * 40, max_tokens=100).finish()
        assert answer.finish_reason in ("context", "stop")
        with pytest.raises(ContextFull, match="raise --ctx or shorten the text"):
            engine.backend.forward([5] * 70, 0)


def test_a_cut_inside_the_input_leaves_nothing_of_it(backend: LlamaEncoderDecoder) -> None:
    prompt = a_prompt(2)
    expected = backend.forward(prompt, 1).copy()
    backend.truncate(3)
    assert backend.tokens == []
    backend.forward(a_prompt(3), 1)
    backend.truncate(0)
    assert np.array_equal(backend.forward(prompt, 1), expected)


def test_what_such_a_model_cannot_do_is_refused_in_a_sentence(path: Path, tmp_path: Path) -> None:
    with load(path, None, PLAIN) as engine:
        with pytest.raises(TemplateError, match="no place for a system prompt"):
            list(ChatSession(engine, system="Be brief.").reply("the cat", max_tokens=4))
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        with pytest.raises(TemplateError, match="cannot be given tools"):
            engine.generate("the cat", tools=[tool]).finish()
        with pytest.raises(BadRequest, match="does not go on with a text"):
            Generation(engine, Request(prompt=(4, 5, 6)))
        with pytest.raises(CannotEmbed, match="gives no embeddings"):
            embed(engine, [4, 5], threading.Event())
        with pytest.raises(EngineError, match="nothing of it can be forgotten"):
            engine.backend.forget_oldest(1)
    with pytest.raises(OneTextOnly, match="without --parallel"):
        load_parallel(path, None, EngineOptions(n_ctx=64, n_parallel=2, learn="off"))
    with pytest.raises(LoadError, match="drafts for models that have one too"):
        load(write_tiny(tmp_path / "decoder.gguf"), path, EngineOptions(learn="off"))
    with pytest.raises(UnsupportedCache, match="use --kv f16"):
        load(path, None, EngineOptions(kv="q8_0", learn="off"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_decoder_layers": 3}, "cache for no more than those of the encoder"),
        ({"decoder_block_count": 4_000_000_000}, "claims 4000000000 layers of its decoder"),
        ({"n_buckets": 2}, "claims 2 kinds of distances"),
        ({"attention.relative_buckets_count": 64}, "has no enc.blk.0.attn_rel_b.weight of 4 x 64"),
        ({"attention.relative_buckets_count": 0}, "claims 0 kinds of distances"),
    ],
)
def test_numbers_that_the_engine_would_end_the_process_over_are_refused(
    options: dict[str, int], told: str, tmp_path: Path
) -> None:
    path = write_tiny_t5(tmp_path / "bad.gguf", **options)  # type: ignore[arg-type]
    with pytest.raises(LoadError, match=told):
        LlamaModel(path)


def test_fewer_decoder_layers_run(tmp_path: Path) -> None:
    with load(write_tiny_t5(tmp_path / "t5.gguf", n_layers=3, n_decoder_layers=1), None, PLAIN) as engine:
        assert engine.generate("the cat", max_tokens=4).finish().stats.n_rounds


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_embd": 256, "n_ff": 512, "head_dim": 64},
        {"n_embd": 256, "n_ff": 2048, "n_heads": 12, "head_dim": 64, "n_vocab": 4096, "tied": True},
        {"n_embd": 256, "n_ff": 512, "n_heads": 2, "head_dim": 64, "n_ctx_train": 2048},
    ],
)
def test_the_plan_is_what_llama_cpp_reserves(sizes: dict[str, int], tmp_path: Path) -> None:
    path = write_tiny_t5(tmp_path / "t5.gguf", **sizes)  # type: ignore[arg-type]
    shape = from_header(read_header(path))
    settings = [ContextSettings(n_ctx, n_outputs=16) for n_ctx in (256, 512, 1024)]
    for asked, found in zip(settings, probe(path, settings), strict=True):
        planned = estimate(shape, asked)
        assert (planned.weights_bytes, planned.kv_bytes) == (found.weights_bytes, found.kv_bytes)
        assert planned.output_bytes == found.output_bytes
        assert 0.99 <= planned.compute_bytes / found.compute_bytes <= 1.06


def test_a_plan_takes_twice_the_trained_context_unless_more_is_asked_for(path: Path) -> None:
    with load(path, None, PLAIN) as engine:
        assert engine.backend.n_ctx == 2 * 512
    with load(path, None, EngineOptions(n_ctx=1536, learn="off")) as engine:
        assert engine.backend.n_ctx == 1536
        assert engine.generate("cat " * 1200, max_tokens=4).finish().stats.n_prompt > 1200
