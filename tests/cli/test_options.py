"""Every option is declared once, and every option of every command has its environment variable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edgellm.cli import _options as opt
from edgellm.cli._variables import FORMER, OWN, Command, Group, long_name, variable
from edgellm.cli.main import app

ROOT = typer.main.get_command(app)


def commands(command: Any = ROOT, *path: str) -> Iterator[tuple[str, Any]]:
    """(words, command) of the program, its commands and theirs."""
    yield " ".join(path), command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *path, name)


COMMANDS = dict(commands())
OPTIONS = [
    (words, option)
    for words, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option"
]
IDS = [f"{words} --{long_name(option)}".strip() for words, option in OPTIONS]
# Printed, and the program ends.
WITHOUT = {"version", "install-completion", "show-completion"}
# Options whose name means another thing in another command, and why.
DIFFERENT: dict[str, dict[str, str]] = {
    "ctx": {"imatrix": "tokens of a chunk: its least and its most are those of a pass, and it has a default"},
    "draft": {
        "adapt": "there has to be one",
        "bench": "several are compared, and `copy` is one",
        "export": "a checkpoint to make files of, and `self`",
    },
    "draft-quant": {"bundle": "one type of those that an export made"},
    "format": {"bundle": "what the export must be of"},
    "host": {"worker": "there is no key that would protect it"},
    "max-tokens": {"imatrix": "tokens of a text that is read: no less than a chunk's least"},
    "device": {"worker": "what computes there, and no place to plan for"},
    "mem": dict.fromkeys(("adapt", "worker"), "of this program, and not of a device"),
    "measure": {"doctor": "on by default, so that it has a --no-measure; it times the machine, not a pair"},
    "output": dict.fromkeys(("adapt", "bundle", "export", "imatrix", "plan"), "what is written differs"),
    "prompts": {"adapt": "of forms that a benchmark has not, and answered instead of timed"},
    "quant": {"bundle": "one type of those that an export made"},
}


def test_the_walk_finds_the_commands() -> None:
    assert {"", "chat", "plan", "export", "cache show", "cache import"} <= set(COMMANDS)
    assert len(OPTIONS) > 100


def test_every_command_is_of_the_class_that_gives_variables() -> None:
    for words, command in COMMANDS.items():
        if command.params or words:
            assert isinstance(command, (Command, Group)) or words == "cache", words


@pytest.mark.parametrize(("words", "option"), OPTIONS, ids=IDS)
def test_every_option_has_its_variable_by_the_rule(words: str, option: Any) -> None:
    name, command = long_name(option), words.rpartition(" ")[2]
    if name in WITHOUT:
        assert variable(command, option) is option.envvar is None
        return
    own = name in OWN.get(command, ())
    expected = "_".join(["EDGELLM", *([command] if own else []), name]).replace("-", "_").upper()
    told = [option.envvar] if isinstance(option.envvar, str) else option.envvar
    assert told[0] == expected
    former = FORMER.get(command, {}).get(name)
    assert told[1:] == ([f"EDGELLM_{former.replace('-', '_').upper()}"] if former else [])
    assert not option.show_envvar  # one sentence says the rule
    assert "EDGELLM_" in COMMANDS[words].epilog


def test_no_variable_means_two_things() -> None:
    """Neither a variable that is no option's, nor the same one for options of different names."""
    names = defaultdict(set)
    for words, option in OPTIONS:
        if found := variable(words.rpartition(" ")[2], option):
            names[found].add(long_name(option))
    assert {name: found for name, found in names.items() if len(found) > 1} == {}
    others = {"HOME", "CATALOGUE", "KERNELS", "EXTRA_BUFFERS", "ONNX_PROVIDER", "DEBUG", "MODEL"}
    assert not {f"EDGELLM_{name}" for name in others} & set(names)


def shape(option: Any) -> tuple[Any, ...]:
    """What must agree wherever an option of this name stands; defaults may differ."""
    kind = option.type
    short = sorted(name for name in option.opts if not name.startswith("--"))
    return (
        type(kind).__name__,
        getattr(kind, "min", None),
        getattr(kind, "max", None),
        option.multiple,
        option.is_flag,
        sorted(option.secondary_opts),
        short,
        option.metavar,
        option.help,
    )


def test_an_option_is_the_same_in_every_command() -> None:
    by_name: dict[str, dict[str, tuple[Any, ...]]] = defaultdict(dict)
    for words, option in OPTIONS:
        by_name[long_name(option)][words] = shape(option)
    for name, found in by_name.items():
        same = {words: it for words, it in found.items() if words not in DIFFERENT.get(name, {})}
        assert len({repr(it) for it in same.values()}) <= 1, (name, same)


def test_every_exception_from_that_is_needed() -> None:
    shapes = {(words, long_name(option)): shape(option) for words, option in OPTIONS}
    for name, reasons in DIFFERENT.items():
        for words in reasons:
            others = [it for (where, what), it in shapes.items() if what == name and where != words]
            assert shapes[words, name] not in others


def test_a_short_letter_means_one_option() -> None:
    for words, command in COMMANDS.items():
        letters = [name for option in command.params for name in option.opts if len(name) == 2 and name[0] == "-"]
        assert len(letters) == len(set(letters)), words


def parsed(words: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, Any]:
    """What a command's own parser makes of arguments and variables."""
    for name, value in variables.items():
        monkeypatch.setenv(f"EDGELLM_{name}", value)
    context = COMMANDS[words].make_context(words, list(arguments))
    for name in variables:
        monkeypatch.delenv(f"EDGELLM_{name}")
    return dict(context.params)


@pytest.mark.parametrize(
    ("words", "arguments", "variables", "typed"),
    [
        ("chat", [], {"TOP_K": "20"}, ["--top-k", "20"]),
        ("chat", [], {"TEMP": "0.5"}, ["--temp", "0.5"]),
        ("chat", [], {"SEED": "-1"}, ["--seed", "-1"]),
        ("chat", [], {"CTX": "512"}, ["-c", "512"]),
        ("chat", [], {"SYSTEM": "Be brief."}, ["--system", "Be brief."]),
        ("chat", [], {"NO_LEARN": "true"}, ["--no-learn"]),
        ("chat", [], {"NO_LEARN": "0"}, []),
        ("chat", [], {"JSON": "1"}, ["--json"]),
        ("chat", [], {"THINK": "1"}, ["--think"]),
        ("chat", [], {"THINK": "false"}, ["--no-think"]),
        ("chat", [], {"PLAN": "plan.json"}, ["--plan", "plan.json"]),
        ("chat", [], {"STOP": "END OF"}, ["--stop", "END OF"]),
        ("chat", [], {"STOP": '"END OF" "\\n"'}, ["--stop", "END OF", "--stop", "\\n"]),
        ("chat", [], {"KV": "Q8_0"}, ["--kv", "q8_0"]),
        ("chat", [], {"BUDGET": "2GB"}, ["--budget", "2GB"]),
        ("chat", [], {"MODEL": "a"}, ["a"]),
        ("bench", [], {"MODEL": "a", "DRAFT": "b"}, ["a", "--draft", "b"]),
        ("bench", [], {"DRAFT": '"a" "copy"'}, ["--draft", "a", "--draft", "copy"]),
        ("bench", [], {"LORA": '"a b.gguf:2" "c"'}, ["--lora", "a b.gguf:2", "--lora", "c"]),
        ("bench", [], {"LIMIT": "3", "REPEAT": "2"}, ["--limit", "3", "--repeat", "2"]),
        ("check", [], {"MODEL": "a", "DRAFT": "b"}, ["a", "b"]),
        ("check", ["a"], {"DRAFT": "b", "JSON": "yes"}, ["a", "b", "--json"]),
        ("plan", ["m"], {"DRAFT_TOKENS": "5"}, ["m", "-k", "5"]),
        ("plan", ["m"], {"N_DRAFT": "5"}, ["m", "--n-draft", "5"]),
        ("plan", ["m"], {"N_DRAFT": "5"}, ["m", "--n-draft=5"]),
        ("plan", ["m"], {"EXPLAIN": "on", "PLAN_OUTPUT": "x.png"}, ["m", "--explain", "--output", "x.png"]),
        ("export", ["m"], {"EXPORT_DRAFT": "self", "TRIM_VOCAB": "0.5"}, ["m", "-d", "self", "--trim-vocab", "0.5"]),
        ("export", ["m"], {"DRAFT": "other", "OUTPUT": "folder"}, ["m"]),
        ("export", ["m"], {"VERIFY": "no", "QUANT": "Q8_0"}, ["m", "--no-verify", "--quant", "Q8_0"]),
        ("imatrix", ["m"], {"IMATRIX_TEXT": '"a" "b c"'}, ["m", "--text", "a", "--text", "b c"]),
        ("imatrix", ["m", "-f", "x"], {"CTX": "4096", "IMATRIX_CTX": "64"}, ["m", "-f", "x", "--ctx", "64"]),
        ("pull", ["m"], {"OFFLINE": "1", "TOKEN": "t"}, ["m", "--offline", "--token", "t"]),
        ("serve", [], {"PORT": "0", "HOST": "::1", "QUEUE": "3"}, ["--port", "0", "--host", "::1", "--queue", "3"]),
        ("serve", [], {"API_KEY_FILE": "k", "PARALLEL": "2"}, ["--api-key-file", "k", "--parallel", "2"]),
        ("serve", [], {"ALIAS": '"a" "b"', "ORIGIN": "o"}, ["--alias", "a", "--alias", "b", "--origin", "o"]),
        ("serve", [], {"MODEL": "a b.gguf"}, ["a b.gguf"]),
        ("serve", [], {"MODEL": '"a b" "c"', "KEEP_ALIVE": "30s"}, ["a b", "c", "--keep-alive", "30s"]),
        ("list", [], {"ALL": "1"}, ["--all"]),
        ("show", ["m"], {"TEMPLATE": "1"}, ["m", "--template"]),
        ("rm", ["m"], {"YES": "1"}, ["m", "--yes"]),
        ("devices", [], {"HERE": "t", "SOURCES": "y"}, ["--here", "--sources"]),
        ("doctor", [], {"MEASURE": "0"}, ["--no-measure"]),
        ("cache show", [], {"JSON": "1"}, ["--json"]),
    ],
    ids=str,
)
def test_a_variable_does_what_the_option_does(
    words: str, arguments: list[str], variables: dict[str, str], typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parsed(words, arguments, monkeypatch, **variables) == parsed(words, typed, monkeypatch)


def test_variables_of_the_program_itself_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_QUIET", "1")
    assert ROOT.make_context("edgellm", ["list"]).params["quiet"]


@pytest.mark.parametrize(
    ("words", "arguments", "variables", "expected"),
    [
        ("chat", ["--jsonl"], {"JSON": "1"}, {"json_": False, "jsonl": True}),
        (
            "plan",
            ["m", "--mem", "6GB"],
            {"BUDGET": "2GB", "DEVICE": "x"},
            {"mem": "6GB", "budget": None, "device": None},
        ),
        ("chat", ["--plan", "p"], {"CTX": "512", "KV": "f16", "DRAFT_TOKENS": "3"}, {"ctx": None, "kv": None}),
        ("chat", ["--ctx", "512"], {"PLAN": "p"}, {"ctx": 512, "plan": None}),
        ("chat", ["--top-k", "3"], {"TOP_K": "4"}, {"top_k": 3}),
        ("chat", ["--plan", "p"], {"MODEL": "m", "DRAFT": "d", "LORA": "l"}, {"model": None, "draft": None}),
        ("bench", ["--plan", "p"], {"MODEL": "m", "DRAFT": "d"}, {"model": None, "draft": []}),
        ("chat", ["m", "--draft", "d"], {"PLAN": "p"}, {"model": "m", "draft": "d"}),
    ],
)
def test_what_is_typed_goes_before_what_is_set(
    words: str,
    arguments: list[str],
    variables: dict[str, str],
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = parsed(words, arguments, monkeypatch, **variables)
    assert found | expected == found


@pytest.mark.parametrize(
    ("command", "name", "value", "why"),
    [
        ("chat -p x", "EDGELLM_TOP_K", "many", "is not a valid"),
        ("chat -p x", "EDGELLM_TOP_P", "7", "top_p 7.0 is out of range: 1e-09 to 1"),
        ("chat -p x", "EDGELLM_CTX", "3", "is not in the range"),
        ("chat -p x", "EDGELLM_NO_LEARN", "perhaps", "is not a valid boolean"),
        ("chat -p x", "EDGELLM_STOP", '"open', "begins with a quote"),
        ("chat -p x", "EDGELLM_KV", "q9", "is no type of the KV cache"),
        ("chat -p x", "EDGELLM_ON_FULL", "burst", "is no policy for a full context"),
        ("chat -p x", "EDGELLM_BUDGET", "lots", "is not a size"),
        ("bench", "EDGELLM_LORA", '"open', "begins with a quote"),
        ("plan m", "EDGELLM_N_DRAFT", "-1", "is not in the range"),
        ("export m", "EDGELLM_FORMAT", "zip", "is no format: take gguf or onnx"),
        ("imatrix m -f x", "EDGELLM_IMATRIX_CTX", "1", "is not in the range"),
        ("list", "EDGELLM_VERBOSE", "perhaps", "is not a valid boolean"),
    ],
)
def test_a_bad_value_names_its_variable(
    command: str, name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, command.split(), env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})
    assert done.exit_code == 2, done.output
    told = " ".join(done.output.replace("│", " ").split())
    assert f"Invalid value for {name}: " in told
    assert why in told


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--format", "onnx", "--draft-head", "Q4_0"], "--draft-head goes with --format gguf"),
        (["--format", "onnx", "--trim-input"], "--trim-input goes with --format gguf"),
        (["--format", "onnx", "--mem", "6GB"], "--mem goes with --format gguf"),
        (["--format", "onnx", "--ctx", "512"], "--ctx goes with --format gguf"),
        (["--format", "onnx", "--draft", "self"], "--draft self goes with --format gguf"),
        (["--exporter", "optimum"], "--exporter goes with --format onnx"),
        (["--base", "x", "--trim-input"], "--trim-input does not go with an adapter"),
    ],
)
def test_an_export_refuses_what_its_format_would_ignore(arguments: list[str], refused: str) -> None:
    done = CliRunner().invoke(app, ["export", "nobody/nothing", *arguments], env={"TERMINAL_WIDTH": "300"})
    assert done.exit_code == 2, done.output
    assert refused in " ".join(done.output.replace("│", " ").split())


def test_what_is_set_for_all_exports_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_TRIM_INPUT", "1")
    monkeypatch.setenv("EDGELLM_CONVERTER", "/nowhere")
    done = CliRunner().invoke(app, ["export", "nobody/nothing", "--format", "onnx"])
    assert "out of reach" in str(done.exception)


def test_the_sampling_options_are_the_tables_rows() -> None:
    from edgellm.memory.sampling_parameters import PARAMETERS

    chat = {long_name(option): option for words, option in OPTIONS if words == "chat"}
    for row in PARAMETERS.values():
        option = chat[row.option]
        assert (option.help, option.metavar, option.default) == (row.help, row.metavar, row.default)
        assert option.rich_help_panel == opt.SAMPLING


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from edgellm.cli.main import app\n"
        "try: app(['chat', '--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps([name for name in sys.modules if '.' not in name]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    heavy = {"numpy", "llama_cpp", "huggingface_hub", "httpx2", "onnxruntime", "yaml", "jinja2", "tokenizers", "psutil"}
    assert not heavy & set(json.loads(done.stderr.splitlines()[-1]))
