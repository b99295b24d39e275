"""`edgellm chat` as a command: one question in, one answer out, for people, pipes and programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny

from edgellm.cli.main import main
from edgellm.runtime.backends.base import EngineError
from edgellm.runtime.drafters.model import ModelDrafter

CHAT = [sys.executable, "-m", "edgellm.cli", "chat"]
COUNTS = {"n_prompt", "n_new", "n_rounds", "n_drafted", "n_accepted"}
SPEEDS = {"prefill_s", "decode_s", "tokens_per_s", "tokens_per_round", "acceptance"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, which babbles on and on."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_layers=8, n_embd=128, n_ff=256)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_THREADS", "1")  # so that tests side by side do not wait for each other
    monkeypatch.setenv("EDGELLM_CTX", "1024")


def piped(*arguments: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the command as a shell would; no input is /dev/null."""
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    done = subprocess.run([*CHAT, *map(os.fsencode, map(str, arguments))], capture_output=True, timeout=120, **source)
    assert b"Traceback" not in done.stderr
    return done


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Chat = Callable[..., Done]


@pytest.fixture
def chat(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """`chat(MODEL, "-p", ...)`: the same in this process, which is quicker."""

    def run(*arguments: object, before: Sequence[str] = ()) -> Done:
        monkeypatch.setattr(sys, "argv", ["edgellm", *before, "chat", *map(str, arguments)])
        try:
            main()
            code: Any = 0
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return Done(int(code or 0), captured.out, captured.err)

    return run


def prompt_tokens(*arguments: object, stdin: bytes | None = None) -> int:
    done = piped(*arguments, "--max-tokens", 1, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["stats"]["n_prompt"])


def test_stdout_holds_the_answer_and_one_newline_and_the_json_the_same_text(chat: Chat, tiny: Path) -> None:
    plain = piped(tiny, "-p", "hat", "-n", 24)
    result = json.loads(chat(tiny, "-p", "hat", "-n", 24, "--json").stdout)
    assert plain.returncode == 0
    assert plain.stderr == b""
    assert plain.stdout.decode() == result["text"].rstrip("\n") + "\n"


def test_json_names_the_models_the_reason_and_every_figure(chat: Chat, tiny: Path) -> None:
    drafting = ("--draft", tiny, "--no-copy", "--draft-tokens", 4)  # left to decide, it draws on the clock
    done = chat(tiny, *drafting, "-p", "hat", "-n", 24, "--json")
    result = json.loads(done.stdout)
    models = ["target", "draft", "draft_adapter", "loras"]
    assert list(result) == ["text", "reasoning", "finish_reason", "n_forgotten", *models, "stats"]
    assert result["draft_adapter"] is None
    assert result["finish_reason"] == "length"
    assert result["target"] == result["draft"] == str(tiny)
    stats = result["stats"]
    assert set(stats) >= COUNTS | SPEEDS
    assert stats["n_new"] == 24
    assert stats["n_rounds"] < 24  # its own drafter is believed
    assert stats["acceptance"] == stats["n_accepted"] / stats["n_drafted"]
    assert stats["tokens_per_round"] == 24 / stats["n_rounds"]


def test_events_come_in_order_and_their_texts_make_the_answer(chat: Chat, tiny: Path) -> None:
    lines = chat(tiny, "-d", "none", "-p", "hat", "-n", 24, "--jsonl").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in (events[0], events[-1])] == ["start", "end"]
    assert events[0]["draft"] is None
    assert {event["event"] for event in events[1:-1]} == {"text"}
    assert "".join(event["text"] for event in events[1:-1]) == events[-1]["text"]


def test_piped_text_is_the_question_and_follows_a_prompt(tiny: Path) -> None:
    alone = prompt_tokens(tiny, "-p", "one\n\ntwo")
    assert prompt_tokens(tiny, stdin=b"one\n\ntwo\n") == alone
    assert prompt_tokens(tiny, "-p", "one", stdin=b"two\n") == alone
    assert prompt_tokens(tiny, "-p", "one\n\ntwo", stdin=b"") == alone


def test_input_that_is_no_utf8_and_an_argument_that_is_none_are_answered(tiny: Path) -> None:
    assert piped(tiny, "-n", 4, stdin=b"\xff\xfe caf\xe9").returncode == 0
    assert piped(tiny, "-n", 4, "-p", os.fsdecode(b"caf\xe9")).returncode == 0


def test_an_output_that_cannot_show_the_answer_gets_what_it_can(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = piped(tiny, "-p", "hat", "-n", 48)
    assert done.returncode == 0
    assert b"?" in done.stdout


def test_every_option_has_a_variable(chat: Chat, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = chat(tiny, "-p", "hat", "-n", 12, "--temp", 0.9, "--seed", 5, "-d", "none").stdout
    settings = {"MODEL": tiny, "PROMPT": "hat", "MAX_TOKENS": 12, "TEMP": 0.9, "SEED": 5, "DRAFT": "none"}
    for name, value in settings.items():
        monkeypatch.setenv(f"EDGELLM_{name}", str(value))
    assert chat().stdout == expected


def test_a_variable_holds_one_stop_text_or_several_in_quotes(
    chat: Chat, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(chat(tiny, "-p", "hat", "-n", 48, "--json").stdout)["text"]
    near, far = whole[20:22], whole[30:32]
    assert not {'"', "'", "\\"}.intersection(near + far)

    def cut(value: str) -> str:
        monkeypatch.setenv("EDGELLM_STOP", value)
        return str(json.loads(chat(tiny, "-p", "hat", "-n", 48, "--json").stdout)["text"])

    assert cut(f"{near} {far}") == whole  # one text, which does not come
    assert cut(f'"{far}" "{near}"') == whole[: min(whole.index(near), whole.index(far))]
    monkeypatch.setenv("EDGELLM_STOP", '"open')
    done = chat(tiny, "-p", "hat")
    assert done.returncode == 2
    assert "texts in quotes" in " ".join(done.stderr.replace("│", " ").split())


def test_one_question_can_go_on_with_the_conversation_that_was_left(
    chat: Chat, tiny: Path, private_folders: Path
) -> None:
    path = private_folders / "edgellm" / "conversation.json"
    path.parent.mkdir(parents=True)
    said = [{"role": "user", "content": "hat"}, {"role": "assistant", "content": "tin"}]
    head = {"format": "edgellm conversation", "version": 1, "target": {"name": "tiny"}, "system": None}
    path.write_text(json.dumps(head | {"messages": said}))
    alone = json.loads(chat(tiny, "-p", "more", "-n", 4, "--json").stdout)
    assert len(json.loads(path.read_text())["messages"]) == 2  # one question alone is not kept
    resumed = chat(tiny, "-p", "more", "-n", 4, "--json", "--resume")
    result = json.loads(resumed.stdout)
    assert "2 messages from the conversation left last" in resumed.stderr
    assert result["stats"]["n_prompt"] > alone["stats"]["n_prompt"] + 6
    kept = json.loads(path.read_text())["messages"]
    assert [message["content"] for message in kept[:3]] == ["hat", "tin", "more"]
    assert kept[3]["content"] == result["text"]


def test_a_seed_of_minus_one_is_another_one_each_time(chat: Chat, tiny: Path) -> None:
    ask = ("-p", "hat", "-n", 24, "--temp", 2.0, "--top-p", 1.0, "--seed", -1)
    assert chat(tiny, *ask).stdout != chat(tiny, *ask).stdout


def test_a_thought_is_apart_in_json_and_not_on_stdout(chat: Chat, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '<think>' }}{# </think> #}"
    model = write_tiny(tmp_path / "thinks.gguf", chat_template=template, n_layers=8, n_embd=128, n_ff=256)
    ask = (model, "-d", "none", "-p", "hat", "-n", 40, "--think-budget", 12)
    result = json.loads(chat(*ask, "--json").stdout)
    assert result["reasoning"]
    assert result["text"]
    assert result["stats"]["n_thought"] == 12
    events = [json.loads(line) for line in chat(*ask, "--jsonl").stdout.splitlines()]
    assert "".join(e["text"] for e in events if e["event"] == "reasoning") == result["reasoning"]
    assert "".join(e["text"] for e in events if e["event"] == "text") == result["text"]
    assert chat(*ask).stdout == result["text"].rstrip("\n") + "\n"
    unfinished = chat(model, "-d", "none", "-p", "hat", "-n", 8)
    assert unfinished.stdout == "\n"
    assert "inside its thought" in unfinished.stderr
    off = chat(*ask[:-2], "--no-think", "--json")
    assert json.loads(off.stdout)["reasoning"] is None
    assert "no switch for thinking" in off.stderr
    assert chat(*ask[:-2], "--no-think").stdout


def test_an_answer_is_held_to_a_schema_or_a_grammar_and_says_where_it_was_cut_off(
    chat: Chat, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    for said in (file, json.dumps(schema)):
        done = chat(tiny, "-p", "x", "--schema", said)
        assert done.stdout in ('{"n": 1}\n', '{"n": 22}\n')
        assert "cut off" not in done.stderr
    monkeypatch.setenv("EDGELLM_SCHEMA", str(file))
    assert chat(tiny, "-p", "x", "--grammar", "/(ab){3}/").stdout == "ababab\n"  # typed goes before set
    cut = chat(tiny, "-p", "x", "-n", 2)
    assert cut.returncode == 0
    assert "the answer was cut off by --max-tokens" in cut.stderr


def test_a_stop_text_ends_the_answer_before_it(chat: Chat, tiny: Path) -> None:
    whole = json.loads(chat(tiny, "-p", "hat", "-n", 48, "--json").stdout)["text"]
    stop = whole[20:22]
    result = json.loads(chat(tiny, "-p", "hat", "-n", 48, "--stop", stop, "--json").stdout)
    assert result["text"] == whole[: whole.index(stop)]
    assert result["finish_reason"] == "stop_string"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-p", ""], 2, "nothing to answer"),
        ([], 2, "nothing to answer"),
        (["-p", "x", "--json", "--jsonl"], 2, "one of --json and --jsonl"),
        (["-p", "x", "--temp", "-1"], 2, "temperature -1.0 is out of range"),
        (["-p", "x", "--temp", "warm"], 2, "not a valid float"),
        (["-p", "x", "--top-p", "nan"], 2, "top_p nan is out of range"),
        (["-p", "x", "--ctx", "0"], 2, "64"),
        (["-p", "x", "--max-tokens", "0"], 2, "1"),
        (["-p", "x", "--draft-tokens", "1000"], 2, "64"),
        (["-p", "x", "--kv", "q3"], 2, "take one of f32, f16, q8_0"),
        (["-p", "x", "--no-such-option"], 2, "No such option"),
        (["-p", "x", "--seed", "-2"], 2, "-1"),
        (["-p", "x", "--resume"], 1, "no conversation to resume"),
        (["-p", "x", "--think-budget", "-1"], 2, "0"),
        (["-p", "x", "--schema", "none.json"], 2, "a schema is a file or JSON"),
        (["-p", "x", "--schema", '{"not": {}}'], 2, '"not", which an answer cannot be held to'),
        (["-p", "x", "--grammar", "/(/"], 2, "unclosed group"),
        (["-p", "x", "--schema", "{}", "--grammar", "/a/"], 2, "one of --schema and --grammar"),
        (["-p", "x " * 2000], 1, "larger --ctx"),
        (["-p", "x", "--draft", "no-such-model"], 2, "no model is called"),
        (["-p", "x", "--draft", "smollm2-135m-instruct", "--offline"], 1, "run `edgellm pull"),
    ],
)
def test_what_cannot_be_done_is_said_on_stderr_alone(
    chat: Chat, tiny: Path, arguments: list[str], code: int, words: str
) -> None:
    done = chat(tiny, *arguments)
    assert done.returncode == code, done.stderr
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


def test_broken_and_missing_files_are_one_sentence(chat: Chat, tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    broken = {
        "cut.gguf": data[: len(data) // 2],
        "header.gguf": data[:100],
        "empty.gguf": b"",
        "text.gguf": b"this is no model at all, only text" * 20,
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    for name in (*broken, "missing.gguf"):
        done = chat(tmp_path / name, "-p", "x", "-d", "none")
        assert done.returncode in (1, 2), name
        assert done.stderr.startswith("error: "), name
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stdout == ""


def test_a_reader_that_leaves_ends_the_command_quietly(tiny: Path) -> None:
    process = subprocess.Popen(
        [*CHAT, tiny, "-p", "hat", "--jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert '"start"' in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


def test_an_interrupt_ends_a_one_shot_answer_with_what_was_written(tmp_path: Path) -> None:
    slow = write_tiny(tmp_path / "slow.gguf", n_layers=32, n_embd=512, n_ff=1024, n_heads=8)
    process = subprocess.Popen(
        [*CHAT, slow, "-p", "hat", "--jsonl", "-d", "none", "--no-copy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    head = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    end = json.loads(rest.splitlines()[-1])
    assert process.returncode == 130
    assert errors == b""
    assert end["finish_reason"] == "interrupted"
    texts = [json.loads(line).get("text", "") for line in [*head, *rest.splitlines()[:-1]]]
    assert end["text"] == "".join(texts)


def test_a_conversation_needs_a_terminal(tiny: Path) -> None:
    """Standard input is a terminal, standard output is none."""
    if os.name != "posix":
        pytest.skip("no pseudo-terminals here")
    import pty

    ours, theirs = pty.openpty()
    try:
        done = subprocess.run([*CHAT, tiny], stdin=theirs, capture_output=True, timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert b"needs a terminal" in done.stderr


def test_a_missing_template_is_told_and_silence_can_be_asked_for(chat: Chat, tiny: Path, tmp_path: Path) -> None:
    bare = write_tiny(tmp_path / "bare.gguf", chat_template=None)
    told = chat(bare, "-p", "hat", "-n", 2)
    assert told.stderr.count("\n") == 1
    assert "warning: bare.gguf carries no chat template" in told.stderr
    quiet = chat(bare, "-p", "hat", "-n", 2, before=["--quiet"])
    assert (quiet.stdout, quiet.stderr) == (told.stdout, "")


def test_what_takes_long_before_the_first_word_is_said(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_KERNELS", "off")
    assert b"--exact compares passes of every width first" in piped(tiny, "-p", "hat", "-n", 1, "--exact").stderr
    assert b"--exact" not in piped(tiny, "-p", "hat", "-n", 1).stderr


def test_the_engine_speaks_only_when_asked(chat: Chat, tiny: Path) -> None:
    expected = chat(tiny, "-p", "hat", "-n", 2)
    loud = subprocess.run(
        [*CHAT[:-1], "--verbose", "chat", tiny, "-p", "hat", "-n", "2"], capture_output=True, stdin=subprocess.DEVNULL
    )
    assert expected.stderr == ""
    assert b"llama" in loud.stderr
    assert loud.stdout.decode() == expected.stdout


def test_a_real_model_answers_alike_alone_and_as_its_own_drafter(
    chat: Chat, smollm2_path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.symlink_to(smollm2_path)
    ask = ("-p", "Tell me three facts about the moon.", "-n", 16, "--exact", "--json")
    alone = json.loads(chat(smollm2_path, "-d", "none", "--no-copy", *ask).stdout)
    drafted = json.loads(chat(smollm2_path, "-d", copy, "--draft-tokens", 4, *ask).stdout)
    assert "moon" in alone["text"]
    assert drafted["text"] == alone["text"]
    assert drafted["stats"]["n_drafted"] > 0
    cut = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as file:
        cut.write_bytes(file.read(40_000_000))
    done = chat(cut, "-p", "x", "-d", "none")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_a_drafter_that_fails_in_the_middle_costs_a_warning_and_not_the_answer(
    tiny: Path, tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> object:
        raise EngineError("draft.gguf: the engine failed with status -3")

    draft = write_tiny(tmp_path / "draft.gguf", n_layers=1)
    asked = (tiny, "-d", draft, "-p", "hello", "-n", 8, "--draft-tokens", 3, "--no-copy", "--no-learn")
    whole = chat(*asked)
    monkeypatch.setattr(ModelDrafter, "drafting", fails)
    done = chat(*asked)
    assert (done.returncode, done.stdout) == (0, whole.stdout)
    assert done.stderr.count("warning: the drafter drafts no more: draft.gguf: the engine failed") == 1
