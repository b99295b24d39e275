"""What a smaller vocabulary costs a drafter in accepted drafts, and what it gains in speed.

    python benchmarks/trimming.py TARGET.gguf DRAFTER.gguf PROMPTS.jsonl --shares 0.25,0.5 --heads as-is,Q4_0

The target answers once; what it said is then played back to each variant of the drafter, which proposes as it would
have. So acceptance needs no pass of the target, and every variant sees the same text. Speed is a pass over one token,
all variants in turn, repeated: compare them within a run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export.convert import engine_jobs, trim
from edgellm.memory.context import ContextSettings
from edgellm.memory.cpu import usable_cores
from edgellm.memory.gguf import read_header
from edgellm.memory.limits import N_UBATCH_DRAFT
from edgellm.runtime.backends.base import Logits
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.bringup.load import load
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.comparison import read_prompts
from edgellm.runtime.conversation import ChatSession
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.drafters.translating import TranslatingDrafter
from edgellm.runtime.sampling import GREEDY
from edgellm.runtime.text.draft_prompt import NEUTRAL
from edgellm.runtime.text.template import DOCUMENT, ChatTemplate, Message
from edgellm.runtime.text.vocabulary_match import match

N_CTX = 2048


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and what the target says to it."""

    question: str
    prompt: list[int]
    answer: list[int]


class Playback:
    """`Backend` of a target whose choices are known; what follows wrong drafts is never looked at."""

    max_outputs, n_ctx, engine_s, can_shift = 64, 1 << 20, 0.0, False

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab, self.tokens, self.text = n_vocab, list[int](), list[int]()

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        self.tokens += tokens
        rows = np.zeros((n_outputs, self.n_vocab), np.float32)
        for row, at in enumerate(range(len(self.tokens) - n_outputs + 1, len(self.tokens) + 1)):
            if at < len(self.text):
                rows[row, self.text[at]] = 1.0
        return rows

    def truncate(self, length: int) -> None:
        del self.tokens[max(0, length) :]

    def forget_oldest(self, n: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def answers(target: Path, prompts: Path, every: int, n_tokens: int, n_threads: int | None) -> list[Answered]:
    found = []
    with load(target, None, EngineOptions(n_ctx=N_CTX, n_threads=n_threads)) as loaded:
        for prompt in read_prompts(prompts)[::every]:
            session = ChatSession(loaded)
            loaded.backend.truncate(0)
            for _ in session.reply(prompt.turns[0], max_tokens=n_tokens):
                pass
            assert session.last is not None
            ids = loaded.template.render(session.messages[:1])
            found.append(Answered(prompt.turns[0], ids, list(session.last.tokens)))
    return found


def acceptance(target: LlamaModel, path: Path, texts: list[Answered], n_draft: int, n_threads: int | None) -> Any:
    """Share of drafts accepted, and tokens a round."""
    model, backend = _loaded(path, n_threads)
    template = ChatTemplate(model.chat_template or DOCUMENT, model.vocabulary)
    turn_end = ChatTemplate(target.chat_template, target.vocabulary).turn_end
    pair = match(target.vocabulary, model.vocabulary)
    proposer = (
        ModelDrafter(backend, pair.different)
        if pair.same
        else TranslatingDrafter(backend, model.vocabulary, target.vocabulary, turn_end)
    )
    n_drafted = n_accepted = n_new = n_rounds = 0
    for text in texts:
        playback = Playback(target.vocabulary.n_tokens)
        drafter = AdaptiveDrafter(playback, None, model=proposer, fixed=n_draft)
        playback.text = text.prompt + text.answer
        own = template.render([Message("system", NEUTRAL), Message("user", text.question)])
        drafter.begin(text.prompt, own_prompt=own)
        for step in generate(playback, drafter, text.prompt, GREEDY, n_draft=n_draft, max_new=len(text.answer)):
            n_drafted, n_accepted = n_drafted + step.n_drafted, n_accepted + step.n_accepted
            n_new, n_rounds = n_new + len(step.tokens), n_rounds + 1
    proposer.close()
    model.close()
    return {"acceptance": n_accepted / n_drafted, "tokens_a_round": n_new / n_rounds, "n_drafted": n_drafted}


def speeds(paths: Sequence[Path], n_rounds: int, n_threads: int | None) -> list[list[float]]:
    """Seconds of a pass over one token behind 64, a list for each file; the files take turns."""
    loaded = [_loaded(path, n_threads) for path in paths]
    seconds: list[list[float]] = [[] for _ in paths]
    for _, backend in loaded:
        backend.forward([100] * 64, n_outputs=0)
    for _ in range(n_rounds):
        for (_, backend), times in zip(loaded, seconds, strict=True):
            for _ in range(8):
                started = time.perf_counter()
                int(backend.forward([100], n_outputs=1)[0].argmax())
                times.append(time.perf_counter() - started)
            backend.truncate(64)
    for model, backend in loaded:
        backend.close()
        model.close()
    return seconds


def _loaded(path: Path, n_threads: int | None) -> tuple[LlamaModel, LlamaBackend]:
    model = LlamaModel(path, ModelOptions(mmap=False))
    settings = ContextSettings(N_CTX, N_UBATCH_DRAFT, n_threads=n_threads or usable_cores())
    backend = LlamaBackend(model, settings)
    backend.warm_up()
    return model, backend


def variants(drafter: Path, folder: Path, shares: Sequence[float], heads: Sequence[str], inputs: bool) -> list[Path]:
    """The drafter, and its trimmed ones with and (if `inputs`) without what they read with, made where missing."""
    quant = read_header(drafter).quantisation
    whole = folder / "whole-Q8_0.gguf"
    if not whole.exists():
        engine_jobs.quantise(drafter, whole, "Q8_0", requantise=True)
    made = [drafter]
    for share in shares:
        place, alone = folder / f"{share:g}", folder / f"{share:g}-alone" / "as-is.gguf"
        plain = place / "as-is.gguf"
        if not plain.exists() or not alone.exists():
            kept = trim.choose(drafter, share)
            for path in (plain, alone):
                path.parent.mkdir(parents=True, exist_ok=True)
                trim.trim_vocabulary(drafter, path, kept)
            trim.write_words(whole, place / "x-words.gguf", kept)
        for head in heads:
            path = place / f"{head}.gguf"
            if not path.exists():
                engine_jobs.quantise(plain, path, quant, head=head, requantise=True)
            made.append(path)
        made += [alone] if inputs else []
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("target", "drafter", "prompts"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--shares", default="0.25", help="of the vocabulary, with commas")
    parser.add_argument("--heads", default="as-is", help="types of the last matrix, with commas")
    parser.add_argument("--trim-input", action="store_true", help="also variants that read with what is kept alone")
    parser.add_argument("--answers", type=Path, help="where the target's answers are kept between runs")
    parser.add_argument("--every", type=int, default=1, help="take one prompt of so many")
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--draft", type=int, default=4, help="tokens a round")
    parser.add_argument("--rounds", type=int, default=0, help="of the speed measurement; 0: none")
    parser.add_argument("--only-speed", action="store_true")
    parser.add_argument("--folder", type=Path, help="where variants are kept between runs")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    texts: list[Answered] = []
    if not asked.only_speed:
        if asked.answers and asked.answers.exists():
            texts = [Answered(**record) for record in json.loads(asked.answers.read_text())]
        else:
            texts = answers(asked.target, asked.prompts, asked.every, asked.tokens, asked.threads)
            if asked.answers:
                asked.answers.write_text(json.dumps([{k: getattr(t, k) for k in Answered.__slots__} for t in texts]))
    with tempfile.TemporaryDirectory() as folder:
        shares, heads = [float(share) for share in asked.shares.split(",") if share], asked.heads.split(",")
        place = asked.folder or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        paths = variants(asked.drafter, place, shares, heads, asked.trim_input)
        times = speeds(paths, asked.rounds, asked.threads) if asked.rounds else [[] for _ in paths]
        target = LlamaModel(asked.target, ModelOptions(vocabulary_only=True))
        for path, seconds in zip(paths, times, strict=True):
            facts: dict[str, Any] = {"variant": f"{path.parent.name}/{path.stem}", "n_bytes": path.stat().st_size}
            if seconds:
                facts["ms"] = round(1e3 * statistics.median(seconds), 3)
                facts["faster"] = round(statistics.median(times[0]) / statistics.median(seconds), 3)
            if texts:
                facts |= acceptance(target, path, texts, asked.draft, asked.threads)
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
