"""The adapters that the project ships with its catalogue: how they are made.

    python benchmarks/make_adapter.py TARGET DRAFTER --home FOLDER --out FILE.adapter [--tokens 300000] [--minutes 600]

The target writes questions of its own and answers them; the drafter learns the answers, and is judged by an eighth of
them that it never saw. No data set is used. FOLDER keeps the answers: a run that was stopped goes on, and a later one
with more tokens adds to them. FILE is what `edgellm adapt --output` writes, less the ids of the lessons.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="a name of the catalogue, or a file")
    parser.add_argument("drafter")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=300_000, help="of answers")
    parser.add_argument("--minutes", type=float, default=600.0)
    arguments = parser.parse_args()
    os.environ["EDGELLM_HOME"] = str(arguments.home)

    from edgellm.app import adapting
    from edgellm.app.listener import LOG
    from edgellm.cli.adapt import sentence
    from edgellm.memory import files
    from edgellm.memory.draft_adapter import read_draft_adapter

    job = adapting.prepare(
        arguments.target,
        arguments.drafter,
        minutes=arguments.minutes,
        n_tokens=arguments.tokens,
        output=arguments.out,
        listener=LOG,
    )
    outcome = adapting.adapt(job, LOG, watch=lambda progress: print(sentence(progress), flush=True))
    print(outcome.why)
    adapter = read_draft_adapter(arguments.out)
    record = {key: value for key, value in adapter.record.items() if key != "lessons"}
    files.write(arguments.out, replace(adapter, record=record).to_bytes())
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
