"""What may be asked for, and what is taken where nothing is: the numbers that options, plans and stored plans share.

Imports nothing, so that `--help` can show them.
"""

from __future__ import annotations

N_CTX = 4096  # tokens of context, where none are asked for and memory has room
N_CTX_MIN = 64
N_CTX_MAX = 2**24
N_PARALLEL_MAX = 64  # conversations at once
N_DRAFT_MAX = 64  # tokens drafted a round
N_UBATCH, N_UBATCH_DRAFT = 128, 64  # tokens computed at once; more buys no prompt speed on a CPU
N_UBATCH_MAX = 4096
CONFIG_JSON_MAX_BYTES = 2**20
TOKENIZER_JSON_MAX_BYTES = 256 * 2**20
WORKER_PORT = 50052  # of a worker that is named without one; llama.cpp's own rpc-server has it too
