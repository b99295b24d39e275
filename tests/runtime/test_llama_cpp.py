"""The llama.cpp backend on real and tiny models: true after every rollback, and never a crash for a bad file."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import alone
from tiny_gguf import write_tiny

from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import read_header
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.backends.base import CannotTruncate, ContextFull, EngineError, LoadError, keep_common_prefix
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.sampling import GREEDY

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 256, 500)]
Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")

    def written(architecture: str) -> Path:
        path = folder / f"{architecture}.gguf"
        return path if path.exists() else write_tiny(path, architecture)

    return written


@pytest.fixture
def opened() -> Iterator[Callable[..., LlamaBackend]]:
    held: list[LlamaBackend] = []

    def backend(path: Path, *, pad_single: bool = False, **options: object) -> LlamaBackend:
        settings: dict[str, object] = {"n_ctx": 512, "n_outputs": 5, "n_ubatch": 32, **options}
        context = ContextSettings(**settings)  # type: ignore[arg-type]
        held.append(LlamaBackend(LlamaModel(path), context, pad_single=pad_single))
        return held[-1]

    yield backend
    for item in held:
        item.close()
        item.model.close()


def rows(backend: LlamaBackend, tokens: list[int], keep: int) -> np.ndarray:  # type: ignore[type-arg]
    return backend.forward(tokens, keep).copy()


def fresh(backend: LlamaBackend, tokens: list[int], keep: int) -> np.ndarray:  # type: ignore[type-arg]
    backend.truncate(0)
    if tokens[:-keep]:
        backend.forward(tokens[:-keep], 0)
    return rows(backend, tokens[-keep:], keep)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "lfm2", "qwen35"])
def test_a_rollback_gives_the_logits_of_a_fresh_evaluation(
    architecture: str, tiny: Tiny, opened: Callable[..., LlamaBackend]
) -> None:
    backend, other = opened(tiny(architecture)), opened(tiny(architecture))
    held = TOKENS[:80]
    backend.forward(held, 0)
    for n_kept in (1, 4, 5, 2):  # of five drafted tokens, as a loop does
        drafted = TOKENS[200:205]
        backend.forward(drafted, 5)
        backend.truncate(len(held) + n_kept)
        held = [*held, *drafted[:n_kept]]
        assert backend.tokens == held
    assert np.array_equal(rows(backend, TOKENS[300:303], 3), fresh(other, [*held, *TOKENS[300:303]], 3))


def test_a_rollback_on_a_real_model_gives_the_logits_of_a_fresh_evaluation(
    smollm2_path: Path, opened: Callable[..., LlamaBackend]
) -> None:
    backend = opened(smollm2_path)
    tokens = backend.model.vocabulary.encode(b"The quick brown fox jumps over the lazy dog, and then it sleeps.")
    wanted = fresh(backend, tokens, 3)
    backend.forward(tokens[:5], 5)
    backend.truncate(len(tokens) - 3)
    assert np.array_equal(rows(backend, tokens[-3:], 3), wanted)
    assert wanted.argmax(axis=1).tolist() != [0, 0, 0]


def test_a_sliding_window_that_has_moved_on_refuses_to_go_back(tiny: Tiny, opened: Callable[..., LlamaBackend]) -> None:
    """Its old cells are reused: going on would silently give other logits."""
    backend, other = opened(tiny("gemma3")), opened(tiny("gemma3"))
    backend.forward(TOKENS, 0)
    with pytest.raises(CannotTruncate, match="sliding window"):
        backend.truncate(200)
    assert backend.tokens == TOKENS
    new = [*TOKENS[:200], *TOKENS[300:303]]
    assert keep_common_prefix(backend, new, len(new) - 1) == 0  # it reads everything again, and is right
    backend.forward(new[:-3], 0)
    assert np.array_equal(rows(backend, new[-3:], 3), fresh(other, new, 3))


def test_a_hybrid_model_takes_no_more_back_than_it_has_copies(tiny: Tiny, opened: Callable[..., LlamaBackend]) -> None:
    backend = opened(tiny("lfm2"))
    backend.forward(TOKENS[:100], 0)
    with pytest.raises(CannotTruncate, match="must read the text once more"):
        backend.truncate(50)
    assert backend.tokens == TOKENS[:100]
    wide = opened(tiny("lfm2"), n_outputs=1, n_rs_seq=16)
    wide.forward(TOKENS[:84], 0)
    wide.forward(TOKENS[84:100], 0)
    wide.truncate(85)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "lfm2", "qwen35", "mamba"])
def test_every_kind_of_model_answers_and_drafting_changes_nothing(architecture: str, tiny: Tiny) -> None:
    options = EngineOptions(n_ctx=256, n_draft=4, fixed=True)
    with load(tiny(architecture), None, EngineOptions(n_ctx=256, copy=False)) as plain:
        wanted = "".join(ChatSession(plain).reply("the thin hat the thin hat", max_tokens=40))
    with load(tiny(architecture), tiny(architecture), options) as engine:
        session = ChatSession(engine)
        assert "".join(session.reply("the thin hat the thin hat", max_tokens=40)) == wanted
        assert session.last is not None
        assert session.last.stats.n_accepted > 0


def test_a_recurrent_model_says_what_it_cannot_do(tiny: Tiny, opened: Callable[..., LlamaBackend]) -> None:
    backend = opened(tiny("mamba"))
    rows(backend, TOKENS[:80], 1)
    with pytest.raises(CannotTruncate, match=r"mamba.*must read the text once more"):
        backend.truncate(50)


def test_a_drafter_of_a_hybrid_family_reads_what_is_new_alone(tiny: Tiny, opened: Callable[..., LlamaBackend]) -> None:
    target = opened(tiny("llama"))
    drafter = ModelDrafter(opened(tiny("lfm2"), n_outputs=1, n_rs_seq=16))
    backend = drafter.backend
    read: list[int] = []
    forward = backend.forward
    backend.forward = lambda tokens, n_outputs: (read.append(len(tokens)), forward(tokens, n_outputs))[1]  # type: ignore[method-assign,func-returns-value]
    drafter.begin(TOKENS[:100])
    list(generate(target, alone(drafter), TOKENS[:100], GREEDY, n_draft=4, max_new=30))
    assert max(read[1:]) <= 5


def test_the_context_is_never_overrun(tiny: Tiny, opened: Callable[..., LlamaBackend]) -> None:
    backend = opened(tiny("llama"), n_ctx=256)
    with pytest.raises(ContextFull, match="--ctx"):
        backend.forward(TOKENS[:300], 1)
    backend.truncate(100)
    assert rows(backend, TOKENS[100:103], 3).shape == (3, backend.n_vocab)
    backend.truncate(0)
    steps = list(generate(backend, NoDrafter(), TOKENS[:250], GREEDY, n_draft=0, max_new=50))
    assert len(steps) == backend.n_ctx - 250


def test_a_token_that_does_not_exist_is_refused_and_leaves_the_rest(
    tiny: Tiny, opened: Callable[..., LlamaBackend]
) -> None:
    backend = opened(tiny("llama"))
    backend.forward(TOKENS[:10], 0)
    with pytest.raises(EngineError, match="status"):
        backend.forward([100_000, 1], 2)
    assert backend.tokens == TOKENS[:10]
    other = opened(tiny("llama"))
    assert np.array_equal(rows(backend, TOKENS[10:13], 3), fresh(other, TOKENS[:13], 3))
    with pytest.raises(EngineError, match="rows"):
        backend.forward(TOKENS[:9], 9)


def test_closing_twice_is_safe_and_closed_parts_say_so(tiny: Tiny) -> None:
    model = LlamaModel(tiny("llama"))
    backend = LlamaBackend(model, ContextSettings(n_ctx=256))
    backend.forward([1, 2], 1)
    for _ in range(2):
        backend.close()
    for keep in (0, 1):
        with pytest.raises(EngineError, match="closed"):
            backend.forward([1, 2, 3], keep)
    backend.truncate(0)
    for _ in range(2):
        model.close()
    with pytest.raises(EngineError, match="closed"):
        model.vocabulary.encode(b"text")
    with pytest.raises(EngineError, match="closed"):
        LlamaBackend(model, ContextSettings(n_ctx=256))


def test_two_engines_do_not_disturb_each_other(tiny: Tiny) -> None:
    def talk(architecture: str) -> Iterator[str]:
        with load(tiny(architecture), tiny("llama"), EngineOptions(n_ctx=256)) as engine:
            yield from ChatSession(engine).reply("the thin hat", max_tokens=24)

    alone = {name: "".join(talk(name)) for name in ("llama", "gemma3")}
    both: dict[str, str] = dict.fromkeys(alone, "")
    talks = {name: talk(name) for name in alone}
    while talks:
        for name, pieces in list(talks.items()):
            piece = next(pieces, None)
            if piece is None:
                del talks[name]
            else:
                both[name] += piece
    assert both == alone


def damaged(path: Path, folder: Path, name: str) -> Path:
    data = bytearray(path.read_bytes())
    bad = folder / f"{name}.gguf"
    if name == "truncated":
        data = data[: len(data) * 2 // 3]
    elif name == "cut in the header":
        data = data[:300]
    elif name == "wrong magic":
        data[:4] = b"PK\x03\x04"
    elif name == "empty":
        data = bytearray()
    elif name == "version 9":
        data[4] = 9
    elif name == "unknown architecture":
        data = bytearray(bytes(data).replace(b"llama", b"lamda"))
    elif name == "repeated token":
        data = bytearray(bytes(data).replace(b"<|unused3|>", b"<|unused4|>"))
    elif name == "too many layers":
        at = data.index(b"llama.block_count") + 21
        data[at : at + 4] = (100_000).to_bytes(4, "little")
    elif name == "folder":
        bad.mkdir()
        return bad
    bad.write_bytes(data)
    return bad


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated", "truncated: .* pull it again"),
        ("cut in the header", "ends inside its header"),
        ("wrong magic", "not a GGUF file"),
        ("empty", "not a GGUF file"),
        ("version 9", "version 9"),
        ("unknown architecture", "unknown model architecture: 'lamda'; .* pull another model"),
        ("repeated token", "same token twice"),
        ("too many layers", "100000 layers"),
        ("folder", "cannot be read: Is a directory"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(name: str, said: str, tiny: Tiny, tmp_path: Path) -> None:
    bad = damaged(tiny("llama"), tmp_path, name)
    with pytest.raises(LoadError, match=said) as raised:
        LlamaModel(bad)
    assert str(bad) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.gguf cannot be read: No such file"):
        LlamaModel(tmp_path / "none.gguf")


TRY_ALL = """
import sys
from pathlib import Path
from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.base import EngineError, LoadError
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
for path in sys.argv[1:]:
    print("try", path, flush=True)
    try:
        model = LlamaModel(Path(path))
        backend = LlamaBackend(model, ContextSettings(n_ctx=64))
        backend.forward(model.vocabulary.encode(b"hello the hat")[:30], n_outputs=1)
        backend.close()
        model.close()
    except (EngineError, LoadError) as error:
        assert str(error) and len(str(error)) < 2000
"""


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def test_a_header_with_any_bit_flipped_is_refused_or_works(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny("llama")
    whole, end = source.read_bytes(), read_header(source).data_offset
    rng, paths = random.Random(5), []
    places = [(0, whole.index(b"tokenizer.ggml.tokens")), (0, end), (whole.index(b"token_embd.weight"), end)]
    for number in range(240):
        data = bytearray(whole)
        data[rng.randrange(*places[number % 3])] ^= 1 << rng.randrange(8)
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL, *map(str, paths)], preexec_fn=limited, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout.splitlines()[-1], done.stderr[-1000:])


def test_a_context_that_does_not_fit_says_what_to_try(tiny: Tiny) -> None:
    attempt = f"""
from pathlib import Path
from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
LlamaBackend(LlamaModel(Path({str(tiny("llama"))!r})), ContextSettings(n_ctx=1 << 23))
"""
    done = subprocess.run([sys.executable, "-c", attempt], preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "OutOfMemory" in said
    assert "8,388,608 tokens" in said
    assert "try a smaller --ctx" in said
