"""A target talks on a GPU: it writes questions of its own and answers them, hundreds at once.

    python benchmarks/gpu/talk.py TARGET.gguf --out FOLDER --seconds 240 [--known FILE.jsonl.gz] [--seed 41]

As `edgellm adapt` does on a device (`runtime/distillation/own_questions.py`), with the same weights in half precision.
Answers are greedy. FOLDER gets answers-1.jsonl.gz and so on, of a million tokens each.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from decoder import Decoder
from torch import Tensor

from edgellm.memory.gguf import read_header
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.distillation.lesson import Lesson
from edgellm.runtime.distillation.own_questions import OwnQuestions
from edgellm.runtime.distillation.questions import Question
from edgellm.runtime.distillation.talking import N_DRAWN, N_UNFINISHED_LEAST, whole_characters, without_thought
from edgellm.runtime.text.template import ChatTemplate, Message, Role, TemplateError, usable

BLOCK = 8  # steps between two looks at what was said
NEAR = 3.0  # of the largest logit: what a text that is drawn may go on with
FILE_TOKENS = 1_000_000
READ_AT_ONCE = 16_384  # tokens of prompts


@dataclass(slots=True)
class Text:
    question: Question
    prompt: list[int]
    n_most: int
    tokens: list[int] = field(default_factory=list)


class Sequences:
    """`n` texts of `n_ctx` tokens at most, each a step further with every call."""

    def __init__(self, model: Decoder, n: int, n_ctx: int) -> None:
        shape, self.model, self.n, self.n_ctx = model.shape, model, n, n_ctx
        device = model.device
        self.cache = [
            torch.zeros(2, n, shape.n_kv, n_ctx, shape.head_dim, device=device, dtype=model.dtype)
            for _ in range(shape.n_layers)
        ]
        self.last = torch.zeros(n, dtype=torch.long, device=device)
        self.position = torch.zeros(n, dtype=torch.long, device=device)
        self.drawn = torch.zeros(n, device=device)
        self.said = torch.zeros(BLOCK, n, dtype=torch.long, device=device)
        self.each, self.places = torch.arange(n, device=device), torch.arange(n_ctx, device=device)
        self.is_sound = torch.ones((), dtype=torch.bool, device=device)
        self.graph: Any = None

    def start(self, slots: list[int], prompts: list[list[int]], drawn: list[bool]) -> None:
        """Read prompts up to their last tokens."""
        order = sorted(range(len(slots)), key=lambda i: len(prompts[i]))
        while order:
            n_longest = 0
            part: list[int] = []
            while order and (len(part) + 1) * max(n_longest, len(prompts[order[0]])) <= READ_AT_ONCE:
                n_longest = max(n_longest, len(prompts[order[0]]))
                part.append(order.pop(0))
            self._read([slots[i] for i in part], [prompts[i][:-1] for i in part])
        at = torch.tensor(slots, device=self.model.device)
        self.last[at] = torch.tensor([one[-1] for one in prompts], device=self.model.device)
        self.position[at] = torch.tensor([len(one) - 1 for one in prompts], device=self.model.device)
        self.drawn[at] = torch.tensor(drawn, dtype=torch.float32, device=self.model.device)

    def _read(self, slots: list[int], prompts: list[list[int]]) -> None:
        n = -(-max(map(len, prompts)) // 16) * 16
        device = self.model.device
        tokens = torch.tensor([one + [0] * (n - len(one)) for one in prompts], device=device)
        at = torch.tensor(slots, device=device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.cache[layer][0, at, :, :n], self.cache[layer][1, at, :, :n] = k.transpose(1, 2), v.transpose(1, 2)
            return self.model.attend_within(layer, q, k, v)

        turns = self.model.turns(torch.arange(n, device=device)[None])
        x = self.model.embed(tokens)
        for layer in range(self.model.shape.n_layers):
            x = self.model.layer(layer, x, turns, attend)

    def _step(self, number: int) -> None:
        turns, x = self.model.turns(self.position), self.model.embed(self.last)
        unseen = (self.places > self.position[:, None])[:, None, None]
        for layer in range(self.model.shape.n_layers):
            x = self.model.layer(layer, x, turns, lambda at, q, k, v: self._attend(at, q, k, v, unseen))
        logits = self.model.logits(x).float()
        largest = logits.amax(-1, keepdim=True)
        self.is_sound &= largest.isfinite().all()
        near = (logits >= largest - NEAR) & (self.drawn[:, None] > 0)
        noise = -torch.empty_like(logits).exponential_().log()  # Gumbel's: the largest sum is a draw
        token = torch.where(near, logits + noise, logits).argmax(-1)
        self.said[number] = token
        self.last.copy_(token)
        self.position.copy_((self.position + 1).clamp_(max=self.n_ctx - 1))

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, unseen: Tensor) -> Tensor:
        keys, values = self.cache[layer]
        keys[self.each, :, self.position], values[self.each, :, self.position] = k, v
        # Scaled before the product: some keys are so large that half precision would not hold it.
        grouped = q.unflatten(1, (k.shape[1], -1)) * q.shape[-1] ** -0.5  # [n, n_kv, group, d]
        scores = (grouped @ keys.transpose(-1, -2)).float()
        shares = scores.masked_fill_(unseen, float("-inf")).softmax(-1).to(q.dtype)
        return (shares @ values).flatten(1, 2)

    def go_on(self) -> None:
        """`BLOCK` steps; `said` then has their tokens."""
        if self.model.device == "cpu":
            for number in range(BLOCK):
                self._step(number)
            return
        if self.graph is None:
            kept = [one.clone() for one in (self.last, self.position)]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(0)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                for number in range(BLOCK):
                    self._step(number)
            self.last.copy_(kept[0])
            self.position.copy_(kept[1])
        self.graph.replay()


class Talk:
    """Hands questions to sequences that are free, and hears what they say."""

    def __init__(self, sequences: Sequences, model: LlamaModel, template: ChatTemplate, asker: OwnQuestions) -> None:
        self.sequences, self.vocabulary, self.template, self.asker = sequences, model.vocabulary, template, asker
        turn_end = template.turn_end
        self.ends = self.vocabulary.end_tokens | (frozenset() if turn_end is None else {turn_end})
        self.running: dict[int, Text] = {}
        self.n_skipped = 0

    def lessons(self, max_tokens: int, seconds: float) -> Iterator[Lesson]:
        until = time.monotonic() + seconds
        said: Tensor | None = None
        before: dict[int, Text] = {}
        while time.monotonic() < until:
            self._fill(max_tokens)
            self.sequences.go_on()
            now = dict(self.running)
            if said is not None:
                yield from self._heard(before, said.tolist())
            host = torch.empty(
                self.sequences.said.shape, dtype=torch.long, pin_memory=self.sequences.model.device != "cpu"
            )
            host.copy_(self.sequences.said, non_blocking=True)
            if self.sequences.model.device != "cpu":
                torch.cuda.synchronize()
            if not self.sequences.is_sound.item():
                raise RuntimeError("the model computed numbers that are none")
            said, before = host, now
        for text in self.running.values():
            if text.question.seed is None and len(text.tokens) >= N_UNFINISHED_LEAST:
                yield from self._finished(text, False)

    def _fill(self, max_tokens: int) -> None:
        free = [slot for slot in range(self.sequences.n) if slot not in self.running]
        texts = []
        while len(texts) < len(free):
            question = self.asker.next()
            assert question is not None
            if (text := self._text(question, max_tokens)) is None:
                self.n_skipped += 1
            else:
                texts.append(text)
        if texts:
            self.sequences.start(free, [one.prompt for one in texts], [one.question.seed is not None for one in texts])
            self.running.update(zip(free, texts, strict=True))

    def _text(self, question: Question, max_tokens: int) -> Text | None:
        messages = [Message(cast(Role, role), content) for role, content in question.messages]
        try:
            prompt = self.template.render(messages)
        except TemplateError:
            return None
        n_most = max_tokens if question.seed is None else N_DRAWN
        n_free = self.sequences.n_ctx - len(prompt) - 2 * BLOCK
        return Text(question, prompt, min(n_most, n_free)) if n_free >= min(n_most, 288) else None

    def _heard(self, before: dict[int, Text], said: list[list[int]]) -> Iterator[Lesson]:
        """What a block said of the texts that ran in it; those that ended leave their slots."""
        for slot, text in before.items():
            if self.running.get(slot) is not text:
                continue
            for row in said:
                ended = row[slot] in self.ends
                if not ended:
                    text.tokens.append(row[slot])
                if ended or len(text.tokens) >= text.n_most:
                    del self.running[slot]
                    yield from self._finished(text, ended)
                    break

    def _finished(self, text: Text, ended: bool) -> Iterator[Lesson]:
        question = text.question
        if question.seed is not None and self.vocabulary.control.intersection(text.tokens):
            ended = False
        tokens, words = whole_characters(self.vocabulary, text.tokens)
        ended = ended and len(tokens) == len(text.tokens)
        if question.seed is None and not words:
            return
        self.asker.hear(question, without_thought(words, ended=ended), ended=ended)
        if question.seed is None:
            yield Lesson(question.messages, tuple(tokens), ended, (), question.kind)


class Files:
    """Lessons as JSON lines, a new file every so often."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.n_tokens = folder, 0
        self._file: Any = None

    def write(self, lesson: Lesson) -> None:
        number = self.n_tokens // FILE_TOKENS + 1
        path = self.folder / f"answers-{number}.jsonl.gz"
        if self._file is None or self._path != path:
            self.close()
            self._path = path
            self._file = gzip.open(path, "wt", compresslevel=6)  # noqa: SIM115  open over many calls
        self.n_tokens += len(lesson.tokens)
        row = {"messages": lesson.messages, "tokens": lesson.tokens, "ended": lesson.ended, "kind": lesson.kind}
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path) -> Iterator[Lesson]:
    """Of such a file, or of one that `benchmarks/distillation.py answers` wrote."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for line in file:
            row = json.loads(line)
            messages = tuple((role, text) for role, text in row["messages"])
            yield Lesson(messages, tuple(row["tokens"]), row["ended"], (), row["kind"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--known", type=Path, action="append", default=[], help="answers that are there already")
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--sequences", type=int, default=1536)
    parser.add_argument("--tokens", type=int, default=288, help="of an answer, at most")
    parser.add_argument("--ctx", type=int, default=736, help="of a question with its answer")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    began_s = time.monotonic()
    words = LlamaModel(arguments.target, ModelOptions(vocabulary_only=True))
    template, _ = usable(words.chat_template, words.vocabulary)
    asker = OwnQuestions(seed=arguments.seed, known=[one for path in arguments.known for one in read(path)])
    dtype = torch.float32 if arguments.device == "cpu" else torch.float16
    with torch.inference_mode():
        model = Decoder(read_header(arguments.target), arguments.device, dtype)
        print(f"loaded in {time.monotonic() - began_s:.0f} s", flush=True)
        talk = Talk(Sequences(model, arguments.sequences, arguments.ctx), words, template, asker)
        files, n_lessons, shown_s = Files(arguments.out), 0, time.monotonic()
        began_s = shown_s
        for lesson in talk.lessons(arguments.tokens, arguments.seconds):
            files.write(lesson)
            n_lessons += 1
            if time.monotonic() - shown_s > 10:
                shown_s = time.monotonic()
                spent = shown_s - began_s
                n, rate = files.n_tokens, files.n_tokens / spent
                print(f"{spent:.0f} s, {n_lessons} answers, {n:,} tokens, {rate:,.0f} a second", flush=True)
        files.close()
    print(f"{n_lessons} answers, {files.n_tokens:,} tokens, {talk.n_skipped} skipped")


if __name__ == "__main__":
    main()
