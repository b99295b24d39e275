"""Make `export/convert/frequent.txt`: the words and signs that a drafter most needs, the commonest first.

    python benchmarks/frequent.py WORDS.txt SOURCES... > export/convert/frequent.txt

WORDS.txt has `word count` a line: English as books have it (symspellpy's frequency_dictionary_en_82_765.txt, made of
Google Books' n-grams, CC BY 3.0, and SCOWL). SOURCES are folders of program text (Python's standard library, C headers,
npm's JavaScript) whose words, signs and indents are counted. Half the weight goes to prose. Only the order is kept.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

N_KEPT = 30_000
WEIGHTS = {".py": 0.35, ".h": 0.05, ".js": 0.05, ".md": 0.05}  # prose has the rest
MAX_BYTES = 12_000_000  # of each kind
MIN_FILES = 8  # that a part is in: names that one program uses often are nobody else's
# What byte-level tokenizers cut text into before they merge; runs of white space are kept as they are.
PARTS = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b| ?[A-Za-z]+| ?\d| ?[^\sA-Za-z\d]+|\s+(?=\s)|\s+")


def prose(path: Path) -> Counter[str]:
    """Each word as it stands in a sentence: mostly behind a space, sometimes capitalised or first."""
    counts: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        word, _, count = line.rpartition(" ")
        n = int(count)
        for form, share in (
            (f" {word}", 0.86), (f" {word.capitalize()}", 0.06), (word.capitalize(), 0.05), (word, 0.03),
        ):  # fmt: skip
            counts[form] += int(n * share)
    return counts


def programs(folders: list[Path], suffix: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    n_files: Counter[str] = Counter()
    n_bytes = 0
    for folder in folders:
        for path in sorted(folder.rglob(f"*{suffix}")):
            if n_bytes < MAX_BYTES and path.is_file() and path.stat().st_size < 500_000:
                text = path.read_text(encoding="utf-8", errors="ignore")
                n_bytes += len(text)
                found = Counter(part for part in PARTS.findall(text) if part.isascii())
                counts.update(found)
                n_files.update(found.keys())
    return Counter({part: count for part, count in counts.items() if n_files[part] >= MIN_FILES})


def main() -> None:
    words, folders = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    total: Counter[str] = Counter()
    for counts, weight in [
        (prose(words), 1 - sum(WEIGHTS.values())),
        *((programs(folders, suffix), weight) for suffix, weight in WEIGHTS.items()),
    ]:
        n = sum(counts.values()) or 1
        for part, count in counts.items():
            total[part] += weight * count / n  # type: ignore[assignment]
    for part, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:N_KEPT]:
        sys.stdout.write(part.encode("unicode_escape").decode() + "\n")


if __name__ == "__main__":
    main()
