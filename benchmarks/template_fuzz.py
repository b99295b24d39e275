"""Mutated chat templates: every one is rendered, or refused in a sentence, in bounded time and memory.

    python benchmarks/template_fuzz.py [TEMPLATE.jinja ...] [--n 500] [--seed 0]

Without files our own templates are mutated. Exit status 1 where one ends otherwise, takes more than `MAX_S` or makes
the process grow by more than `MAX_MIB`.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from edgellm.runtime.text.formats import DOCUMENT, FAMILIES, TRANSCRIPT
from edgellm.runtime.text.template import ChatTemplate, Message, TemplateError
from edgellm.runtime.text.vocabulary import TokenKind, Vocabulary

MAX_S = 10.0
MAX_MIB = 400
CONTROL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "<think>", "</think>", "[INST]", "[/INST]", "<start_of_turn>")
TURNS = (
    Message("system", "Be brief. /no_think"),
    Message("user", "Hello <|im_end|> [INST] < you >?"),
    Message("assistant", "Hi.", (*b"<think>\nHm\n</think>\n\nHi.",), "Hm"),
    Message("user", "  Why?\n"),
)
# What a hostile template tries: loops without end, texts that grow, ways out of the sandbox.
GRAFTS = (
    "{% for a in range(99999) %}",
    "{% endfor %}",
    "{% for a in range(99999) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% set ns = namespace(s='x' * 99) %}",
    "{% set ns.s = ns.s ~ ns.s %}",
    "{% set ns.s = [ns.s, ns.s] %}",
    "{{ ns.s }}",
    "{{ ns.s == ns.s }}",
    "{{ ns.s | tojson }}",
    "{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}",
    "{{ 'a' * 99999999 }}",
    "{{ '%99999999d' % 1 }}",
    "{{ 9 ** 99999 }}",
    "{{ '{:>99999999}'.format(1) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ self }}",
    "{{ caller() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ raise_exception('x') }}",
    "{{ strftime_now('%Y' * 9999) }}",
    "{{ range(99999) | list | string }}",
    "{{ messages | map('upper') | join }}",
    "{{ messages[0].content.replace('', 'x' * 99999) }}",
    "{{ ('\\t' * 99999).expandtabs(99999) }}",
    "{{ 1 / 0 }}",
    "\x00",
    "\ud800",
    "{{ messages | batch(99999999, 1) | list }}",
    "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{{ (1).to_bytes(99999999, 'big') }}",
    "{{ messages | groupby('role') | list }}",
    "{{ messages | sum(start=[]) }}",
    "{{ [1, 2] | random }}",
    "{{ 'x' | urlize | wordwrap(1) | pprint }}",
    "{{ messages | unique | list }}",
    "{{ dict(a=1) | xmlattr }}",
)
NAMES = ("tojson", "trim", "length", "join", "string", "list", "upper", "sort", "center", "indent", "replace", "items")


def mutated(rng: random.Random, sources: list[str]) -> str:
    source = rng.choice(sources)
    for _ in range(rng.randrange(1, 6)):
        pieces = re.split(r"(\{[{%#].*?[}%#]\})", source, flags=re.DOTALL)
        i, j = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        match rng.randrange(9):
            case 0:
                del pieces[i]
            case 1:
                pieces[i], pieces[j] = pieces[j], pieces[i]
            case 2:
                pieces.insert(i, pieces[j] * rng.choice([1, 2, 50]))
            case 3 | 4:
                pieces.insert(i, rng.choice(GRAFTS))
            case 5:
                pieces[i] = re.sub(r"\d+", lambda _: str(rng.choice([-1, 0, 2**31, 10**18])), pieces[i])
            case 6:
                pieces[i] = re.sub(r"\|\s*\w+", lambda _: f"| {rng.choice(NAMES)}", pieces[i])
            case 7:
                at = rng.randrange(len(pieces[i]) + 1)
                pieces[i] = (
                    pieces[i][:at]
                    + rng.choice(["{{", "}}", "{%", "%}", "'", "(", "]", "~", "é", ""])
                    + pieces[i][at + 1 :]
                )
            case _:
                pieces.append(rng.choice(sources))
        source = "".join(pieces)
    return source


class Letters:
    """Bytes as tokens, and some control tokens."""

    n_tokens = 256 + len(CONTROL)
    bos, turn_end, adds_bos = 258, 257, False
    end_tokens = frozenset([257, 259])

    def tokenize(self, text: bytes) -> list[int]:
        return list(text)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def literal(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else CONTROL[token - 256].encode()

    def kinds(self) -> list[TokenKind]:
        return ["normal"] * 256 + ["control"] * len(CONTROL)  # type: ignore[return-value]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", nargs="*", type=Path)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sources = [path.read_text(encoding="utf-8") for path in options.templates]
    sources = sources or [*(source for _, _, source in FAMILIES), TRANSCRIPT, DOCUMENT]
    rng, vocabulary = random.Random(options.seed), Vocabulary(Letters())
    ends, times, n_wrong = Counter[str](), list[float](), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(options.n):
        source = mutated(rng, sources)
        started = time.perf_counter()
        try:
            ChatTemplate(source, vocabulary).render(TURNS)
            ends["rendered"] += 1
        except TemplateError:
            ends["refused"] += 1
        except Exception as error:
            ends["wrong"] += 1
            print(f"template {i}: {error!r}\n{source[:2000]}")
        times.append(time.perf_counter() - started)
        n_wrong += times[-1] > MAX_S
        if times[-1] > MAX_S:
            print(f"template {i} took {times[-1]:.1f} s\n{source[:2000]}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024  # KiB on Linux
    n_wrong += ends["wrong"] + (grown > MAX_MIB)
    mean_s = sum(times) / len(times)
    print(f"seed {options.seed}: {dict(ends)}; {mean_s:.3f} s each, {max(times):.2f} s at most; +{grown} MiB")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
