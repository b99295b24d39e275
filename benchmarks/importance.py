"""What an importance matrix is worth: perplexities of one model in several types, made with and without it.

    python benchmarks/importance.py MODEL.gguf --matrix IMATRIX.gguf

The text is ours (`export/check/fidelity.py` and the code of `export/`): collect the matrix from another one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from edgellm.export.convert import engine_jobs
from edgellm.export.convert.imatrix import NEEDY
from edgellm.export.onnx.onnx_export import verification_text

TYPES = ("Q4_K_M", "Q4_0", "IQ4_XS", "IQ3_S", "Q2_K", "IQ2_S", "IQ1_M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--matrix", type=Path, required=True)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--tokens", type=int, default=4096)
    arguments = parser.parse_args()
    text = verification_text()

    def perplexity(path: Path) -> float:
        return engine_jobs.perplexity(path, text, max_tokens=arguments.tokens)

    print(
        f"| {arguments.model.stem}, {arguments.tokens:,} tokens | MB | without | with |\n|---|---|---|---|", flush=True
    )
    print(
        f"| as it is | {arguments.model.stat().st_size / 1e6:.1f} | {perplexity(arguments.model):.2f} | |", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.gguf"
        for quant in arguments.types.split(","):
            found = []
            for matrix in (None, arguments.matrix):
                if matrix is None and quant in NEEDY:
                    found.append("refused")
                    continue
                engine_jobs.quantise(arguments.model, made, quant, imatrix=matrix, requantise=True)
                found.append(f"{perplexity(made):.2f}")
            print(f"| {quant} | {made.stat().st_size / 1e6:.1f} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
