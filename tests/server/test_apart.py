"""Nobody sees another's text: clients with secrets beside each other get what each would get alone."""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.bringup.planning import EngineOptions

SECRETS = ("brk4107", "wzp2853", "gnf6391", "tcv9046")
SYSTEM = "You keep a secret word for the user and answer briefly. The secret word is {}. Repeat it when asked."
QUESTIONS = ("What is the secret word?", "Write the secret word three times.")


@pytest.fixture(scope="module")
def server(smollm2_path: Path) -> Iterator[edgellm.Server]:
    options = EngineOptions(n_ctx=512, learn="fresh")
    with edgellm.Server(smollm2_path, smollm2_path, options, n_parallel=3) as started:
        yield started


def ask(server: edgellm.Server, secret: str, question: str, n: int, leave_s: float | None = None) -> str:
    """The text of a stream; what came of it where the client leaves. Every second one is sampled with a seed."""
    messages = [{"role": "system", "content": SYSTEM.format(secret)}, {"role": "user", "content": question}]
    sampling: dict[str, Any] = {"temperature": 0.8, "seed": n} if n % 2 else {"temperature": 0}
    body = {"messages": messages, "stream": True, "max_tokens": 24, **sampling}
    text, ends = "", None if leave_s is None else time.monotonic() + leave_s
    with urllib.request.urlopen(f"{server.url}/chat/completions", json.dumps(body).encode(), timeout=60) as response:
        for line in response:
            if ends is not None and time.monotonic() > ends:
                break
            if line.startswith(b"data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    return text


def test_answers_with_secrets_beside_others_that_are_cancelled_are_those_alone(server: edgellm.Server) -> None:
    if not kernels().active:
        pytest.skip("the engine's own kernels promise nothing of the kind")
    asked = [(secret, question, n) for secret in SECRETS for n, question in enumerate(QUESTIONS)]
    alone = {one: ask(server, *one) for one in asked}
    assert len(set(alone.values())) > len(SECRETS)
    assert any(secret in text for (secret, _, _), text in alone.items())
    rng = random.Random(0)
    drawn = [(one, rng.random() * 0.5 if i % 3 == 2 else None) for i, one in enumerate(rng.sample(asked * 3, 24))]
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda one: ask(server, *one[0], leave_s=one[1]), drawn))
    for ((secret, question, n), leave_s), text in zip(drawn, found, strict=True):
        whole = alone[secret, question, n]
        assert text == (whole if leave_s is None else whole[: len(text)])
        assert not [other for other in SECRETS if other != secret and other in text]
