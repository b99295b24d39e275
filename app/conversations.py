"""Conversations as files: what was said, by which models, and the answers' own token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile
    from edgellm.runtime.text.template import Message
    from edgellm.runtime.text.vocabulary import Vocabulary

FORMAT, VERSION = "edgellm conversation", 1
MAX_BYTES = 64 * 2**20
MAX_KEPT_BYTES = 4 * 2**20  # of a conversation that nobody saved


def kept_path() -> Path:
    """Where the conversation that was left last is kept."""
    from edgellm.memory.folders import home

    return home() / "conversation.json"


class BadConversation(ValueError):
    """A file that is no conversation of ours; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    system: str | None
    messages: tuple[Message, ...]
    target: str  # the name of the model that answered


def save(
    path: Path,
    messages: Sequence[Message],
    *,
    system: str | None,
    target: ModelFile,
    draft: ModelFile | None,
    vocabulary: Vocabulary,
) -> None:
    """Write the file whole or not at all, for its owner's eyes only.

    Raises:
        BadConversation: the name is taken by a file that is none of ours.
        OSError: the disk.
    """
    if path.exists():
        try:
            _parse(path)
        except BadConversation as error:
            raise BadConversation(f"{path} is there and is no conversation: choose another name") from error
    _write(path, _content(messages, system=system, target=target, draft=draft, vocabulary=vocabulary))


def keep(
    path: Path,
    messages: Sequence[Message],
    *,
    system: str | None,
    target: ModelFile,
    draft: ModelFile | None,
    vocabulary: Vocabulary,
) -> None:
    """`save` to a file of our own, whatever it holds; the oldest turns are left out where it would grow too large.

    Raises:
        OSError: the disk, or another process that holds the file.
    """
    from edgellm.runtime.learning.files import alone, private_folder

    while True:
        content = _content(messages, system=system, target=target, draft=draft, vocabulary=vocabulary)
        if len(content) <= MAX_KEPT_BYTES or not messages:
            break
        messages = messages[max(2, len(messages) // 4 * 2) :]  # whole questions with their answers
    private_folder(path.parent)
    with alone(path):
        _write(path, content)


def _content(
    messages: Sequence[Message],
    *,
    system: str | None,
    target: ModelFile,
    draft: ModelFile | None,
    vocabulary: Vocabulary,
) -> bytes:
    content = {
        "format": FORMAT,
        "version": VERSION,
        "target": {"name": target.name, "sha256": target.sha256, "vocabulary": vocabulary.fingerprint()},
        "draft": {"name": draft.name, "sha256": draft.sha256} if draft else None,
        "system": system,
        "messages": [_message(message) for message in messages],
    }
    # A name that is no UTF-8 becomes an escape, which JSON has.
    return json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _write(path: Path, content: bytes) -> None:
    from edgellm.memory import files

    files.write(path, content, private=True)


def read(path: Path, vocabulary: Vocabulary) -> Conversation:
    """A conversation from a file that anybody may have written.

    Token ids are taken over only where they are of the same vocabulary, hold no special token and spell the very text
    that is beside them; elsewhere the text counts.

    Raises:
        BadConversation: the file is none.
        OSError: the file cannot be read.
    """
    from edgellm.runtime.text.template import Message

    content = _parse(path)
    same = content["target"].get("vocabulary") == vocabulary.fingerprint()
    messages = [
        Message(
            message["role"],
            message["content"],
            _ids(message.get("tokens"), message["content"], vocabulary) if same else None,
            message.get("reasoning"),
        )
        for message in content["messages"]
    ]
    return Conversation(content["system"], tuple(messages), str(content["target"].get("name")))


def _message(message: Message) -> dict[str, Any]:
    # Ids are read again only where they spell the text, and with a thought they spell that too.
    keeps_ids = message.tokens is not None and message.reasoning is None
    ids = {"tokens": list(message.tokens or ())} if keeps_ids else {}
    thought = {"reasoning": message.reasoning} if message.reasoning is not None else {}
    return {"role": message.role, "content": message.content, **thought, **ids}


def _parse(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadConversation(f"{path} is no file") if path.exists() else BadConversation(f"there is no file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise BadConversation(f"{path} is too large for a conversation")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check(content)
    except (ValueError, RecursionError) as error:
        why = error if isinstance(error, BadConversation) else "it is not JSON in UTF-8"
        raise BadConversation(f"{path} is no conversation: {why}") from error
    assert isinstance(content, dict)
    return content


def _check(content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadConversation(f'it does not say "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise BadConversation(f"its version is {str(content.get('version'))[:20]!r} and this program reads {VERSION}")
    if not isinstance(content.get("target"), dict) or not isinstance(content.get("messages"), list):
        raise BadConversation("target or messages are missing")
    if content.setdefault("system", None) is not None and not _is_text(content["system"]):
        raise BadConversation("its system prompt is no text")
    for i, message in enumerate(content["messages"]):
        role = "user" if i % 2 == 0 else "assistant"
        if not isinstance(message, dict) or message.get("role") != role or not _is_text(message.get("content")):
            raise BadConversation(f"message {i + 1} is not one of the {role}'s with a text as content")
        if message.get("reasoning") is not None and not _is_text(message["reasoning"]):
            raise BadConversation(f"the thought of message {i + 1} is no text")
    if len(content["messages"]) % 2:
        raise BadConversation("its last question has no answer")


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _ids(value: Any, text: str, vocabulary: Vocabulary) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    if not all(type(token) is int and 0 <= token < vocabulary.n_tokens for token in value):
        return None
    plain = all(vocabulary.kinds[token] in ("normal", "byte") and token not in vocabulary.control for token in value)
    return tuple(value) if plain and vocabulary.decode(value) == text.encode() else None
