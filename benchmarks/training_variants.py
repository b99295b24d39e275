"""Other ways to train a drafter than `edgellm adapt` takes; `distillation.py variants` says what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.draft_adapter import quantised_matrix
from edgellm.memory.gguf import GgufHeader
from edgellm.memory.quantised import Floats
from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.network import Network
from edgellm.runtime.distillation.rows import Gradients, Rows
from edgellm.runtime.distillation.training import Adam, TrainingSettings, batches, rate_at

FLOOR = 1e-4  # probability of a token that the target did not hold likely, where a logarithm of it is asked
RANK, STRENGTH = 16, 2.0  # of LoRA


class Soft(Network):
    """Learns the target's probabilities where they are known."""

    reverse = False

    def _loss(self, last: Floats, answers: NDArray[np.int32], found: Gradients) -> Floats:
        normed, slope = self._normed(last, "output_norm.weight"), np.empty_like(last)
        for start in range(0, len(last), 256):
            part, wanted = slice(start, start + 256), answers[start : start + 256]
            logits = normed[part] @ self._head.T
            found.n_right += int((logits.argmax(-1) == wanted).sum())
            logits -= logits.max(-1, keepdims=True)
            own = np.exp(logits)
            own /= own.sum(-1, keepdims=True)
            found.loss -= float(np.log(own[np.arange(len(wanted)), wanted] + 1e-20).sum())
            for row, (said, likely) in enumerate(zip(wanted, self.likely[start : start + 256], strict=True)):
                self._slope_of(own[row], int(said), likely)
            slope[part] = own @ self._head
        found.n_tokens += len(answers)
        return self._normed_back(slope, last, "output_norm.weight")

    def _slope_of(self, own: Floats, said: int, likely: Any) -> None:
        """Turns a row of probabilities into the slope of its loss, in place."""
        if likely is None:
            own[said] -= 1
            if self.reverse:
                own *= np.float32(0.2)
        elif self.reverse:
            ratio = np.log(own + np.float32(1e-12)) - np.float32(np.log(FLOOR))
            for token, share in likely:
                ratio[token] = np.log(own[token] + 1e-12) - np.log(max(share, FLOOR))
            own *= ratio - np.float32(own @ ratio)
        else:
            for token, share in likely:
                own[token] -= share

    def gradients(self, samples: Sequence[Sample]) -> Gradients:
        network = object.__new__(type(self))  # threads share the weights, not what is likely
        network.__dict__.update(self.__dict__)
        network.likely = [
            likely for one in samples for likely in (one.soft or (None,) * len(one.answer))[: len(one.answer)]
        ]
        return Network.gradients(network, samples)

    likely: list[Any]


class Hybrid(Soft):
    reverse = True


class Upper(Network):
    """Learns in the upper half of its layers."""

    def gradients(self, samples: Sequence[Sample]) -> Gradients:
        rows, found, first = Rows.of(samples), Gradients(), self.shape.n_layers // 2
        rotations, kept = self._rotations(rows), list[Any]()
        slope = self._loss(self._forward(rows, rotations, kept), rows.answers, found)
        for layer in reversed(range(first, self.shape.n_layers)):
            rotation = rotations[layer].at(rows.answered)
            slope = self._layer_back(layer, slope, kept.pop(), self._attention(rows, layer), rotation, found)
        return found

    def changes(self) -> dict[str, Floats]:
        return {n: t for n, t in super().changes().items() if int(n.split(".")[1]) >= self.shape.n_layers // 2}


class WithHead(Network):
    """Learns in the tied embedding too."""

    def __init__(self, header: GgufHeader) -> None:
        super().__init__(header)
        tensor = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
        self.matrices[tensor.name] = quantised_matrix(header, tensor)
        self._weights["token_embd"] = self._embedding

    def _loss(self, last: Floats, answers: NDArray[np.int32], found: Gradients) -> Floats:
        back = super()._loss(last, answers, found)
        normed = self._normed(last, "output_norm.weight")
        logits = normed @ self._head.T
        logits -= logits.max(-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(-1, keepdims=True)
        logits[np.arange(len(answers)), answers] -= 1
        name = "token_embd.weight"
        found.thetas[name] = self.matrices[name].gradient((logits.T @ normed).astype(np.float32), self._embedding)
        return back


class Whole(Network):
    """Lets slopes reach the questions: their tokens learn to hold what the answers want, but are not predicted."""

    n_asked: list[int]  # rows of each text before its answer
    lengths: list[int]  # rows of each

    def gradients(self, samples: Sequence[Sample]) -> Gradients:
        network = object.__new__(type(self))  # threads share the weights, not which rows are questions
        network.__dict__.update(self.__dict__)
        network.n_asked = [len(one.prompt) - 1 for one in samples]
        texts = [np.concatenate((one.prompt, one.answer)) for one in samples]
        network.lengths = [len(text) - 1 for text in texts]
        return Network.gradients(network, [Sample(text[:1], text[1:]) for text in texts])

    def _loss(self, last: Floats, answers: NDArray[np.int32], found: Gradients) -> Floats:
        said = np.ones(len(last), np.bool_)
        start = 0
        for n, rows in zip(self.n_asked, self.lengths, strict=True):
            said[start : start + n] = False
            start += rows
        slope = np.zeros_like(last)
        slope[said] = super()._loss(last[said], answers[said], found)
        return slope


class Dense(Network):
    """Hands out the slopes of whole matrices."""

    def _product_back(self, slope: Floats, x: Floats, name: str, found: Gradients) -> Floats:
        if f"{name}.weight" in self.matrices:
            found.thetas[name] = self.reduced(name, slope.T @ x)
        return slope @ self._weights[name]

    def reduced(self, name: str, slope: Floats) -> Floats:
        return slope

    def begin(self) -> None:
        self.start = {
            name.removesuffix(".weight"): self._weights[name.removesuffix(".weight")].copy() for name in self.matrices
        }

    def move(self, moved: Mapping[str, Floats]) -> None:
        for name, change in moved.items():
            self._weights[name] += change

    def written_as(self, grid: Callable[[Floats], Floats]) -> Iterator[None]:
        """While it is iterated, the matrices are what a file of that type would hold."""
        whole = {name: self._weights[name] for name in self.start}
        for name, weight in whole.items():
            self._weights[name] = grid(weight)
        yield
        self._weights.update(whole)


class LowRank(Dense):
    def begin(self) -> None:
        super().begin()
        rng = np.random.default_rng(1)
        self.a = {
            n: (rng.standard_normal((RANK, w.shape[1])) / w.shape[1] ** 0.5).astype(np.float32)
            for n, w in self.start.items()
        }
        self.b = {n: np.zeros((w.shape[0], RANK), np.float32) for n, w in self.start.items()}

    def reduced(self, name: str, slope: Floats) -> Floats:
        """The slopes of both factors in one array: [RANK, n_in + n_out]."""
        return np.concatenate((self.b[name].T @ slope, self.a[name] @ slope.T), axis=1) * np.float32(STRENGTH)

    def move(self, moved: Mapping[str, Floats]) -> None:
        for name, change in moved.items():
            n_in = self.a[name].shape[1]
            self.a[name] += change[:, :n_in]
            self.b[name] += change[:, n_in:].T
            self._weights[name] = self.start[name] + np.float32(STRENGTH) * self.b[name] @ self.a[name]


def q8_0(weight: Floats) -> Floats:
    blocks = weight.reshape(-1, 32)
    scale = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    codes = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0))
    written: Floats = (codes * scale).astype(np.float32, copy=False)
    return written.reshape(weight.shape)


def with_minimum(n_levels: int) -> Callable[[Floats], Floats]:
    """Q4_1 and Q5_1 as ggml rounds."""

    def grid(weight: Floats) -> Floats:
        blocks = weight.reshape(-1, 32)
        least = blocks.min(-1, keepdims=True).astype(np.float16).astype(np.float32)
        scale = ((blocks.max(-1, keepdims=True) - least) / (n_levels - 1)).astype(np.float16).astype(np.float32)
        codes = np.rint(np.divide(blocks - least, scale, out=np.zeros_like(blocks), where=scale != 0))
        written: Floats = (np.clip(codes, 0, n_levels - 1) * scale + least).astype(np.float32, copy=False)
        return written.reshape(weight.shape)

    return grid


GRIDS = {"Q8_0": q8_0, "Q5_1": with_minimum(32), "Q4_1": with_minimum(16)}


def train_dense(network: Dense, samples: Sequence[Sample], settings: TrainingSettings) -> None:
    """As `train`, over whole matrices or their factors."""
    adam, steps = Adam(settings), batches(samples, settings)
    network.begin()
    for n, step in enumerate(steps, 1):
        found = Gradients()
        for part in step:
            found.add(network.gradients(part))
        rate = settings.learning_rate * rate_at(n, n / len(steps), settings)
        slopes = {name: slope / np.float32(found.n_tokens) for name, slope in found.thetas.items()}
        network.move(adam.changes(slopes, rate))


VARIANTS: dict[str, tuple[type[Network], float]] = {  # with the rate that suits it
    "scales": (Network, 1e-3), "soft": (Soft, 1e-3), "hybrid": (Hybrid, 1e-3), "upper": (Upper, 1e-3),
    "head": (WithHead, 1e-3), "whole": (Whole, 1e-3), "lora": (LowRank, 1e-3), "full": (Dense, 2e-5),
}  # fmt: skip
