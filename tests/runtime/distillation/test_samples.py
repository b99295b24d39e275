"""A lesson in the drafter's tokens spells what the target said, behind the prompt that the drafter reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import vocabularies
from fakes import byte_vocabulary
from tiny_gguf import write_tiny

from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.bringup.load import load
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.distillation.lesson import Lesson, Likely, Sample
from edgellm.runtime.distillation.samples import SampleMaker
from edgellm.runtime.engine import Engine
from edgellm.runtime.text.draft_prompt import NEUTRAL
from edgellm.runtime.text.template import ChatTemplate, Message
from edgellm.runtime.text.translate import GrowingText
from edgellm.runtime.text.vocabulary import CannotEncode, Vocabulary

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ["<|im_start|>", "<|im_end|>"]
ASKED = (("user", "Name it."),)
TARGETS = ("qwen3", "llama3", "gemma3", "llama2")


@functools.cache
def opened(path: Path) -> LlamaModel:
    return LlamaModel(path, ModelOptions(vocabulary_only=True))


@pytest.fixture
def smollm2(smollm2_path: Path) -> tuple[Vocabulary, ChatTemplate]:
    model = opened(smollm2_path)
    return model.vocabulary, ChatTemplate(model.chat_template, model.vocabulary)


def small(*words: bytes) -> Vocabulary:
    return byte_vocabulary(*words, control=CONTROL, ends=["<|im_end|>"])


def maker(target: Vocabulary, draft: Vocabulary, *, same: bool = False, max_tokens: int = 768) -> SampleMaker:
    return SampleMaker(target, draft, ChatTemplate(CHATML, draft), same=same, max_tokens=max_tokens)


def made(samples: SampleMaker, lesson: Lesson) -> Sample:
    sample = samples.sample(lesson)
    assert sample is not None
    assert sample.prompt.dtype == sample.answer.dtype == np.int32
    assert sample.soft == () or len(sample.soft) == len(sample.answer)
    return sample


def texts(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[bytes]:
    return [vocabulary.piece(int(token)) for token in tokens]


@pytest.mark.parametrize("family", TARGETS)
def test_samples_spell_what_real_targets_said(family: str, smollm2: tuple[Vocabulary, ChatTemplate]) -> None:
    draft, template = smollm2
    target = opened(vocabularies.vocabulary_gguf(family)).vocabulary
    samples, n_made = SampleMaker(target, draft, template, same=False), 0
    for text in vocabularies.NASTY[1:]:
        tokens = tuple(target.encode(text.encode()))
        spelled = target.decode(tokens)
        sample = samples.sample(Lesson(ASKED, tokens, True))
        if sample is None:
            with pytest.raises(CannotEncode):
                draft.encode(spelled)
            continue
        n_made += 1
        assert sample.answer[-1] == template.turn_end
        assert draft.decode(sample.answer[:-1].tolist()) == spelled
        assert draft.control.isdisjoint(sample.answer[:-1].tolist())
        growing = GrowingText(draft, sample.prompt.tolist())  # as a drafter reads it, some tokens at a time
        for start in range(0, len(tokens), 3):
            growing.append(target.decode(tokens[start : start + 3]))
        assert growing.tokens == [*sample.prompt.tolist(), *sample.answer[:-1].tolist()]
    assert n_made > 40


def test_a_prompt_is_the_one_that_the_engine_gives_the_drafter(tmp_path: Path) -> None:
    target = write_tiny(tmp_path / "target.gguf", vocab="spm")
    drafter = write_tiny(tmp_path / "drafter.gguf")
    conversations = [
        [("user", "hat")],
        [("system", "Be brief."), ("user", "hat")],
        [("user", "hat"), ("assistant", "the hat"), ("user", "tin")],
    ]
    with load(target, drafter, EngineOptions(n_ctx=256, n_draft=2, fixed=True, learn="off", n_threads=1)) as engine:
        assert engine.pair is not None
        assert not engine.pair.same
        samples, answer = of_engine(engine), tuple(engine.model.vocabulary.encode(b"the hat"))
        for given in conversations:
            messages = [Message(role, content) for role, content in given]  # type: ignore[arg-type]
            sample = made(samples, Lesson(tuple(given), answer, True))
            assert sample.prompt.tolist() == engine.draft_prompt(messages, think=False)


def of_engine(engine: Engine) -> SampleMaker:
    assert engine.draft_model is not None
    assert engine.draft_template is not None
    return SampleMaker(engine.model.vocabulary, engine.draft_model.vocabulary, engine.draft_template, same=False)


def test_a_drafter_of_the_same_vocabulary_learns_from_the_prompt_that_it_reads(tmp_path: Path) -> None:
    """Its prompt is the target's own, without a system prompt that nobody gave."""
    target, drafter = (write_tiny(tmp_path / f"{seed}.gguf", seed=seed) for seed in (0, 1))
    with load(target, drafter, EngineOptions(n_ctx=256, n_draft=2, fixed=True, copy=False, learn="off")) as engine:
        assert engine.pair is not None
        assert engine.pair.same
        answer = engine.generate("hat", max_tokens=4).finish()
        assert engine.draft_model is not None
        vocabulary = engine.model.vocabulary
        samples = SampleMaker(vocabulary, engine.draft_model.vocabulary, engine.template, same=True)
        sample = made(samples, Lesson((("user", "hat"),), answer.tokens, False))
        assert sample.prompt.tolist() == engine.backend.tokens[: len(sample.prompt)]
        assert tuple(sample.answer.tolist()) == answer.tokens
        assert NEUTRAL.encode() not in vocabulary.decode(sample.prompt.tolist())


def test_an_answer_ends_with_the_drafters_end_only_where_the_target_ended_it() -> None:
    target, draft = small(b"the", b" cat"), small(b"th", b"ae", b" cat")
    tokens = (256, 257)
    end = draft.turn_end
    ended, cut = (made(maker(target, draft), Lesson(ASKED, tokens, is_ended)) for is_ended in (True, False))
    assert ended.answer.tolist() == [256, ord("e"), 258, end]
    assert cut.answer.tolist() == [256, ord("e"), 258]


def test_half_a_character_at_the_end_of_a_cut_answer_is_left_out() -> None:
    target, draft = small(), small()
    sample = made(maker(target, draft), Lesson(ASKED, tuple("aé".encode()[:2]), False))
    assert draft.decode(sample.answer.tolist()) == b"a"


@pytest.mark.parametrize(
    "lesson",
    [
        Lesson(ASKED, (), False),
        Lesson((), (65,), True),
        Lesson(ASKED, (65, 10_000), True),
        Lesson(ASKED, (-1,), True),
        Lesson((("user", "long " * 200),), (65,), True),
    ],
    ids=["no answer", "no question", "no such token", "no token", "no room"],
)
@pytest.mark.parametrize("same", [False, True])
def test_what_teaches_nothing_is_no_sample(lesson: Lesson, same: bool) -> None:
    assert maker(small(), small(), same=same, max_tokens=256).sample(lesson) is None


def test_ids_are_taken_over_only_where_they_mean_the_same() -> None:
    target, draft = small(b"one", b"two"), small(b"one", b"zwei")
    samples = maker(target, draft, same=True)
    assert made(samples, Lesson(ASKED, (256,), False)).answer.tolist() == [256]
    assert samples.sample(Lesson(ASKED, (256, 257), False)) is None


def test_likely_tokens_are_told_where_both_vocabularies_have_a_border() -> None:
    """`the` ` cat` against `th` `e` ` c` `at`: the beginnings of both words are borders of both, and the end."""
    target, draft = small(b"the", b" cat", b"that", b" cow"), small(b"th", b" c", b"at", b"tha")
    the, cat, that, cow = 256, 257, 258, 259
    stop, end = target.turn_end, draft.turn_end
    assert stop is not None
    assert end is not None
    likely: tuple[Likely, ...] = (
        ((that, 0.5), (the, 0.25), (stop, 0.05)),
        ((cat, 0.6), (cow, 0.3), (stop, 0.1)),
        ((stop, 0.6), (cat, 0.2)),
    )
    sample = made(maker(target, draft), Lesson(ASKED, (the, cat), True, likely))
    assert texts(draft, sample.answer.tolist()) == [b"th", b"e", b" c", b"at", b""]
    # What the target did say is the token that comes; any other is the one that it begins with.
    expected = [{259: 0.625, 256: 0.3125, end: 0.0625}, None, {257: 0.9, end: 0.1}, None, {end: 0.75, 257: 0.25}]
    for found, wanted in zip(sample.soft, expected, strict=True):
        assert (found and dict(found)) == (wanted and pytest.approx(wanted))
    assert sample.soft[0] is not None
    assert [token for token, _ in sample.soft[0]] == [259, 256, end]


def test_what_the_target_said_is_the_token_that_comes_however_long_that_is() -> None:
    target, draft = small(b"th", b"e", b"cat"), small(b"the", b"ca")
    likely: tuple[Likely, ...] = (((256, 0.75), (258, 0.25)), ((257, 1.0),))
    sample = made(maker(target, draft), Lesson(ASKED, (256, 257), False, likely))
    assert sample.answer.tolist() == [256]
    assert sample.soft == (((256, 0.75), (257, 0.25)),)


def test_likely_tokens_of_the_same_vocabulary_stay_as_they_are() -> None:
    vocabulary = small(b"the ", b"cat")
    end = vocabulary.turn_end
    assert end is not None
    likely: tuple[Likely, ...] = (((256, 0.8), (257, 0.2)), ((257, 1.0),), ((end, 0.5), (10_000, 0.5)))
    sample = made(maker(vocabulary, vocabulary, same=True), Lesson(ASKED, (256, 257), True, likely))
    assert sample.answer.tolist() == [256, 257, end]
    assert sample.soft == (((256, 0.8), (257, 0.2)), ((257, 1.0),), ((end, 1.0),))


def test_the_oldest_turns_give_way_and_then_the_answers_tail() -> None:
    vocabulary = small()
    system = ("system", "S")
    turns = [turn for i in range(3) for turn in (("user", f"question {i} " * 4), ("assistant", f"answer {i}"))]
    given = (system, *turns, ("user", "the last"))
    whole = made(maker(vocabulary, vocabulary, max_tokens=10_000), Lesson(given, tuple(b"x" * 300), True))
    assert whole.n_tokens > 500
    sample = made(maker(vocabulary, vocabulary, max_tokens=320), Lesson(given, tuple(b"x" * 300), True))
    prompt = vocabulary.decode(sample.prompt.tolist())
    assert sample.n_tokens == 320
    assert set(texts(vocabulary, sample.answer.tolist())) == {b"x"}  # its end went with its tail
    assert prompt.startswith(b"system\nS")
    assert b"the last" in prompt
    assert b"question 0" not in prompt
    assert b"question 2" in prompt  # the rest fills less than half


def test_soft_labels_are_cut_with_the_answer() -> None:
    vocabulary = small()
    tokens = tuple(b"abcdefghij" * 20)
    lesson = Lesson(ASKED, tokens, True, tuple(((token, 1.0),) for token in tokens))
    sample = made(maker(vocabulary, vocabulary, max_tokens=150), lesson)
    assert sample.n_tokens == 150
    assert sample.soft == tuple(((int(token), 1.0),) for token in sample.answer)
