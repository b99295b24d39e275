"""Texts that trip tokenizers, by chance and by seed: every script, code, runs of spaces, tokens of the vocabulary."""

from __future__ import annotations

import random

ADDED = ("<|end|>", "<|start|>", "<extra>", "[TOOL]", "<s>", "</s>", "tok_x")
_LATIN = """
the and of to a in that is was he for it with as his on be at by this had not are but from or have an they which
one you were her all she there would their we him been has when who will more no if out so said what up its
about into than them can only other new some could time these two may then do first any my now such like our
Hello World HELLO iPhone CamelCase snake_case kebab-case I'm you're WE'LL they'D it's don't O'Neil naïve café
Straße Größe ÉCOLE Ünïcödé
"""
_OTHERS = """
мир Привет ПРИВЕТ друзья Ελληνικά καλημέρα שלום עולם مرحبا بالعالم नमस्ते दुनिया বাংলা
தமிழ் తెలుగు สวัสดีชาวโลก 你好 世界 今天天气 日本語 カタカナ ひらがな 안녕하세요 세계 ភាសាខ្មែរ မြန်မာ ქართული
հայերեն አማርኛ Tiếng Việt ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ
"""
_WORDS, _OTHER_WORDS = _LATIN.split(), _OTHERS.split()
_CODE = (
    "def f(x):\n    return x[0] if x else None\n", "for (int i = 0; i < n; ++i) { a[i] += b[i]; }\n",
    "#include <stdio.h>\n",
    "SELECT * FROM t WHERE a <> 'b';\n", "{\"key\": [1, 2.5e-3, null]}", "x = lambda y: y**2 // 3\n",
    "<div class=\"a\">&amp;</div>",
    "\t\tif err != nil {\n\t\t\treturn err\n\t\t}\n", "https://example.org/a?b=c&d=%20#e", "a->b::c(d, &e) && !f || ~g",
)  # fmt: skip
_SPACES = (" ", "  ", "   ", "        ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\t ", "\u00a0", "\u3000", "\u2003",
           "\u200b", "\u2028", " " * 37, "\n" * 9)  # fmt: skip
_SIGNS = (
    "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "🤦🏽", "🇩🇪", "e\u0301", "n\u0303", "a\u0323\u0307", "ﬁ", "½", "²", "Ⅷ", "𝔘𝔫𝔦",
    "𐍈",
    "…", "—", "“quoted”", "''''", "```", "!?!?", "€5", "№7", "©", "™", "\u202eabc", "\ufeff", "\u0001", "\x7f",
    "\x1b[0m",
    "<0x0A>", "▁", "▁▁x", "Ġ", "\u0130", "ǅ", "ʰ", "ª", "\u0345",
)  # fmt: skip
_DIGITS = (
    "1",
    "12",
    "123",
    "1234",
    "1,234,567.89",
    "3.14159",
    "٣٤٥",
    "१२३",
    "１２３",
    "2026-11-26",
    "0x1F",
    "1e10",
    "007",
)
_BLOCKS = (
    (0x20, 0x7E), (0xA0, 0x17F), (0x250, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x590, 0x6FF), (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2100, 0x218F), (0x2190, 0x22FF), (0x3000, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFE00, 0xFFEF), (0x10000, 0x1034F), (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0x1, 0x1F),
)  # fmt: skip


def _piece(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.40:
        return rng.choice(_WORDS)
    if kind < 0.52:
        return rng.choice(_OTHER_WORDS)
    if kind < 0.58:
        return rng.choice(_CODE)
    if kind < 0.70:
        return rng.choice(_SPACES)
    if kind < 0.80:
        return rng.choice(_SIGNS)
    if kind < 0.88:
        return rng.choice(_DIGITS)
    if kind < 0.91:
        return rng.choice(ADDED)
    low, high = rng.choice(_BLOCKS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))


def texts(n: int, seed: int = 0) -> list[str]:
    """`n` texts of up to a dozen pieces, most of them with single spaces between."""
    rng = random.Random(seed)
    found = ["", " ", "  ", "\n", "a", " a", "a ", "  a  b  "]
    while len(found) < n:
        glue = rng.choice((" ", " ", "", ""))
        found.append(glue.join(_piece(rng) for _ in range(rng.randint(1, 12))))
    return found[:n]


def corpus(n: int = 4000) -> list[str]:
    """What the vocabularies are trained on."""
    return [text for text in texts(n, seed=99) if not any(token in text for token in ADDED)]
