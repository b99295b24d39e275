"""A job of the converter's environment on a folder that may be hostile: runs llama.cpp's `convert_hf_to_gguf.py`, or
computes logits with transformers.

Run as a script by that environment's Python, which has torch and transformers and not this package; so nothing of the
package is imported here. It is one file: with its folder on the path, the modules beside it would stand where a library
expects its own. A job is one line of JSON on stdin; stdout takes progress and the answer, an object a line.

The converter asks transformers to trust the code that comes with a model. Here nothing of a model's folder is run,
unpickled, or looked for in the network.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import runpy
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any


class Refused(Exception):
    """What a model's folder asked for and does not get; the message is a clause."""


_CODE = "it needs Python code of its own, which is not run"
_guarded: list[str] = []  # folders whose files are no programs; none while the libraries are loaded


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which cannot be taken back: the last line of defence, whatever way code or the network is
    reached.
    """
    if not _guarded:
        return
    if event == "socket.connect" or event == "socket.getaddrinfo":
        raise Refused("it asks for the network")
    if event == "pickle.find_class":
        raise Refused("it holds pickled objects, which are programs")
    if event in {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}:
        raise Refused("it asks to start a program")
    if event in {"exec", "compile"}:
        code = arguments[0] if event == "exec" else arguments[1]
        path = getattr(code, "co_filename", code)
        if isinstance(path, (str, bytes)):
            names = {os.path.abspath(os.fsdecode(path)), os.path.realpath(os.fsdecode(path))}
            if any(name.startswith(tuple(_guarded)) for name in names):
                raise Refused(_CODE)


def _refuse_code(folder: str) -> None:
    """From here on nothing of the folder is run, whoever asks to trust it. Call it when the libraries are loaded."""
    caches: list[str] = []
    with contextlib.suppress(ImportError):
        import transformers.dynamic_module_utils as dynamic

        def resolve(trust: Any, name: Any, has_local_code: bool, has_remote_code: bool, *_: Any, **__: Any) -> bool:
            if has_remote_code and not has_local_code:
                raise Refused(_CODE)
            return False

        def refuse(*_: Any, **__: Any) -> Any:
            raise Refused(_CODE)

        patched: dict[str, Any] = {"resolve_trust_remote_code": resolve}
        patched |= dict.fromkeys(
            ("get_class_from_dynamic_module", "get_class_in_module", "get_cached_module_file"), refuse
        )
        for name, replacement in patched.items():
            original = getattr(dynamic, name)
            for module in list(sys.modules.values()):  # others imported it by name
                if vars(module).get(name) is original:
                    setattr(module, name, replacement)
        caches = [dynamic.HF_MODULES_CACHE]  # where a model's code is copied to before it runs
    origins = {os.path.dirname(os.path.realpath(os.path.join(folder, name))) for name in os.listdir(folder)}
    _guarded.extend(os.path.join(path, "") for path in (os.path.abspath(folder), os.path.realpath(folder), *origins))
    _guarded.extend(os.path.join(os.path.realpath(path), "") for path in caches)


class _Log(logging.Handler):
    """What the converter logs: steps for whoever watches, and its last complaint."""

    def __init__(self, pipe: IO[str]) -> None:
        super().__init__()
        self.complaint = ""
        self._pipe, self._n_tensors = pipe, 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR and text.strip():
            self.complaint = text.strip()
        elif re.search(r" --> \w+, shape = ", text):
            self._n_tensors += 1
            _say(self._pipe, {"event": "tensor", "n_tensors": self._n_tensors})


def _watch_writing(pipe: IO[str]) -> None:
    """Report the converter's bar, which counts bytes."""
    import tqdm

    class Bar(tqdm.tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **(options | {"file": sys.stderr, "disable": True}))
            self.n_bytes, self.n_all, self.told = 0, options.get("total") or 0, 0

        def update(self, n: float | None = 1) -> None:
            self.n_bytes += int(n or 0)
            if self.n_all and (self.n_bytes - self.told) * 100 >= self.n_all:  # a hundred lines at most
                self.told = self.n_bytes
                _say(pipe, {"event": "written", "n_bytes": self.n_bytes, "n_all_bytes": self.n_all})

    tqdm.tqdm = Bar


def _name_pre_tokenizer(base: Any, known: str | None) -> None:
    """The converter knows a pre-tokenizer by what one vocabulary makes of one text; `known` is what its rules say."""
    ask = base.TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(ask(self, tokenizer))
        except NotImplementedError:
            if known is None:
                raise Refused(
                    "its tokenizer splits text in a way that llama.cpp's script does not recognise by its test text, "
                    "nor edgellm by its rules"
                ) from None
            return known

    base.TextModel.get_vocab_base_pre = get_vocab_base_pre


def convert(job: dict[str, Any], pipe: IO[str]) -> dict[str, Any]:
    """The folder `source` as the GGUF file `output`, by the script of that path."""
    script = Path(job["script"]).resolve()
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
    log = _Log(pipe)
    logging.getLogger().addHandler(log)
    with contextlib.suppress(ImportError):
        _watch_writing(pipe)
        _load_libraries()
    if (script.parent / "conversion").is_dir():
        _mend(job, pipe)
    _refuse_code(job["source"])
    sys.argv = [str(script), job["source"], "--outfile", job["output"], "--outtype", job["type"]]
    sys.argv += ["--model-name", job["name"]]
    if (script.parent / "conversion").is_dir() and _lacks_draft_head(Path(job["source"])):
        sys.argv.append("--no-nextn")
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            said = ended.code if isinstance(ended.code, str) else log.complaint
            raise Refused(said or f"it ended with {ended.code}") from ended
    return {"done": True}


def _load_libraries() -> None:
    import torch  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401


def _mend(job: dict[str, Any], pipe: IO[str]) -> None:
    """What llama.cpp's script leaves out: pre-tokenizers by their rules, windows that nobody computes, further ends."""
    import gguf
    from conversion import base, granite

    _name_pre_tokenizer(base, job.get("pre_tokenizer"))
    get_attn_layers = granite.GraniteHybridModel.get_attn_layers

    def of_older_names(self: Any) -> Any:
        self.hparams["layer_types"] = _older_names(self.hparams.get("layer_types"))
        return get_attn_layers(self)

    granite.GraniteHybridModel.get_attn_layers = of_older_names
    write = gguf.GGUFWriter.write_header_to_file  # which counts the entries

    def write_header_to_file(self: Any, path: Path | None = None) -> None:
        entries = self.kv_data[0]
        context = entries.get(f"{self.arch}.context_length")
        if job.get("window") and context is not None:
            context.value = min(int(context.value), int(job["window"]))
        _add_pattern(self, entries, job.get("slides"))
        _add_ends(entries, job["ends"], gguf)
        write(self, path)

    gguf.GGUFWriter.write_header_to_file = write_header_to_file


def _add_pattern(writer: Any, entries: dict[str, Any], slides: list[bool] | None) -> None:
    """Which layers look back only so far: the script leaves that to llama.cpp for some families, which then takes every
    second or fourth, whatever config.json says.
    """
    arch = writer.arch
    window, context = (entries.get(f"{arch}.{key}") for key in ("attention.sliding_window", "context_length"))
    n_layers = entries.get(f"{arch}.block_count")
    if not slides or window is None or n_layers is None or int(n_layers.value) != len(slides):
        return
    if not any(slides) and context is not None:
        window.value = context.value  # llama.cpp wants some layer to slide; like this it sees everything too
    elif f"{arch}.attention.sliding_window_pattern" not in entries:
        writer.add_sliding_window_pattern(slides)


def _older_names(kinds: list[str] | None) -> list[str] | None:
    """Kinds of layers as the script compares them; transformers has renamed them since."""
    older = {"full_attention": "attention", "linear_attention": "mamba"}
    return [older.get(kind, kind) for kind in kinds] if kinds else kinds


def _lacks_draft_head(folder: Path) -> bool:
    """Whether the script would look for a head that drafts (MTP) and the checkpoint came without, as fine-tunes do."""
    from conversion import ModelType, get_model_architecture, get_model_class
    from conversion.base import ModelBase

    hparams = ModelBase.load_hparams(folder, False)
    try:
        kind = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    except NotImplementedError:
        return False  # the script says so itself
    names = _tensor_names(folder)
    if not kind.supports_mtp_export or not names:
        return False
    n_layers = int({**hparams, **(hparams.get("text_config") or {})}.get("num_hidden_layers") or 0)
    layers = [int(match[1]) for name in names if (match := re.search(r"\.layers\.(\d+)\.", name))]
    return not any(re.search(r"(^|\.)(mtp|nextn)", name) for name in names) and max(layers, default=0) < n_layers


def _tensor_names(folder: Path) -> list[str]:
    for index in folder.glob("*.index.json"):
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            return list(json.loads(file.read(n_bytes)))
    return []


def _add_ends(entries: dict[str, Any], ends: dict[str, list[Any]], gguf: Any) -> None:
    """All tokens that end an answer, under the names that llama.cpp has for them. It ends at some by their text, and at
    an ordinary one where none is named.
    """
    prefix, tokens = "tokenizer.ggml.", entries.get("tokenizer.ggml.tokens")
    if tokens is None:
        return
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in tokens.value]
    known = [token for token, text in enumerate(texts) if text in ends["known"]]
    further = [token for token in ends["ids"] if 0 <= token < len(texts)]
    if f"{prefix}eos_token_id" not in entries:
        spare = further or known or [token for token, kind in enumerate(_values(entries, "token_type")) if kind == 5]
        if not spare:
            raise Refused("no token is named at which an answer ends: write eos_token_id into generation_config.json")
        entries[f"{prefix}eos_token_id"] = gguf.GGUFValue(spare[0], gguf.GGUFValueType.UINT32)
    told = {int(entries[key].value) for name in ("eos", "eot", "eom") if (key := f"{prefix}{name}_token_id") in entries}
    further = [token for token in further if token not in told and token not in known]
    # The end of a turn is found by its text; naming another would take its place.
    places = ["eom"] if any(texts[token] in ends["turns"] for token in known) else ["eot", "eom"]
    places = [name for name in places if f"{prefix}{name}_token_id" not in entries]
    if len(further) > len(places):
        raise Refused(f"answers end at {len(further)} more tokens (eos_token_id) than a GGUF file has places for")
    for name, token in zip(places, further, strict=False):
        entries[f"{prefix}{name}_token_id"] = gguf.GGUFValue(token, gguf.GGUFValueType.UINT32)


def _values(entries: dict[str, Any], name: str) -> list[int]:
    value = entries.get(f"tokenizer.ggml.{name}")
    return [int(item) for item in value.value] if value is not None else []


def tokenizer(job: dict[str, Any], pipe: IO[str]) -> dict[str, Any]:
    """Load the tokenizer of a folder that has no weights yet, as the script will."""
    _load_libraries()
    _refuse_code(job["source"])
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(job["source"], local_files_only=True)
    return {"done": True}


def logits(job: dict[str, Any], pipe: IO[str]) -> dict[str, Any]:
    """The logits behind each of `tokens` by transformers, in float32, as the array file `output`.

    A model with an encoder reads the tokens there, and again, one place later, in its decoder.
    """
    import numpy as np
    import torch
    import transformers

    _load_libraries()
    _refuse_code(job["source"])
    torch.set_num_threads(job["n_threads"])
    config = transformers.AutoConfig.from_pretrained(job["source"], local_files_only=True)
    names = getattr(config, "architectures", None) or ["AutoModelForCausalLM"]
    kind = getattr(transformers, str(names[0]), None)
    if kind is None:
        raise Refused(f"transformers {transformers.__version__} does not have {names[0]}")
    _refuse_another_size(kind, config, Path(job["source"]))
    options = {"dtype": torch.float32, "local_files_only": True, "attn_implementation": "eager"}
    model, told = kind.from_pretrained(job["source"], **options, output_loading_info=True)
    if told["missing_keys"] or told.get("mismatched_keys"):
        lacking = sorted(map(str, told["missing_keys"] or told["mismatched_keys"]))
        raise Refused(f"transformers finds no weights for {lacking[0]} in it")
    tokens = torch.tensor([job["tokens"]])
    inputs = {"input_ids": tokens}
    if config.is_encoder_decoder:
        first = torch.full((1, 1), int(config.decoder_start_token_id or 0))
        inputs["decoder_input_ids"] = torch.cat([first, tokens[:, :-1]], dim=1)
    with torch.inference_mode():
        rows = model.eval()(**inputs, use_cache=False).logits[0]
    np.save(job["output"], rows.float().numpy(), allow_pickle=False)
    return {"done": True, "transformers": transformers.__version__}


def _refuse_another_size(kind: Any, config: Any, folder: Path) -> None:
    """Before memory is taken for a model that config.json makes far larger than the weights that are there."""
    import torch

    n_weights = 0
    with contextlib.suppress(Exception), torch.device("meta"):  # not every class can be made without its numbers
        n_weights = sum(parameter.numel() for parameter in kind(config).parameters())
    n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in {".safetensors", ".bin"})
    if n_weights > 2 * n_bytes:  # half a byte each is the least that is in use
        raise Refused(
            f"transformers makes {n_weights:,} weights of its config.json, and its files hold {n_bytes:,} bytes"
        )


def registry(job: dict[str, Any], pipe: IO[str]) -> dict[str, Any]:
    """What the script knows: class of config.json -> llama.cpp's name, whether transformers has it, and whether it
    takes more than text.
    """
    sys.path[:0] = [job["source"], str(Path(job["source"]) / "gguf-py")]
    import conversion
    import gguf
    import transformers

    conversion.load_all_models()
    classes = conversion.ModelBase._model_classes[conversion.ModelType.TEXT]
    return {
        "classes": {
            name: [
                gguf.MODEL_ARCH_NAMES[classes[name].model_arch],
                hasattr(transformers, name),
                name in conversion.MMPROJ_MODEL_MAP,
            ]
            for name in sorted(conversion.TEXT_MODEL_MAP)
            if name in classes
        }
    }


def packages(job: dict[str, Any], pipe: IO[str]) -> dict[str, Any]:
    """Versions of the packages that this Python has of `names`."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in job["names"]:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return {"packages": found}


_JOBS = {"packages": packages, "convert": convert, "logits": logits, "tokenizer": tokenizer, "registry": registry}


def _sentence(error: BaseException) -> str:
    """An exception as a clause; what was refused here is found behind whatever it became."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, Refused):
            return str(seen)
        if type(seen).__name__ == "UnpicklingError":  # whose own advice is to trust the file
            return "its weights are pickled objects other than tensors, which are programs: look for safetensors of it"
        seen = seen.__cause__ or seen.__context__
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:600]
    if not text and (frames := traceback.extract_tb(error.__traceback__)):
        text = f"{Path(frames[-1].filename).name} line {frames[-1].lineno}: {frames[-1].line}"
    plain = isinstance(error, (ValueError, NotImplementedError, RuntimeError, FileNotFoundError, ImportError))
    return text if plain and text else f"{type(error).__name__}{f': {text}' if text else ''}"


def _say(pipe: IO[str], what: dict[str, Any]) -> None:
    pipe.write(json.dumps(what) + "\n")
    pipe.flush()


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        os.read(0, 1)
    os._exit(1)


def main() -> int:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.addaudithook(_guard)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What the script prints goes to the log; the pipe is this program's own.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        answer = _JOBS[job["job"]](job, pipe)
    except BaseException as error:  # a converter can raise anything; the parent makes a sentence of it
        answer = {"error": _sentence(error)}
        traceback.print_exc()
    _say(pipe, answer)
    os._exit(1 if "error" in answer else 0)  # threads of the libraries may hang at the end


if __name__ == "__main__":
    main()
