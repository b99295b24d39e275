"""Five completions of a text in the same passes against five in turn, as a keyboard or an editor asks for them.

    python benchmarks/completions.py TARGET.gguf [--draft DRAFT.gguf] [--n 5] [--tokens 16] [--repeats 5]

Both sides in one process and in turn, on texts of its own; each text is read once by both. Printed: seconds of each
side, from the text to the last completion, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from edgellm.runtime.bringup.load import load
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.parallel.completions import Completing, InTurn, complete
from edgellm.runtime.parallel.load import load_parallel
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.text.fill_in import gone_on_from

TEXTS = (
    "Dear Ms Weaver,\nthank you for your letter of the 3rd. I am sorry to hear that",
    'def median(values: list[float]) -> float:\n    """The middle of the sorted values."""\n',
    "The three things that I would take to a lighthouse are",
    "SELECT name, count(*) FROM orders JOIN",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    options = EngineOptions(n_ctx=1024, learn="off")
    several = EngineOptions(n_ctx=1024, learn="off", n_parallel=arguments.n)
    rows: list[tuple[float, float]] = []
    with (
        load(arguments.target, arguments.draft, options) as one,
        load_parallel(arguments.target, arguments.draft, several) as together,
    ):
        sides: list[Completing] = [InTurn(one), together]
        for repeat in range(arguments.repeats + 1):
            for text in TEXTS:
                took = [0.0, 0.0]
                for i in (0, 1) if repeat % 2 else (1, 0):
                    tokens = gone_on_from(one.model.vocabulary, text)
                    sampling = Sampling(temperature=0.8, seed=100 * repeat)
                    began = time.perf_counter()
                    complete(sides[i], tokens, arguments.n, sampling=sampling, max_tokens=arguments.tokens)
                    took[i] = time.perf_counter() - began
                if repeat:  # the first warms up
                    rows.append((took[0], took[1]))
    ratios = [turn / together_s for turn, together_s in rows]
    turn, at_once = (statistics.median(side) for side in zip(*rows, strict=True))
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{arguments.n} of {arguments.tokens} tokens: in turn {turn:.2f} s, at once {at_once:.2f} s (medians)")
    print(f"{middle:.2f} x ({low:.2f} to {high:.2f}) over {len(rows)} pairs")


if __name__ == "__main__":
    main()
