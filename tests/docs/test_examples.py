"""The examples of README and docs work: Python runs, and the command line takes every command; cheap ones are run.

The models they name are tiny ones here, under the same names.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from doc_pages import PAGES, ROOT, Block, Invocation, blocks, invocations
from tiny_gguf import write_tiny
from typer.testing import CliRunner

from edgellm.cli.main import app

BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
STARTED = [one for block in BLOCKS if block.language in ("sh", "console") for one in invocations(block)]
OURS = [one for one in STARTED if Path(one.words[0]).name == "edgellm"]
FOREIGN = [one for one in STARTED if Path(one.words[0]).name != "edgellm"]

TARGET, DRAFTER = "qwen2.5-coder-1.5b-instruct", "smollm2-135m-instruct"
STANDS_FOR = {"MODEL": TARGET, "TARGET": TARGET, "DRAFTER": DRAFTER}  # in examples
# What a reader has, or has just made.
READERS = {
    "chats.txt",
    "imatrix.gguf",
    "learnt.adapter",
    "learnt.zip",
    "my.adapter",
    "questions.txt",
    "out/MODEL-int4",
    "out",
}

# What is parsed and not run, and why; the first that says yes is the reason.
NOT_RUN: dict[str, Callable[[tuple[str, ...]], object]] = {
    "asks the Hub": lambda words: words[1] == "pull" or any(word.startswith(("user/", "hf.co/")) for word in words),
    "is a conversation in a terminal": lambda words: words[1] == "chat" and not {"-p", "--prompt"} & {*words},
    "serves until it is ended": lambda words: words[1] in ("serve", "worker"),
    "needs a worker on another machine": lambda words: "--workers" in words and words[1] != "chat",
    "takes minutes": lambda words: words[1] in ("adapt", "bench", "imatrix") or {"--calibrate", "--measure"} & {*words},
    "shows the engine's own log": lambda words: "-v" in words,
    "draws with matplotlib": lambda words: any(word.endswith(".png") for word in words),
    "is about files of the reader's": lambda words: words[1] in ("export", "verify", "bundle") or READERS & {*words},
}  # fmt: skip


def words_of(one: Invocation) -> tuple[str, ...]:
    return tuple(STANDS_FOR.get(word, word) for word in one.words)


def why_not_run(one: Invocation) -> str | None:
    return next((reason for reason, says in NOT_RUN.items() if says(words_of(one))), None)


RUN = [one for one in OURS if why_not_run(one) is None]


@pytest.fixture
def tiny_models(private_folders: Path, catalogue: Callable[..., None]) -> None:
    """The models that examples name are here, with random weights."""
    entries = []
    for name, drafters, sizes in (
        (TARGET, [DRAFTER], {"n_layers": 6, "n_embd": 128, "n_ff": 256}),
        (DRAFTER, [], {"n_layers": 1, "seed": 1}),
    ):
        path = private_folders / "edgellm" / "models" / name / f"{name}.gguf"
        path.parent.mkdir(parents=True)
        data = write_tiny(path, **sizes).read_bytes()
        file = {"quant": "F32", "filename": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        entries.append({"name": name, "drafters": drafters, "files": [file | {"sources": [{"hf": f"us/{name}"}]}]})
    catalogue(*entries)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where examples write what they write, with two cores' threads at most and a short context."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGELLM_THREADS", "1")
    monkeypatch.setenv("EDGELLM_MAX_TOKENS", "16")


def test_there_are_examples_of_every_kind() -> None:
    assert len(PYTHON) >= 5
    assert len(OURS) >= 60
    assert len(RUN) >= 20
    assert {block.page.name for block in PYTHON} >= {"README.md", "api.md", "quickstart.md"}


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.id)
def test_python_runs(block: Block, tiny_models: None) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {"__name__": "__main__"})
    assert printed.getvalue().strip(), "it prints nothing"


def commands(command: Any) -> Iterator[Any]:
    yield command
    for sub in getattr(command, "commands", {}).values():
        yield from commands(sub)


def parse(one: Invocation) -> None:
    """To the end, with the options' own checks; what the command would do is left out. Raises what is wrong."""
    root = typer.main.get_command(app)
    for command in commands(root):
        command.callback = None
    root.main([*words_of(one)[1:]], prog_name="edgellm", standalone_mode=False)


@pytest.mark.parametrize("one", OURS, ids=lambda one: one.id)
def test_the_command_line_takes_it(one: Invocation, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in one.variables.items():
        monkeypatch.setenv(name, value)
    for word in READERS | {*one.words}:
        if word == "out" or word.endswith("-export"):
            Path(word).mkdir()
        elif word in READERS and "/" not in word:
            Path(word).touch()
    parse(one)


@pytest.mark.parametrize("one", RUN, ids=lambda one: one.id)
def test_it_runs(one: Invocation, tiny_models: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in one.variables.items():
        monkeypatch.setenv(name, value)
    if one.words[1] == "plan":  # from what the catalogue says of the real models
        monkeypatch.delenv("EDGELLM_CATALOGUE")
    done = CliRunner().invoke(app, [*words_of(one)[1:]], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    shown = labels(one.block, one)
    assert {label for label in shown if label not in done.stdout} == set()


def labels(block: Block, one: Invocation) -> set[str]:
    """What the lines that a page shows behind a command begin with; figures are the machine's and the model's."""
    if block.language != "console":
        return set()
    lines = block.text.partition(f"$ {one.line}\n")[2].partition("\n$ ")[0].splitlines()
    found = [re.match(r"\s*(?:■ )?([A-Za-z][A-Za-z' ]*?)(?=:? {2,}|:)", line) for line in lines]
    return {match[1] for match in found if match}


@pytest.mark.parametrize("reason", NOT_RUN)
def test_every_reason_for_not_running_is_still_needed(reason: str) -> None:
    assert any(why_not_run(one) == reason for one in OURS)


@pytest.mark.parametrize("one", FOREIGN, ids=lambda one: one.id)
def test_other_programs_find_what_they_are_given(one: Invocation) -> None:
    program, *rest = one.words
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in rest if "=" not in word} <= {*targets}
    elif Path(program).name == "pip":
        extras = [extra for word in rest for extra in re.findall(r"\[(\w+)\]", word)]
        assert {*extras} <= {*project["optional-dependencies"]}
    elif program in ("python", "python3"):
        script = ROOT / rest[0]
        assert rest[:2] == ["-m", "venv"] or script.is_file()
        assert all(word in script.read_text() for word in rest[1:] if word.startswith("--"))
    elif program == "curl":
        (path,) = [word.partition("/v1")[2] for word in rest if word.startswith("http://127.0.0.1:8080/v1/")]
        assert f'("POST", "{path}",' in (ROOT / "server" / "application.py").read_text()
        assert isinstance(json.loads(rest[rest.index("-d") + 1]), dict)
    elif program == "ssh":
        assert re.fullmatch(r"(\d+):127\.0\.0\.1:\1", rest[rest.index("-L") + 1])
    else:
        assert one.words[:2] == ("git", "diff"), f"nobody checks {program}"


@pytest.mark.parametrize(
    "line",
    [
        "edgellm chta",
        "edgellm chat --no-such",
        "edgellm chat --top-k many",
        "edgellm plan one two",
        "edgellm devices --mem 4GB",
        "edgellm show",
        "git diff | EDGELLM_CTX=512 edgellm chat --prompts # a comment",
    ],
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    one = [*invocations(Block(ROOT / "README.md", 1, "sh", line + "\n"))][-1]
    with pytest.raises(Exception, match=r"(?i)no such|not a valid|unexpected|missing"):
        parse(one)
