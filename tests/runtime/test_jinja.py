"""The sandbox of templates: hostile ones end in a sentence after bounded work, honest ones as under transformers."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from edgellm.runtime.text import jinja, steps
from edgellm.runtime.text.jinja import Program
from edgellm.runtime.text.steps import TemplateError

GROWING = "{%% set ns = namespace(s='x') %%}{%% for i in range(99) %%}%s{%% endfor %%}"
HOSTILE = {
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge range": "{% for a in range(10000000000) %}{% endfor %}",
    "a huge number": "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "a huge product": "{{ 'a' * 10000000 * 10000000 }}",
    "a huge format": "{{ '%999999999d' % 1 }}",
    "a huge output": "{% for a in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a way to classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a way to globals": "{{ raise_exception.__globals__.x }}",
    "a way to modules": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "a file": "{% include '/etc/passwd' %}",
    "bad syntax": "{% if %}",
    "an unknown tag": "{% frobnicate %}",
    "an unknown filter": "{{ messages | frobnicate }}",
    "deep nesting": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "a huge source": "x" * 600_000,
    "division by zero": "{{ 1 / 0 }}",
    "a wrong type": "{{ messages + 1 }}",
    "a fan of macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a fan of loops": "{% for a in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "text joined to itself": GROWING % "{% set ns.s = ns.s ~ ns.s %}",
    "text added to itself": GROWING % "{% set ns.s = ns.s + ns.s %}",
    "text written twice": GROWING % "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}",
    "lists of lists, written": GROWING % "{% set ns.s = [ns.s, ns.s] %}" + "{{ ns.s }}",
    "lists of lists, compared": GROWING % "{% set ns.s = [ns.s, ns.s] %}" + "{{ ns.s == ns.s }}",
    "lists of lists, as JSON": GROWING % "{% set ns.s = [ns.s, ns.s] %}" + "{{ ns.s | tojson }}",
    "lists of lists, in a format": GROWING % "{% set ns.s = [ns.s, ns.s] %}" + "{{ '%s' | format(ns.s) }}",
    "many slices kept": "{% set ns = namespace(l=[]) %}{% set s = 'x' * 1000000 %}{% for i in range(99999) %}"
    "{% set ns.l = ns.l + [s[1:]] %}{% endfor %}",
    "a search in every step": "{% set l = [1] * 100000 %}{% for i in range(99999) %}{% if 2 in l %}{% endif %}"
    "{% endfor %}",
    "a wide field": "{{ '{:>999999999}'.format(1) }}",
    "a field as wide as a value": "{{ '{:>{}}'.format(1, 99999999) }}",
    "a field as wide as a value, the old way": "{{ '%*d' % (99999999, 1) }}",
    "many fields": "{{ ('{0}' * 20000).format('x' * 100000) }}",
    "a wide line": "{{ 'a' | center(999999999) }}",
    "a wide line of a method": "{{ 'a'.ljust(999999999) }}",
    "many zeros": "{{ 'a'.zfill(999999999) }}",
    "many bytes": "{{ (1).to_bytes(999999999, 'big') }}",
    "wide tabs": "{{ ('\t' * 100000).expandtabs(99999) }}",
    "a deep indent": "{{ {'a': 1} | tojson(indent=999999999) }}",
    "a large batch": "{{ [1] | batch(999999999, 'x') | list }}",
    "a replacement between all letters": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "a replacement of all letters": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "a translation of all letters": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "a long separator": "{{ range(99999) | join('x' * 100000) }}",
    "a long separator of a method": "{{ ('x' * 100000).join(['a'] * 100000) }}",
    "many long items": "{{ (['x' * 100000] * 100000) | join }}",
    "many wide items": "{{ range(99999) | map('center', 99999) | join }}",
    "a long date": "{{ strftime_now('%Y' * 100000) }}",
    "much sorting": "{{ range(99999) | sort }}" * 100,
    "many parts": "{{ a }}" * 25_000,
    "many branches": "{% if a %}" + "{% elif a %}" * 9000 + "{% endif %}",
    "a long chain": "{{ a" + " | trim" * 9000 + " }}",
}


def write(source: str, **variables: object) -> str:
    return Program(source).run({"messages": [{"role": "user", "content": "Hi"}], **variables}, 2)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_a_sentence(name: str) -> None:
    with pytest.raises(TemplateError, match="chat template"):
        write(HOSTILE[name])


def test_what_grows_is_refused_before_it_is_made() -> None:
    tracemalloc.start()
    try:
        for name, source in HOSTILE.items():
            if any(word in name for word in ("wide", "letters", "items", "slices", "bytes", "text", "batch")):
                with pytest.raises(TemplateError):
                    write(source)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_the_same_work_is_the_same_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says."""
    monkeypatch.setattr(steps, "MAX_STEPS", 400)
    monkeypatch.setattr(jinja, "STEPS_A_PAIR", 0)
    program = Program("{% for i in range(n) %}{{ 'x'.upper() }}{% endfor %}")

    def succeeds(n: int) -> bool:
        try:
            return bool(program.run({"n": n}, 0))
        except TemplateError:
            return False

    most = max(filter(succeeds, range(1, 300)))
    assert 20 < most < 299
    assert all(succeeds(n) == (n <= most) for n in range(1, 300))


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("a{% generation %}{{ 'b' }}{% endgeneration %}c", "abc"),
        ("{{ x | tojson }}", json.dumps({"b": "é<&'", "a": [1, None, True]}, ensure_ascii=False)),
        ("{{ x | tojson(indent=2, sort_keys=true) }}", None),
        ("{{ x | tojson(separators=(',', ':'), ensure_ascii=true) }}", None),
        ("{{ 'a %s b %05.1f' % ('c', 2) }}", "a c b 002.0"),
        ("{{ '%s: %d' | format('a', 3) }}{{ '{:>4}|{}'.format(1, 'b') }}", "a: 3   1|b"),
        ("{{ '\\n a \\n'.strip('\\n') }}{{ 'b\\n'.rstrip('\\n') }}", " a b"),
        (
            "{% for i in [0, 1, 2, 3] %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}"
            "{% endfor %}",
            "02",
        ),
        (
            "{% for i in [1, 2] %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{% endfor %}",
            "1False22True21",
        ),
        ("{% for i in x.a | map('string') %}{{ loop.last }}{{ i }}{% endfor %}", "False1FalseNoneTrueTrue"),
        ("{% for t in [[1, [2]], 3] recursive %}{{ loop(t) if t is iterable else t }}{% endfor %}", "123"),
        ("{{ nothing is defined }}{{ nothing | default('d') }}{{ nothing }}{% if nothing == 1 %}{% endif %}", "Falsed"),
        (
            "{{ [1, 2, 3][1:] }}{{ 'abc'[::-1] }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ 'a' * 3 }}{{ [1] + [2] }}",
            "[2, 3]cba10243aaa[1, 2]",
        ),
        ("{{ 'a' ~ 1 ~ none }}{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "a1None1"),
        (
            "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}"
            "{% call m(3) %}c{% endcall %}",
            "1232c",
        ),
        (
            "{{ dict(a=1).items() | list }}{{ x.items() | length }}{{ [3, 1] | sort }}{{ 'b' in 'abc' }}",
            "[('a', 1)]2[1, 3]True",
        ),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
    ],
)
def test_an_honest_template_is_written_as_elsewhere(source: str, written: str | None) -> None:
    x = {"b": "é<&'", "a": [1, None, True]}
    if written is None:
        options = {"indent": 2, "sort_keys": True} if "indent" in source else {"separators": (",", ":")}
        written = json.dumps(x, ensure_ascii="separators" in source, **options)  # type: ignore[arg-type]
    assert write(source, x=x) == written


def test_a_long_conversation_is_far_from_the_limit() -> None:
    source = (
        "{% set ns = namespace(last=0) %}{% for m in messages[::-1] %}{% set at = messages | length %}"
        "{% if m.role == 'user' and not "
        "(m.content.startswith('<x>') and m.content.endswith('</x>')) %}{% set ns.last = loop.index0 %}{% endif %}"
        "{% endfor %}{% for m in messages %}{% set c = m.content.split('</think>')[-1].lstrip('\n') %}"
        "{{ '<' + m.role + '>' + c | trim + '\n' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": f"{i} word"} for i in range(1000)]
    written = Program(source).run({"messages": messages}, sum(len(m["content"]) for m in messages), 1000)
    assert written.count("<user>") == 1000
