"""The chat in a real terminal (tmux): what is typed, what is shown, and what is remembered of it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

STATUS = " tok/s · "
Start = Callable[..., "Terminal"]


class Terminal:
    """A window of 80 columns and 24 lines with a command in it."""

    def __init__(self, socket: str, command: list[str], env: dict[str, str]) -> None:
        self._socket = socket
        settings = [f"{name}={value}" for name, value in env.items()]
        shown = ["sh", "-c", 'trap : INT; "$@"; echo "exit=$?"; exec sleep 600', "sh", "env", *settings, *command]
        self.tmux("-f", os.devnull, "new-session", "-d", "-x", "80", "-y", "24", *shown)
        self.tmux("set-option", "-g", "history-limit", "2000")

    def tmux(self, *arguments: str, **options: Any) -> str:
        done = subprocess.run(["tmux", "-L", self._socket, *arguments], capture_output=True, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def keys(self, *keys: str) -> None:
        """Keys by tmux's names (Enter, C-c), other words letter by letter."""
        self.tmux("send-keys", *keys)

    def line(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)
        self.keys("Enter")

    def paste(self, text: str) -> None:
        self.tmux("load-buffer", "-", input=text.encode())
        self.tmux("paste-buffer", "-p")

    def resize(self, n_columns: int, n_lines: int) -> None:
        self.tmux("resize-window", "-x", str(n_columns), "-y", str(n_lines))

    def screen(self, *options: str) -> str:
        return self.tmux("capture-pane", "-p", *options).rstrip()

    def wait(self, found: Callable[[str], bool] | str) -> str:
        """The screen, once it shows that."""
        test = found if callable(found) else lambda screen: found in screen
        end = time.monotonic() + 60
        while not test(screen := self.screen()):
            assert time.monotonic() < end, screen
            time.sleep(0.02)
        assert "Traceback" not in screen
        return screen

    def wait_answer(self, question: str) -> str:
        """What has come of an answer, once its first words are there."""

        def answer(screen: str) -> str:
            return screen.rpartition(f">>> {question}\n")[2].strip() if f">>> {question}\n" in screen else ""

        return answer(self.wait(lambda screen: len(answer(screen)) > 20))

    def wait_prompt(self) -> str:
        return self.wait(lambda screen: screen.splitlines()[-1:] == [">>>"])

    def conversation(self, path: Path) -> list[tuple[str, str]]:
        """What /save writes: (role, content) of each message."""
        path.unlink(missing_ok=True)
        self.line(f"/save {path}")
        end = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < end, self.screen()
            time.sleep(0.02)
        self.wait_prompt()
        return [(message["role"], message["content"]) for message in json.loads(path.read_text())["messages"]]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that babbles faster than anybody reads."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "quick.gguf")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, larger, so that it can be caught at it."""
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny(folder / "slow.gguf", n_layers=32, n_embd=512, n_ff=1024, n_heads=8)


@pytest.fixture
def start(private_folders: Path) -> Iterator[Start]:
    """`start(MODEL, "--option", ...)` begins a conversation and waits for its prompt."""
    sockets: list[str] = []

    def begin(*arguments: object, before: str = "", **settings: str) -> Terminal:
        env = {"EDGELLM_HOME": str(private_folders / "edgellm"), "EDGELLM_THREADS": "1", "LC_ALL": "C.UTF-8"}
        command = [sys.executable, "-m", "edgellm.cli", "chat", *map(str, arguments)]
        sockets.append(f"edgellm-test-{os.getpid()}-{time.monotonic_ns()}")
        terminal = Terminal(sockets[-1], command, env | settings)
        if before:
            terminal.wait("loading")
            terminal.keys(before)
        else:
            terminal.wait_prompt()
        return terminal

    yield begin
    for socket in sockets:
        subprocess.run(["tmux", "-L", socket, "kill-server"], capture_output=True)


def test_an_answer_streams_and_keys_pressed_meanwhile_wait_for_the_next_line(start: Start, slow: Path) -> None:
    terminal = start(slow, "-d", "none", "--no-copy", "-n", 200)
    terminal.line("hat")
    partial = terminal.wait_answer("hat")
    assert STATUS not in partial
    terminal.keys("xyzzy")
    screen = terminal.wait(lambda screen: screen.endswith(">>> xyzzy"))
    assert "xyzzy" not in screen.rpartition(STATUS)[0]
    assert partial.split()[0] in screen


def test_keys_pressed_while_the_model_loads_wait_for_the_prompt(start: Start, slow: Path) -> None:
    terminal = start(slow, "-n", 2, before="eager question")
    screen = terminal.wait(lambda screen: screen.endswith(">>> eager question"))
    assert screen.count("eager") == 1


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(start: Start, slow: Path, tmp_path: Path) -> None:
    terminal = start(slow, "-d", "none", "--no-copy", "--ctx", 8192)
    terminal.line("hat")
    terminal.wait_answer("hat")
    terminal.keys("C-c")
    terminal.wait("stopped]")
    terminal.wait_prompt()
    said = terminal.conversation(tmp_path / "said.json")
    assert said[0] == ("user", "hat")
    assert len(said[1][1]) > 10
    terminal.paste("the thin hat " * 500)
    terminal.keys("Enter")
    terminal.wait(lambda screen: screen.endswith("…"))  # it reads
    terminal.keys("C-c")
    terminal.wait("the question is taken back")
    terminal.wait_prompt()
    assert terminal.conversation(tmp_path / "said.json") == said
    terminal.keys("C-c")
    terminal.wait("Ctrl-C once more")
    terminal.keys("C-c")
    terminal.wait("exit=0")


def test_ctrl_c_during_an_answer_keeps_what_was_typed_ahead(start: Start, slow: Path) -> None:
    terminal = start(slow, "-d", "none", "--no-copy", "--ctx", 8192)
    terminal.line("hat")
    terminal.wait_answer("hat")
    terminal.keys("a", "h", "e", "a", "d")
    terminal.keys("C-c")
    screen = terminal.wait(lambda screen: screen.endswith(">>> ahead"))
    assert "stopped]" in screen


@pytest.mark.parametrize("end", ["C-c", "C-d", "hangup"])
def test_a_conversation_that_was_left_is_taken_up_again(
    start: Start, quick: Path, private_folders: Path, end: str, tmp_path: Path
) -> None:
    terminal = start(quick, "-n", 3, "--system", "Be brief.")
    terminal.line("the first question")
    terminal.wait(STATUS)
    terminal.wait_prompt()
    said = terminal.conversation(tmp_path / "said.json")
    kept = private_folders / "edgellm" / "conversation.json"
    assert not kept.exists()
    if end == "hangup":
        terminal.tmux("kill-session")
    else:
        terminal.keys(end, end) if end == "C-c" else terminal.keys(end)
        terminal.wait("exit=0")
    until = time.monotonic() + 60
    while not kept.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    again = start(quick, "-n", 3, "--resume")
    assert "2 messages from the conversation left last: the conversation goes on" in again.screen().replace("\n", " ")
    assert again.conversation(tmp_path / "again.json") == said
    again.line("/system")
    again.wait("system prompt: Be brief.")


def test_a_thought_is_dim_and_apart_from_the_answer(start: Start, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '<think>' }}{# </think> #}"
    model = write_tiny(tmp_path / "thinks.gguf", chat_template=template)
    ask = (model, "-d", "none", "-n", 40, "--think-budget", 12)
    terminal = start(*ask)
    terminal.line("hat")
    terminal.wait("12 of ")
    lines = terminal.screen("-e").splitlines()
    shown = lines[next(i for i, line in enumerate(lines) if line.rstrip().endswith("hat")) + 1 :]
    assert shown[0].startswith("\033[2m")
    assert "" in [line.strip("\033[0m ") for line in shown[:4]]  # what follows is apart
    terminal = start(*ask, NO_COLOR="1")
    terminal.line("hat")
    screen = terminal.wait("12 of ")
    assert screen.index("[thought]") < screen.index("[end of thought]")
    terminal.line("/set think off")
    terminal.wait("no switch for thinking")


def test_ctrl_c_right_behind_a_question_takes_it_back(start: Start, slow: Path) -> None:
    terminal = start(slow, "-d", "none", "--no-copy", "--ctx", 8192)
    terminal.keys("h", "a", "t", "Enter", "C-c", "x", "y")  # the editor reads them in one go
    screen = terminal.wait(lambda screen: screen.endswith(">>> xy"))
    assert "the question is taken back" in screen or "stopped]" in screen
    terminal.keys("C-u")
    terminal.wait_prompt()
    assert "Ctrl-C once more" not in terminal.screen()


def test_ctrl_c_at_any_moment_around_the_prompt_is_quiet(start: Start, quick: Path) -> None:
    terminal = start(quick, "-d", "none", "--no-copy", "-n", 1)
    for i in range(24):
        terminal.line("hat")
        time.sleep(0.002 * i)
        terminal.keys("C-c")
        terminal.wait_prompt()
        terminal.line("/help")  # two on an empty line would leave
        terminal.wait("keep the conversation")
        terminal.wait_prompt()
        terminal.keys("C-l")
        terminal.wait(lambda screen: screen.strip() == ">>>")
    assert "exception" not in terminal.screen("-S", "-2000").lower()


def test_messages_of_several_lines_arrive_as_they_were_written(start: Start, quick: Path, tmp_path: Path) -> None:
    terminal = start(quick, "-n", 2)
    terminal.line('"""')
    terminal.line("  fenced")
    terminal.line("")
    terminal.line('lines"""')
    terminal.wait(lambda screen: screen.count(STATUS) == 1)
    terminal.paste("pasted\n\tlines")
    terminal.keys("M-Enter")
    terminal.line("and one more")
    terminal.wait(lambda screen: screen.count(STATUS) == 2)
    terminal.line('"""on one line"""')
    terminal.wait(lambda screen: screen.count(STATUS) == 3)
    said = terminal.conversation(tmp_path / "said.json")
    assert [content.expandtabs(4) for role, content in said if role == "user"] == [
        "  fenced\n\nlines",
        "pasted\n    lines\nand one more",
        "on one line",
    ]


def test_the_window_may_change_its_size_at_any_time(start: Start, slow: Path, tmp_path: Path) -> None:
    terminal = start(slow, "-d", "none", "--no-copy", "-n", 80)
    question = "words that go on and on until no window of sixty columns holds them in one line"
    terminal.tmux("send-keys", "-l", question)
    for n_columns in (60, 100, 41, 80):
        terminal.resize(n_columns, 24)
        terminal.wait(lambda screen: "".join(question.split()) in "".join(screen.split()))  # wherever lines break
    terminal.keys("Enter")
    terminal.wait("…")
    terminal.resize(50, 12)
    terminal.resize(120, 30)
    terminal.wait(STATUS)
    terminal.wait_prompt()
    assert terminal.conversation(tmp_path / "said.json")[0] == ("user", question)


def test_a_real_conversation_is_saved_loaded_and_gone_on_with(start: Start, smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "said.json"
    terminal = start(smollm2_path, "--draft", smollm2_path, "--draft-tokens", 4, "-n", 24)
    terminal.line("Tell me three facts about the moon.")
    assert "moon" in terminal.wait(STATUS).split("facts about the moon.")[-1]
    said = terminal.conversation(path)
    terminal.line("/clear")
    terminal.wait("is forgotten")
    terminal.line(f"/load {path}")
    terminal.wait("2 messages from")
    terminal.line("And the sun?")
    terminal.wait(lambda screen: screen.count(STATUS) == 2)
    terminal.line("/stats")
    terminal.wait("by model")
    assert terminal.conversation(path)[:3] == [*said, ("user", "And the sun?")]
    terminal.keys("C-d")
    terminal.wait("exit=0")


def test_lines_are_remembered_for_their_owner_alone_and_commands_are_completed(
    start: Start, quick: Path, private_folders: Path
) -> None:
    terminal = start(quick, "-n", 2)
    terminal.line("the first question")
    terminal.wait(STATUS)
    terminal.line("/nonsense")
    terminal.wait("error: there is no command /nonsense: /help lists them")
    terminal.keys("/st")
    terminal.wait("show what the last answer cost")  # the menu
    terminal.keys("Tab")
    terminal.wait(">>> /stats")
    terminal.keys("C-c", "C-d")
    terminal.wait("exit=0")
    history = private_folders / "edgellm" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+the first question\n" in history.read_text()


def test_colour_and_figures_can_be_refused(start: Start, quick: Path) -> None:
    terminal = start(quick, "-n", 2, NO_COLOR="1")
    terminal.line("hat")
    terminal.wait(STATUS)
    assert "\033[2m" not in terminal.screen("-e")
    terminal = start(quick, "-n", 2)
    terminal.line("hat")
    terminal.wait(STATUS)
    assert "\033[2m" in terminal.screen("-e")
    terminal = start(quick, "-n", 2, EDGELLM_QUIET="1")
    assert terminal.screen() == ">>>"
    terminal.line("hat")
    assert STATUS not in terminal.wait_prompt()
