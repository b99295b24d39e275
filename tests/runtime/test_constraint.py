"""Answers held to a constraint: they are what the masked target writes, whatever drafts, and end where they may."""

from __future__ import annotations

import gc
import itertools
import json
import math
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from fakes import NonsenseDrafter, PieceTokenizer, TableBackend, alone, byte_vocabulary, random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.runtime.backends.base import keep_common_prefix
from edgellm.runtime.constraint import Constraint, ConstraintState
from edgellm.runtime.decode import RoundResult, generate
from edgellm.runtime.drafters.base import FORCED, MODEL, Drafter, NoDrafter
from edgellm.runtime.drafters.constrained import ConstrainedDrafter
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.learning.costs import Costs, assumed
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.request import BadRequest
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text import guidance
from edgellm.runtime.text.behind_thought import BehindThought
from edgellm.runtime.text.guidance import ConstraintFailed, schema_grammar, text_grammar
from edgellm.runtime.text.markers import Markers
from edgellm.runtime.text.vocabulary import Vocabulary

E_ACUTE = "é".encode()
PIECES = [b"{", b"}", b'"', b"a", b"b", b"ab", b": ", b", ", b'": ', b' "', b'{"', b'"a": ', b"1", b"2", b"[", b"]"]
PIECES += [b"true", b'{"a": "', E_ACUTE[:1], E_ACUTE[1:], b" ", b":", b",", b"<end>", b"<eot>", b"\xff"]
N_VOCAB, END, EOT = len(PIECES), PIECES.index(b"<end>"), PIECES.index(b"<eot>")
VOCABULARY = Vocabulary(PieceTokenizer(PIECES, {"<end>": END, "<eot>": EOT}, ends=["<end>"]))
PROMPT = [3, 4, 5]
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 3, "pattern": "^[ab\u00e9]*$"},
        "b": {"type": "array", "items": {"enum": [1, 2, 12, True]}, "maxItems": 3},
        "ab": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "integer", "minimum": 1, "maximum": 22, "multipleOf": 1}]},
    },
    "required": ["a", "ab"],
    "additionalProperties": False,
    "$defs": {
        "leaf": {
            "type": "object",
            "properties": {"b": {"enum": ["a", "b"]}},
            "required": ["b"],
            "additionalProperties": False,
        }
    },
}
HELD = schema_grammar(SCHEMA).of(VOCABULARY)
BYTES = byte_vocabulary(control=["<end>"], ends=["<end>"])
BYTES_HELD = schema_grammar(SCHEMA).of(BYTES)


def costs() -> Costs:
    return Costs(assumed(1.0, 0.05), assumed(0.1, 0.05))


def adaptive(seed: int, **options: Any) -> AdaptiveDrafter:
    return AdaptiveDrafter(TableBackend(random_table(N_VOCAB, seed)), costs(), conversation=NgramIndex(256), **options)


def model(seed: int) -> ModelDrafter:
    return ModelDrafter(TableBackend(random_table(N_VOCAB, seed)))


DRAFTERS: dict[str, Callable[[int], Drafter]] = {
    "none": lambda seed: NoDrafter(),
    "itself": lambda seed: alone(model(seed)),
    "controller": lambda seed: adaptive(seed, model=model(seed), store=NgramIndex(300)),
    "copy, fixed": lambda seed: adaptive(seed, fixed=6),
    "given nonsense": lambda seed: NonsenseDrafter(N_VOCAB, seed=seed),
    "drawn nonsense": lambda seed: NonsenseDrafter(N_VOCAB, seed=seed, probs=True),
}


def run(
    backend: TableBackend,
    drafter: Drafter,
    state: ConstraintState,
    sampling: Sampling = GREEDY,
    *,
    n_draft: int = 5,
    max_new: int = 80,
    imitated: Sampling = GREEDY,
) -> list[RoundResult]:
    keep_common_prefix(backend, PROMPT, len(PROMPT) - 1)
    drafter.begin(PROMPT, sampling=imitated)  # with a seed, drafts are given
    ends = VOCABULARY.end_tokens
    return list(
        generate(backend, drafter, PROMPT, sampling, n_draft=n_draft, max_new=max_new, stop=ends, constraint=state)
    )


def plain(table: np.ndarray[Any, Any], sampling: Sampling = GREEDY, held: Constraint = HELD) -> list[int]:
    """The masked target, one token at a time."""
    return tokens_of(run(TableBackend(table), NoDrafter(), held.start(), sampling, n_draft=0))


def drafted(
    table: np.ndarray[Any, Any], inner: Drafter, sampling: Sampling = GREEDY, held: Constraint = HELD
) -> list[RoundResult]:
    state = held.start()
    return run(TableBackend(table), ConstrainedDrafter(inner, state, VOCABULARY), state, sampling)


def tokens_of(steps: Sequence[RoundResult]) -> list[int]:
    return [token for step in steps for token in step.tokens]


def text_of(tokens: Sequence[int]) -> str:
    assert tokens[-1] == END
    return VOCABULARY.decode(tokens[:-1]).decode()


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_held_answer_is_the_same_with_every_drafter_and_matches(name: str) -> None:
    for seed in range(12):
        table = random_table(N_VOCAB, seed)
        for sampling in (GREEDY, Sampling(repeat_penalty=1.3), Sampling(temperature=1.0, seed=seed)):
            wanted = plain(table, sampling)
            jsonschema.validate(json.loads(text_of(wanted)), SCHEMA)
            if name == "drawn nonsense" and not sampling.greedy:
                continue  # takes more draws, so another answer of the same distribution
            steps = drafted(table, DRAFTERS[name](seed), sampling)
            assert tokens_of(steps) == wanted
            assert all(step.n_accepted <= step.n_drafted <= 5 for step in steps)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(DRAFTERS)), n_most=st.integers(0, 30))
def test_an_answer_that_is_cut_off_is_the_beginning_of_the_whole(seed: int, name: str, n_most: int) -> None:
    table, state = random_table(N_VOCAB, seed), HELD.start()
    backend = TableBackend(table)
    drafter = ConstrainedDrafter(DRAFTERS[name](seed), state, VOCABULARY)
    cut = tokens_of(run(backend, drafter, state, max_new=n_most))
    wanted = plain(table)
    if cut[-1:] == [END]:  # one more where nothing but the end could follow, which needs no pass
        assert cut == wanted
        assert len(cut) <= n_most + 1
    else:
        assert cut == wanted[:n_most]
        assert backend.tokens == [*PROMPT, *cut][:-1]


def test_forced_text_takes_fewer_passes_and_is_told_apart() -> None:
    table = random_table(N_VOCAB, 1)
    alone_steps, steps = plain(table), drafted(table, NoDrafter())
    assert len(steps) < len(alone_steps) - 1
    assert {source for step in steps for source in step.sources} == {FORCED}


@pytest.mark.parametrize("options", [{}, {"fixed": 5}], ids=["as it pays", "fixed"])
def test_a_drafter_goes_on_behind_forced_text(options: dict[str, Any]) -> None:
    """The target itself drafts, of which not every token is legal."""
    steps = [
        step
        for seed in range(12)
        for step in drafted(random_table(N_VOCAB, seed), adaptive(seed, model=model(seed), **options))
    ]
    whole = [list(dict.fromkeys(step.sources)) for step in steps if step.n_drafted == step.n_accepted]
    assert [FORCED, MODEL] in [sources[:2] for sources in whole]


def test_what_nobody_chooses_needs_no_pass() -> None:
    """Behind the last brace only an end may come."""
    backend = TableBackend(random_table(N_VOCAB, 3))
    steps = run(backend, NoDrafter(), HELD.start(), n_draft=0)
    assert backend.n_passes == len(tokens_of(steps)) - 1 + 1  # the prompt's, and none for the end


@pytest.mark.parametrize("begins", ["", "true"], ids=["at once", "behind forced text"])
def test_a_dropped_draw_does_not_bend_the_distribution(begins: str) -> None:
    """A drafter that draws what is illegal most of the time, against the masked target's own probabilities."""
    table, n = random_table(N_VOCAB, 5, scale=1.0), 3_000
    held = text_grammar(f"/{begins}(a|b|ab|1|2){{3}}/").of(VOCABULARY)
    forced = VOCABULARY.encode(begins.encode())
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    other = TableBackend(random_table(N_VOCAB, 6, scale=1.0))

    def begun(seed: int) -> tuple[int, ...]:
        state, drawn = held.start(), Sampling(**sampling, seed=seed)
        inner: Drafter = NonsenseDrafter(N_VOCAB, probs=True, seed=seed)
        if forced:
            inner = AdaptiveDrafter(other, costs(), model=ModelDrafter(other), fixed=4)
        drafter, most = ConstrainedDrafter(inner, state, VOCABULARY), len(forced) + 2
        steps = run(TableBackend(table), drafter, state, drawn, max_new=most, imitated=drawn)
        return tuple(tokens_of(steps)[len(forced) : most])

    def p(before: int, last: int, mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        weights = np.where(mask, np.exp(table[before, last].astype(float)), 0.0)
        return weights / weights.sum()

    before = [*PROMPT, *forced]
    first = p(before[-2], before[-1], held.start().allowed(forced))
    observed, statistic, degrees = Counter(begun(seed) for seed in range(n)), 0.0, -1
    for token in np.flatnonzero(first):
        second = p(before[-1], int(token), held.start().allowed([*forced, int(token)]))
        for following in np.flatnonzero(second):
            expected = n * first[token] * second[following]
            if expected >= 5:
                statistic += (observed[int(token), int(following)] - expected) ** 2 / expected
                degrees += 1
    assert degrees >= 15
    part = 2 / (9 * degrees)
    assert ((statistic / degrees) ** (1 / 3) - (1 - part)) / math.sqrt(part) < 3.0


@settings(max_examples=80)
@given(data=st.data())
def test_a_state_says_the_same_by_every_way(data: st.DataObject) -> None:
    """Ahead and back, or settled; token by token, or at once."""
    state, settled = HELD.start(), []
    for _ in range(data.draw(st.integers(0, 12))):
        fresh = HELD.start()
        fresh.advance(settled)
        assert (state.allowed() == fresh.allowed()).all()
        choices = [int(i) for i in np.flatnonzero(state.allowed())]
        ahead = [data.draw(st.sampled_from(choices))]
        if ahead == [END]:
            break
        more = data.draw(st.lists(st.integers(0, N_VOCAB - 1), max_size=4))
        n = state.n_legal([*ahead, *more])
        assert n >= _n_in_masks(settled, [*ahead, *more])  # forced text may be spelled in other tokens
        assert bytes_allow(settled, [*ahead, *more], n)
        state.allowed([*ahead, *more][:n])
        after = VOCABULARY.encode(state.forced(ahead))
        assert state.n_legal([*ahead, *after]) == len(ahead) + len(after)
        settled += ahead
        state.advance(ahead)


def bytes_allow(settled: Sequence[int], tokens: Sequence[int], n: int) -> bool:
    """Whether the first `n` and no more may follow, byte by byte."""
    ends = BYTES.end_tokens
    spelled = [[min(ends)] if token == END else list(VOCABULARY.piece(token)) for token in tokens]
    state = BYTES_HELD.start()
    state.advance(list(VOCABULARY.decode(settled)))
    n_bytes = state.n_legal([byte for piece in spelled for byte in piece])
    lengths = list(itertools.accumulate(map(len, spelled), initial=0))
    return lengths[n] <= n_bytes < (lengths[n + 1] if n < len(tokens) and spelled[n] else math.inf)


def _n_in_masks(settled: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of them the masks hold, one after the other."""
    state = HELD.start()
    state.advance(settled)
    for n, token in enumerate(tokens):
        if not state.allowed()[token]:
            return n
        if token == END:
            return n + 1
        state.advance([token])
    return len(tokens)


def test_an_end_comes_only_where_the_text_is_whole_and_control_tokens_never() -> None:
    held = text_grammar("/a(b|ab)*/").of(VOCABULARY)
    state = held.start()
    assert np.flatnonzero(state.allowed()).tolist() == [PIECES.index(b"a"), PIECES.index(b"ab")]
    state.advance([PIECES.index(b"a")])
    assert state.allowed()[END]
    assert not state.allowed()[EOT]
    assert state.ending == []  # more may follow
    assert state.n_legal([PIECES.index(b"b"), END, END]) == 2
    state.advance([END])
    assert np.flatnonzero(state.allowed()).tolist() == [END]


def test_no_grammar_reaches_control_tokens_or_bytes_that_are_no_text() -> None:
    for grammar in ("start: <end>", "start: <[24]>", 'start: "a" <eot>'):
        with pytest.raises(BadRequest, match="control token"):
            text_grammar(grammar)
    spelled = text_grammar('start: "<end>"')  # a text that spells one needs letters that are not there
    with pytest.raises(BadRequest):
        spelled.of(VOCABULARY)
    anything = text_grammar("start: /(?s:.)*/").of(VOCABULARY).start().allowed()
    assert anything[END]
    assert not anything[[EOT, PIECES.index(b"\xff")]].any()


def test_user_defined_tokens_that_look_like_control_tokens_are_no_text() -> None:
    pieces = [b"a", b"<tool_call>", b"<", b"  ", b"<end>"]
    kinds = ["normal", "user", "normal", "user", "normal"]
    vocabulary = Vocabulary(PieceTokenizer(pieces, {"<end>": 4}, kinds=kinds, ends=["<end>"]))  # type: ignore[arg-type]
    allowed = text_grammar("start: /.*/").of(vocabulary).start().allowed()
    assert allowed.tolist() == [True, False, True, True, True]


def test_a_model_that_lacks_the_bytes_says_so_instead_of_writing_something_else() -> None:
    held = text_grammar("/a(q|é)/").of(VOCABULARY).start()
    held.advance([PIECES.index(b"a")])
    assert np.flatnonzero(held.allowed()).tolist() == [PIECES.index(E_ACUTE[:1])]
    stuck = text_grammar("/[ab]q/").of(VOCABULARY).start()
    with pytest.raises(ConstraintFailed):
        stuck.allowed([PIECES.index(b"a")])
    with pytest.raises(ConstraintFailed):
        stuck.advance([PIECES.index(b"1")])


def test_a_vocabulary_is_read_once_and_let_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Vocabulary] = []
    whole = guidance._read_tokens
    monkeypatch.setattr(guidance, "_read_tokens", lambda it: (read.append(it), whole(it))[1])
    vocabulary = byte_vocabulary(control=["<end>"], ends=["<end>"])
    grammar = text_grammar("/a+/")
    threads = [threading.Thread(target=grammar.of, args=(vocabulary,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 1
    n_known = len(guidance._known)
    del vocabulary, threads, thread
    read.clear()
    gc.collect()
    assert len(guidance._known) == n_known - 1


def test_a_missing_library_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for ask in (lambda: schema_grammar({}), lambda: text_grammar("/a/")):
        with pytest.raises(BadRequest, match=re.escape("pip install 'edgellm[json]'")):
            ask()


GBNF = r"""
root   ::= object
value  ::= object | array | string | ("true" | "false" | "null")
object ::= "{" ( string ":" value ("," string ":" value)* )? "}"
array  ::= "[" ( value ("," value)* )? "]"
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" ["\\bfnrt] )* "\""
"""


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ("/[0-9]{3}-(x|y)/", ["123-x"], ["12-x", "123-"]),
        ('start: "yes" | "no" N\nN: /[0-9]+/', ["yes", "no12"], ["no", "yes1"]),
        (GBNF, ['{"a":["b",{}]}', r'{"\"":null}'], ["{", '{"a"}', "[]", '{"a\n":true}']),
        ('root ::= "a."{2,3} [.-]', ["a.a..", "a.a.a.-"], ["a.", "axa.."]),
    ],
)
def test_grammars_of_all_forms_take_what_they_mean(grammar: str, good: list[str], bad: list[str]) -> None:
    vocabulary = byte_vocabulary(control=["<end>"], ends=["<end>"])
    held = text_grammar(grammar).of(vocabulary)
    for text, is_good in [*((text, True) for text in good), *((text, False) for text in bad)]:
        tokens = [*text.encode(), min(vocabulary.end_tokens)]
        assert (held.start().n_legal(tokens) == len(tokens)) is is_good, text


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("/(/", "unclosed"),
        ("/(?=a)b/", "look-around"),
        ("start: foo", "foo"),
        ("nothing", "Lark|expected|grammar"),
        ('root ::= "\\u00e9"', "u, which is not read"),
        ("root ::= .", "., which is not read"),
        ("root ::= <[10]>", "<token>"),
        ("root ::= missing", "missing"),
        ("root ::= " + "(" * 5000, "not read"),
        ('start: %json {"type": "string"}', "%json"),
        ('start: a\na[temperature=2]: "x"', "temperature"),
        ('start: "' + "a" * 70_000 + '"', "characters long"),
        ("start: a\na: b a\nb: /x/", "without an end|no text|held"),
        ('start: "' + "a" * 200 + '"{1000}', "without an end"),
    ],
)
def test_grammars_that_cannot_be_held_to_are_refused_with_a_reason(grammar: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why) as refusal:
        text_grammar(grammar).of(VOCABULARY if "without" not in why else byte_vocabulary(control=["<e>"], ends=["<e>"]))
    assert "\n" not in str(refusal.value)


# A thought, then an answer.
THINKING = [b"<think>", b"</think>", b"\n", b"\n\n", b"a", b"b", b"ab", b"<end>", b"<", b"think", b">"]
T_OPEN, T_CLOSE, T_LINE, T_LINES, T_A, T_B, T_AB, T_END = range(8)
THINKER = Vocabulary(PieceTokenizer(THINKING, {"<think>": 0, "</think>": 1, "<end>": 7}, ends=["<end>"]))
MARKERS = Markers("<think>", "</think>", "\n</think>\n\n")


def behind(*, in_thought: bool, markers: Markers = MARKERS, grammar: str = "/b+a/") -> BehindThought:
    return BehindThought(text_grammar(grammar).of(THINKER).start(), markers, THINKER, in_thought=in_thought)


def allowed(state: ConstraintState, ahead: Sequence[int] = ()) -> set[int]:
    return {int(i) for i in np.flatnonzero(state.allowed(ahead))}


def test_a_thought_is_free_but_for_its_end_and_the_answer_is_held() -> None:
    state, all_but_end = behind(in_thought=True), set(range(len(THINKING))) - {T_END}
    assert allowed(state) == all_but_end
    assert state.forced() == b""
    assert state.n_legal([T_A, T_END]) == 1
    draft = [T_A, T_CLOSE, T_LINES, T_B, T_B, T_B, T_A, T_END]
    assert state.n_legal(draft) == len(draft)
    assert state.n_legal([T_A, T_CLOSE, T_A]) == 2
    assert allowed(state, draft[:1]) == all_but_end
    assert allowed(state, draft[:2]) == {T_LINE, T_LINES, T_B}
    assert allowed(state, draft[:3]) == {T_B}
    assert allowed(state, draft[:4]) == {T_A, T_B}
    state.advance(draft[:2])
    assert allowed(state) == {T_LINE, T_LINES, T_B}  # what was only ahead counts no more
    state.advance([T_LINE, T_LINE, T_B])  # as the end of a budget writes them
    assert allowed(state) == {T_A, T_B}
    state.advance([T_A])
    assert state.ending == [T_END]


def test_a_model_that_may_think_begins_with_its_marker_or_with_the_answer() -> None:
    state = behind(in_thought=False)
    assert allowed(state) == {T_OPEN, T_B}
    assert state.n_legal([T_OPEN, T_A, T_CLOSE, T_B]) == 4
    assert allowed(state, [T_B]) == {T_A, T_B}  # no thought any more
    state.advance([T_OPEN, T_A])
    assert T_END not in allowed(state)
    assert allowed(state, [T_CLOSE]) == {T_LINE, T_LINES, T_B}


def test_parts_that_say_what_they_are_are_written_whole() -> None:
    """As gpt-oss does: the channel of the thought, then the answer's."""
    pieces = [
        b"<|channel|>",
        b"final",
        b"analysis",
        b"<|message|>",
        b"<|end|>",
        b"<|start|>",
        b"assistant",
        b"b",
        b"<e>",
    ]
    control = {
        text: pieces.index(text.encode()) for text in ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<e>")
    }
    vocabulary = Vocabulary(PieceTokenizer(pieces, control, ends=["<e>"]))
    markers = Markers(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "",
        ("<|channel|>final<|message|>",),
        ("<|start|>assistant",),
    )
    state = BehindThought(text_grammar("/bb/").of(vocabulary).start(), markers, vocabulary, in_thought=False)
    assert allowed(state) == {0, 7}
    assert allowed(state, [0]) == {1, 2}
    assert allowed(state, [0, 1]) == {3}
    assert allowed(state, [0, 1, 3]) == {7}
    thought = [0, 2, 3, 7, 4, 5, 6, 0, 1, 3]
    for n in range(3, len(thought)):
        assert allowed(state, thought[:n]) == set(range(8)), n
    assert allowed(state, thought) == {7}
    assert state.n_legal([*thought, 7, 7, 8]) == 13
    assert state.n_legal([*thought, 7, 8]) == 11


def test_a_state_behind_a_thought_goes_back_as_well_as_on() -> None:
    for sequence in itertools.product([T_CLOSE, T_LINE, T_B], repeat=3):
        state = behind(in_thought=True)
        n = state.n_legal(sequence)
        state.allowed(sequence[:n])
        fresh = behind(in_thought=True)
        fresh.advance(sequence[:1])
        state.advance(sequence[:1])
        assert allowed(state) == allowed(fresh)
