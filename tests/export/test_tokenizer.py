"""The exported vocabulary cuts text exactly as the reference tokenizer does."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece_file import message, sentencepiece_model, setting
from vocabularies import (
    NAMES,
    NASTY,
    EngineVocabulary,
    reference_tokenizer,
    template,
    tokenizer_folder,
    vocabulary_gguf,
    write_vocabulary_gguf,
)

from edgellm.export.check.fidelity import NASTY as CHECKED
from edgellm.export.check.fidelity import check_tokens
from edgellm.export.read.tokenizer import read_vocabulary
from edgellm.export.read.tokenizer_facts import TokenizerError
from edgellm.memory.byte_encoder import byte_alphabet
from edgellm.memory.gguf import read_header

PARTS = [
    " ", "  ", "\n", "\n\n", "\t", "    ", "the", "Hello", "ing", "123", "7", ".", ",", "'s", "'LL", "é", "你好", "—",
    "def ", "_", "(", ")", "{", "}", "x", "<", ">", "|", "0", "🙂", "ß", "Ж", "\r\n", "’", "http://", "=", "==",
]  # fmt: skip
RANGES = [
    (32, 127),
    (0xA0, 0x250),
    (0x400, 0x500),
    (0x900, 0x980),
    (0x4E00, 0x5000),
    (0xAC00, 0xAE00),
    (0x1F300, 0x1F700),
]


def random_text(rng: random.Random) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        return "".join(chr(rng.randrange(*rng.choice(RANGES))) for _ in range(rng.randrange(1, 60)))
    if kind == 1:
        return "".join(rng.choice(PARTS) for _ in range(rng.randrange(1, 40)))
    return "".join(rng.choice(NASTY) for _ in range(rng.randrange(1, 4)))


def has_an_equal(name: str, text: str) -> bool:
    """False for the few texts that llama.cpp cannot cut as the reference does, whatever the file says."""
    if name == "qwen3" and "</s>" in text:  # llama.cpp takes every `</s>` for a control token; to Qwen it is text
        return False
    return name != "gemma3" or "\u2581" not in text  # written-out space signs beside spaces


@pytest.mark.parametrize("name", NAMES)
def test_5000_random_and_nasty_texts_are_cut_as_the_reference_cuts_them(name: str) -> None:
    engine, reference = EngineVocabulary(vocabulary_gguf(name)), reference_tokenizer(name)
    rng = random.Random(20260801)
    texts = NASTY + [random_text(rng) for _ in range(5000)]
    if name == "qwen3":  # its reference composes characters first, which llama.cpp leaves to the caller
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    texts = [text for text in texts if has_an_equal(name, text)]
    assert len(texts) > 4500
    for text in texts:
        for add_special in (False, True):
            expected = reference.encode(text, add_special_tokens=add_special).ids
            assert engine.encode(text, add_special=add_special) == expected, text


@pytest.mark.parametrize("name", NAMES)
def test_every_token_has_its_id_its_kind_and_its_place(name: str) -> None:
    reference, vocabulary = reference_tokenizer(name), read_vocabulary(tokenizer_folder(name))
    assert len(vocabulary.tokens) == max(reference.get_vocab().values()) + 1
    header = read_header(vocabulary_gguf(name))
    assert header.array("tokenizer.ggml.tokens") == vocabulary.tokens
    assert header.metadata.get("tokenizer.chat_template", "") == template(name)
    engine = EngineVocabulary(vocabulary_gguf(name))
    assert engine.n_tokens == len(vocabulary.tokens)


def test_a_vocabulary_is_filled_up_to_the_rows_of_the_model() -> None:
    vocabulary = read_vocabulary(tokenizer_folder("qwen3"), n_vocab=151_936)
    assert len(vocabulary.tokens) == 151_936
    assert vocabulary.tokens[-1] == b"[PAD151935]"
    with pytest.raises(TokenizerError, match="only 1,000 rows"):
        read_vocabulary(tokenizer_folder("qwen3"), n_vocab=1000)


def small_bpe(folder: Path, **model: object) -> Path:
    """A byte-level tokenizer of 256 bytes and two merges, as Hub files."""
    vocab = {sign: token for token, sign in enumerate(byte_alphabet())} | {"th": 256, "the": 257}
    document = {
        "added_tokens": [{"id": 258, "content": "<|end|>", "special": True, "normalized": False}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h", "th e"], **model},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


def test_a_fine_tune_with_another_vocabulary_keeps_its_pre_tokenizer(tmp_path: Path) -> None:
    folder = small_bpe(tmp_path / "tuned")
    vocabulary = read_vocabulary(folder)
    assert (vocabulary.pre, vocabulary.special_ids, vocabulary.add_bos) == ("gpt-2", {"eos": 258}, False)
    write_vocabulary_gguf(folder, tmp_path / "tuned.gguf")
    engine = EngineVocabulary(tmp_path / "tuned.gguf")
    assert engine.encode("the<|end|>") == [257, 258]


def test_an_unknown_way_of_splitting_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = small_bpe(tmp_path / "odd", ignore_merges=True)
    with pytest.raises(TokenizerError, match=r"--converter llama\.cpp"):
        read_vocabulary(folder)
    with pytest.raises(TokenizerError, match="type Unigram is not supported"):
        read_vocabulary(small_bpe(tmp_path / "unigram", type="Unigram"))


def test_tokenizer_model_alone_gives_the_same_vocabulary(tmp_path: Path) -> None:
    folder = tokenizer_folder("llama2")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(folder))
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 32_000}))
    vocabulary, expected = read_vocabulary(tmp_path), read_vocabulary(folder)
    assert vocabulary.tokens == [*expected.tokens, b"<pad>"]
    assert vocabulary.types[:-1] == expected.types
    assert (vocabulary.special_ids, vocabulary.add_bos) == (expected.special_ids, expected.add_bos)
    assert vocabulary.add_space_prefix
    write_vocabulary_gguf(tmp_path, tmp_path / "it.gguf")
    engine, reference = EngineVocabulary(tmp_path / "it.gguf"), reference_tokenizer("llama2")
    for text in NASTY:
        if "<pad>" not in text:
            assert engine.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_a_damaged_tokenizer_model_is_one_clear_error(tmp_path: Path) -> None:
    data = sentencepiece_model(tokenizer_folder("llama2"))
    (tmp_path / "tokenizer.model").write_bytes(data[: len(data) // 2 + 1])
    with pytest.raises(TokenizerError, match="damaged or truncated"):
        read_vocabulary(tmp_path)


def test_no_tokenizer_and_a_broken_one_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab"')
    with pytest.raises(TokenizerError, match="no valid JSON"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": [1], "merges": []}}')
    with pytest.raises(TokenizerError, match="damaged"):
        read_vocabulary(tmp_path)


def changed(folder: Path, edit: Callable[[dict[str, Any]], object], name: str = "tokenizer.json") -> Path:
    document = json.loads((folder / name).read_text())
    edit(document)
    (folder / name).write_text(json.dumps(document))
    return folder


def added(content: str, **flags: bool) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["added_tokens"].append({"id": 259, "content": content, **flags})


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "normalised by Lowercase"),
        (lambda d: d.update(normalizer={"type": "NFKC"}), "normalised by NFKC"),
        (lambda d: d.update(normalizer={"type": "Sequence", "normalizers": [{"type": "Strip"}]}), "by Strip"),
        (
            lambda d: d.update(normalizer={"type": "Replace", "pattern": {"String": "``"}, "content": '"'}),
            r"normalised by Replace \(\{'String': '``'\}\)",
        ),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "llama.cpp is not known to split"),
        (lambda d: d.update(post_processor={"type": "RobertaProcessing"}), "a post-processor RobertaProcessing"),
        (lambda d: d.update(decoder={"type": "WordPiece"}), "become text through WordPiece"),
        (lambda d: d["model"].update(dropout=0.1), "the tokenizer's model has dropout 0.1"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda d: d.update(vocabulary_filter={"keep": 1}), "'vocabulary_filter'"),
        (added("the_", single_word=True), "a word of its own"),
        (added("<mask_it>", lstrip=True), "swallows spaces before it"),
        (added("<tail>", rstrip=True), "swallows spaces behind it"),
        (added("a\0b"), "holds a NUL"),
        (lambda d: d["model"]["vocab"].update(the=0), "no number of its own"),
        (lambda d: d["model"]["vocab"].update(the=True), "no number of its own"),
        (lambda d: d["added_tokens"][0].update(id="258"), "no number of its own"),
    ],
)
def test_a_part_that_llama_cpp_does_not_do_is_refused_by_name(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        read_vocabulary(changed(small_bpe(tmp_path / "odd"), edit))


def test_settings_beside_a_tokenizer_are_refused_where_they_would_change_tokens(tmp_path: Path) -> None:
    folder = small_bpe(tmp_path / "odd")
    settings: list[tuple[dict[str, Any], str]] = [
        ({"do_lower_case": True}, "do_lower_case True"),
        ({"word_dropout": 3}, "word_dropout 3, which is not known"),
        ({"split_special_tokens": True}, "split_special_tokens True"),
        ({"add_prefix_space": True}, "add_prefix_space"),
        ({"eos_token": ["<|end|>"]}, r"is \['<\|end\|>'\], which names no token"),
        ({"bos_token": {"text": "<|end|>"}}, "which names no token"),
        ({"eos_token": "<|new|>"}, r"names '<\|new\|>', which is no token"),
        ({"additional_special_tokens": ["<|a|>"]}, r"names '<\|a\|>'"),
        ({"extra_special_tokens": {"image_token": "<|i|>"}}, r"names '<\|i\|>'"),
        ({"added_tokens_decoder": {"300": {"content": "<new>", "special": True}}}, "adds token 300"),
        ({"added_tokens_decoder": {"258": {"content": "<|end|>", "lstrip": True}}}, "disagree about lstrip"),
    ]
    for change, sentence in settings:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", **change}))
        with pytest.raises(TokenizerError, match=sentence):
            read_vocabulary(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "do_lower_case": False}))
    read_vocabulary(folder)


def ends(path: Path) -> set[int]:
    """Where llama.cpp ends an answer."""
    engine = EngineVocabulary(path)
    return {token for token in range(engine.n_tokens) if engine.ends_answer(token)}


def test_all_tokens_at_which_an_answer_ends_are_written_and_no_other(tmp_path: Path) -> None:
    folder = changed(small_bpe(tmp_path / "chat"), added("[TURN_OVER]", special=True))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [259, 258]}))
    write_vocabulary_gguf(folder, tmp_path / "chat.gguf")
    assert ends(tmp_path / "chat.gguf") == {258, 259}
    for damaged in ("258", [258, None], True):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": damaged}))
        with pytest.raises(TokenizerError, match="the number of a token, or a list of them"):
            read_vocabulary(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4, 5, 258]}))
    with pytest.raises(TokenizerError, match="leave the least important out"):
        read_vocabulary(folder)


def test_a_vocabulary_without_an_end_does_not_end_at_an_ordinary_token(tmp_path: Path) -> None:
    folder = changed(small_bpe(tmp_path / "base"), lambda document: document.update(added_tokens=[]))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match="names no token at which an answer ends"):
        read_vocabulary(folder)
    assert read_vocabulary(folder, n_vocab=260).special_ids == {"eos": 258}  # a row that no text has
    small_bpe(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    write_vocabulary_gguf(folder, tmp_path / "base.gguf")
    assert ends(tmp_path / "base.gguf") == {258}


def test_the_post_processor_alone_says_what_is_put_before_a_text(tmp_path: Path) -> None:
    folder = changed(small_bpe(tmp_path / "tuned"), added("<s>", special=True))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "bos_token": "<s>", "add_bos_token": True})
    )
    assert not read_vocabulary(folder).add_bos
    single: list[dict[str, Any]] = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]
    processor = {"type": "TemplateProcessing", "single": single, "special_tokens": {"<s>": {"ids": [259]}}}
    changed(folder, lambda document: document.update(post_processor=processor))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "add_bos_token": False}))
    vocabulary = read_vocabulary(folder)
    assert (vocabulary.add_bos, vocabulary.special_ids["bos"]) == (True, 259)
    single.insert(0, {"SpecialToken": {"id": "<s>"}})
    changed(folder, lambda document: document.update(post_processor=processor))
    with pytest.raises(TokenizerError, match=r"puts tokens \[259, 259\] before"):
        read_vocabulary(folder)


def test_a_token_without_a_row_is_refused_where_a_conversation_needs_it(tmp_path: Path) -> None:
    folder = changed(small_bpe(tmp_path / "tuned"), added("<|turn|>", special=True))
    assert read_vocabulary(folder, n_vocab=259).tokens[-1] == b"<|end|>"
    (folder / "chat_template.jinja").write_text("<|turn|>{{ messages }}")
    with pytest.raises(TokenizerError, match=r"'<\|turn\|>' is token 259 and the model has rows for 259"):
        read_vocabulary(folder, n_vocab=259)


def test_the_splitting_rules_of_o200k_are_known_in_both_forms(tmp_path: Path) -> None:
    rule = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    for behavior, invert, is_known in (("Removed", True, True), ("Isolated", False, True), ("Removed", False, False)):
        split = {"type": "Split", "pattern": {"Regex": rule}, "behavior": behavior, "invert": invert}
        words = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        steps = {"type": "Sequence", "pretokenizers": [split, words]}
        folder = changed(small_bpe(tmp_path / behavior / str(invert)), lambda d, s=steps: d.update(pre_tokenizer=s))
        if is_known:
            assert read_vocabulary(folder).pre == "gpt-4o"
        else:
            with pytest.raises(TokenizerError, match=r"llama\.cpp is not known to split"):
                read_vocabulary(folder)


def rules(*expressions: str) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False} for rule in expressions
    ]
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, words]}


def split_by(steps: dict[str, Any], **model: Any) -> Callable[[dict[str, Any]], object]:
    """With all that the `tokenizers` package asks for."""

    def edit(document: dict[str, Any]) -> None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        document["added_tokens"] = [{**entry, **flags} for entry in document["added_tokens"]]
        document["model"].update(model)
        document |= {"pre_tokenizer": steps, "normalizer": None, "post_processor": None, "decoder": None}

    return edit


def test_the_splitting_rules_of_deepseek_cut_text_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    signs = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    signs += r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    signs = signs.replace(r"\r", "\r")  # as its authors write it
    steps = rules(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", signs)
    folder = changed(small_bpe(tmp_path / "deepseek"), split_by(steps))
    assert read_vocabulary(folder).pre == "deepseek-v3"
    write_vocabulary_gguf(folder, tmp_path / "deepseek.gguf")
    assert check_tokens(folder, tmp_path / "deepseek.gguf") == {"n_sequences": len(CHECKED) + 500, "different": 0}


def test_rules_that_llama_cpp_only_approximates_are_told_and_checked_where_they_are_the_same(tmp_path: Path) -> None:
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*"
    steps = rules(words + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    folder = changed(small_bpe(tmp_path / "tekken"), split_by(steps, ignore_merges=True))
    vocabulary = read_vocabulary(folder)
    assert vocabulary.pre == "tekken"
    assert any("combining marks" in remark for remark in vocabulary.remarks)
    write_vocabulary_gguf(folder, tmp_path / "tekken.gguf")
    report = check_tokens(folder, tmp_path / "tekken.gguf")
    assert isinstance(report, dict)
    assert report["different"] == 0
    assert report["n_sequences"] > 20


def test_written_out_signs_for_spaces_are_told_and_refused_where_no_merge_makes_them(tmp_path: Path) -> None:
    signs = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {text: token for token, text in enumerate(["<unk>", "</s>", *signs, "▁", "▁▁", "a"])}
    document = {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "added_tokens": [{"id": 1, "content": "</s>", "special": True}, {"id": 259, "content": "▁▁"}],
        "model": {"type": "BPE", "byte_fallback": True, "vocab": vocab, "merges": ["▁ ▁"], "unk_token": "<unk>"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert any("written out" in remark for remark in read_vocabulary(tmp_path).remarks)
    changed(tmp_path, lambda document: document["added_tokens"].append({"id": 261, "content": "▁▁▁"}))
    with pytest.raises(TokenizerError, match="is looked for as it is written"):
        read_vocabulary(tmp_path)


def test_an_ordinary_word_that_llama_cpp_ends_answers_at_is_told(tmp_path: Path) -> None:
    folder = small_bpe(tmp_path / "plain")
    assert read_vocabulary(folder).remarks == ()
    changed(folder, lambda document: document["model"]["vocab"].update({"</s>": 259}))
    assert read_vocabulary(folder).remarks == (
        "llama.cpp takes </s> for an end of an answer, which is ordinary text to its tokenizer",
    )


def test_an_added_token_that_is_composed_before_it_is_looked_for_is_refused(tmp_path: Path) -> None:
    folder = changed(small_bpe(tmp_path / "nfc"), lambda document: document.update(normalizer={"type": "NFC"}))
    read_vocabulary(changed(folder, added("caf\u00e9", normalized=True)))
    with pytest.raises(TokenizerError, match="with its characters composed"):
        read_vocabulary(changed(folder, added("cafe\u0301s", normalized=True)))


@pytest.mark.parametrize(
    ("trainer", "normalizer", "sentence"),
    [
        (setting(3, 1), b"", "another kind than BPE"),
        (setting(24, 1), b"", "treat_whitespace_as_suffix"),
        (setting(35, 0), b"", "byte_fallback"),
        (b"", setting(4, 1), "remove_extra_whitespaces"),
        (b"", setting(5, 0), "escape_whitespaces"),
        (b"", message(2, b"rules"), "precompiled_charsmap"),
        (b"", message(6, b"a\tb"), "normalization_rule_tsv"),
        (b"", setting(9, 1), "a normalizer setting 9"),
    ],
)
def test_a_tokenizer_model_that_treats_text_otherwise_is_refused_by_name(
    tmp_path: Path, trainer: bytes, normalizer: bytes, sentence: str
) -> None:
    data = sentencepiece_model(tokenizer_folder("llama2"), trainer=trainer, normalizer=normalizer)
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=sentence):
        read_vocabulary(tmp_path)


def test_two_tokens_of_one_text_are_refused_because_llama_cpp_would_end_the_process(tmp_path: Path) -> None:
    folder = small_bpe(tmp_path)
    document = json.loads((folder / "tokenizer.json").read_text())
    document["added_tokens"].append({"id": 259, "content": "the", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match="there twice"):
        read_vocabulary(folder)
