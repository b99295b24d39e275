"""Tokenizers of every kind that an export may meet; runs in the environment of transformers.

Each maker fills a folder with tokenizer.json or tokenizer.model, and returns how to cut a text: ids without and with
what is put before and behind it.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

Cut = Callable[[str], list[int]]
Maker = Callable[[Path, list[str]], tuple[Cut, Cut | None]]

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
RULES = {
    "llama3": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST,
    "qwen2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST,
    "qwen35": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
              r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}  # fmt: skip
_FALCON = [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
           pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]  # fmt: skip
_DEEPSEEK3 = [
    pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
    pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
    pre_tokenizers.Split(
        Regex(
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
]


def _end(**flags: Any) -> AddedToken:
    return AddedToken("<|end|>", special=True, normalized=False, **flags)


def _split(rule: str, *, removed: bool = False) -> Any:
    how = {"behavior": "removed", "invert": True} if removed else {"behavior": "isolated"}
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(RULES[rule]), **how), bytes_of])


def _words() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _words()])


def byte_level(
    splitter: Callable[[], Any],
    *,
    ignore_merges: bool = False,
    normalizer: Any = None,
    added: list[AddedToken] | None = None,
    post: Callable[[Tokenizer], Any] | None = None,
    config: dict[str, Any] | None = None,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> Maker:
    """BPE over bytes, trained with its own splitter."""

    def make(folder: Path, corpus: list[str]) -> tuple[Cut, Cut | None]:
        tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        tokenizer.pre_tokenizer = splitter()
        tokenizer.normalizer = normalizer
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.add_tokens([_end(), *(added or [])])
        if post is not None:
            tokenizer.post_processor = post(tokenizer)
        document = json.loads(tokenizer.to_str())
        if edit is not None:
            edit(document)
        return _saved(folder, document, {"eos_token": "<|end|>", **(config or {})})

    return make


def _saved(folder: Path, document: dict[str, Any], config: dict[str, Any]) -> tuple[Cut, Cut | None]:
    import transformers

    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole = transformers.AutoTokenizer.from_pretrained(folder)
    return (
        lambda text: list(raw.encode(text, add_special_tokens=False).ids),
        lambda text: list(whole(text, add_special_tokens=True).input_ids),
    )


def _template(before: list[str], behind: list[str]) -> Callable[[Tokenizer], Any]:
    def post(tokenizer: Tokenizer) -> Any:
        names = [*before, *behind]
        single = [*before, "$A", *behind]
        special = [(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(names)]
        return processors.TemplateProcessing(single=single, special_tokens=special)

    return post


def _trained(corpus: list[str], **settings: Any) -> bytes:
    buffer = io.BytesIO()
    rng = random.Random(5)
    lines = [text.replace("\n", " ").replace("\0", "") for text in corpus if text.strip()]
    rng.shuffle(lines)
    chosen: dict[str, Any] = {
        "model_type": "bpe", "vocab_size": 3000, "byte_fallback": True, "character_coverage": 0.99, "num_threads": 1,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2,
        "hard_vocab_limit": False, "max_sentence_length": 10_000, **settings,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=buffer, **chosen)
    return buffer.getvalue()


def sentencepiece_model(config: dict[str, Any] | None = None, **settings: Any) -> Maker:
    """tokenizer.model alone."""

    def make(folder: Path, corpus: list[str]) -> tuple[Cut, Cut | None]:
        data = _trained(corpus, **settings)
        (folder / "tokenizer.model").write_bytes(data)
        told = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", **(config or {})}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        return (lambda text: list(processor.encode(text))), None

    return make


_LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
_REPLACE = normalizers.Replace(" ", "▁")


def converted(
    *,
    normalizer: Any = None,
    splitter: Any = None,
    added: list[AddedToken] | None = None,
    post: tuple[list[str], list[str]] | None = None,
    config: dict[str, Any] | None = None,
    edit: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> Maker:
    """A SentencePiece model as tokenizer.json, the way transformers converts one."""

    def make(folder: Path, corpus: list[str]) -> tuple[Cut, Cut | None]:
        from transformers.tokenization_utils_base import generate_merges

        processor = sentencepiece.SentencePieceProcessor(model_proto=_trained(corpus, **settings))
        size = processor.get_piece_size()
        vocab = {processor.id_to_piece(i): i for i in range(size)}
        scores = {processor.id_to_piece(i): processor.get_score(i) for i in range(size)}
        skip = [piece for piece, i in vocab.items() if processor.is_control(i) or processor.is_byte(i)]
        merges = generate_merges(vocab, scores, skip_tokens=[*skip, "<unk>"])
        model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(model)
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if splitter is not None:
            tokenizer.pre_tokenizer = splitter
        fuse = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(fuse)
        special = [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
        tokenizer.add_tokens([*special, *(added or [])])
        if post is not None:
            tokenizer.post_processor = _template(*post)(tokenizer)
        document = json.loads(tokenizer.to_str())
        if edit is not None:
            edit(document)
        told = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **(config or {})}
        return _saved(folder, document, told)

    return make


def bpe_with_bytes() -> Maker:
    """BPE with byte_fallback that was trained as such: its merges are not all that its tokens allow."""

    def make(folder: Path, corpus: list[str]) -> tuple[Cut, Cut | None]:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = _LEGACY, pre_tokenizers.Split("▁", "merged_with_next")
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False, limit_alphabet=400)
        tokenizer.train_from_iterator(corpus, trainer)
        document = json.loads(tokenizer.to_str())
        document["pre_tokenizer"] = None
        document["added_tokens"] = document["added_tokens"][:3]
        return _saved(folder, document, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})

    return make


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            document = document[parent]
        document[last] = value

    return edit


def _metaspace(scheme: str, *, split: bool = False) -> Any:
    return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)


def _added(**flags: Any) -> list[AddedToken]:
    return [AddedToken("<extra>", **flags), AddedToken("[TOOL]", **flags)]


def _unigram(folder: Path, corpus: list[str]) -> tuple[Cut, Cut | None]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = _metaspace("always", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=9000, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _saved(folder, json.loads(tokenizer.to_str()), {"eos_token": "</s>"})


MAKERS: dict[str, Maker] = {
    # byte-level: the rules by which text is split
    "gpt2": byte_level(_words),
    "llama3": byte_level(lambda: _split("llama3"), ignore_merges=True, post=_template(["<|end|>"], [])),
    "llama3-merges": byte_level(lambda: _split("llama3")),
    "llama3-removed": byte_level(lambda: _split("llama3", removed=True), ignore_merges=True),
    "qwen2": byte_level(lambda: _split("qwen2"), normalizer=normalizers.NFC()),
    "qwen2-plain": byte_level(lambda: _split("qwen2")),
    "qwen2-ignores-merges": byte_level(lambda: _split("qwen2"), ignore_merges=True),
    "qwen35": byte_level(lambda: _split("qwen35"), normalizer=normalizers.NFC()),
    "tekken": byte_level(lambda: _split("tekken"), ignore_merges=True),
    "o200k": byte_level(lambda: _split("o200k")),
    "smollm": byte_level(_digits),
    "starcoder": byte_level(_digits, added=_added(special=True, normalized=False)),
    "falcon": byte_level(lambda: pre_tokenizers.Sequence(_FALCON)),
    "deepseek3": byte_level(lambda: pre_tokenizers.Sequence(_DEEPSEEK3)),
    "digits-together": byte_level(lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(), _words()])),
    "unsplit": byte_level(lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "prefix-space": byte_level(lambda: pre_tokenizers.ByteLevel(add_prefix_space=True)),
    # byte-level: normalizers, added tokens, what is put around a text
    "nfkc": byte_level(lambda: _split("qwen2"), normalizer=normalizers.NFKC()),
    "lowercase": byte_level(_words, normalizer=normalizers.Lowercase()),
    "strip": byte_level(_words, normalizer=normalizers.Strip()),
    "replace": byte_level(_words, normalizer=normalizers.Replace("``", '"')),
    "added": byte_level(lambda: _split("qwen2"), added=_added()),
    "added-special": byte_level(lambda: _split("qwen2"), added=_added(special=True)),
    "added-as-is": byte_level(lambda: _split("qwen2"), added=_added(normalized=False)),
    "added-nfc": byte_level(
        lambda: _split("qwen2"), normalizer=normalizers.NFC(), added=[AddedToken("cafe\u0301"), AddedToken("<extra>")]
    ),
    "added-lstrip": byte_level(_words, added=_added(lstrip=True)),
    "added-rstrip": byte_level(_words, added=_added(rstrip=True)),
    "added-single-word": byte_level(_words, added=[AddedToken("tok_x", single_word=True)]),
    "added-word": byte_level(_words, added=[AddedToken("tok_x"), AddedToken("the")]),
    "added-overlapping": byte_level(
        _words, added=[AddedToken("<|e"), AddedToken("tok_"), AddedToken("tok_x"), AddedToken("  ")]
    ),
    "bos-and-eos": byte_level(
        _words,
        added=[AddedToken("<s>", special=True)],
        post=_template(["<s>"], ["<|end|>"]),
        config={"bos_token": "<s>"},
    ),
    "two-before": byte_level(_words, added=[AddedToken("<s>", special=True)], post=_template(["<s>", "<|end|>"], [])),
    "add-bos-told": byte_level(
        _words, added=[AddedToken("<s>", special=True)], config={"bos_token": "<s>", "add_bos_token": True}
    ),
    "dropout": byte_level(_words, edit=_set("model.dropout", 0.5)),
    "word-ends": byte_level(_words, edit=_set("model.end_of_word_suffix", "</w>")),
    "subword-prefix": byte_level(_words, edit=_set("model.continuing_subword_prefix", "")),
    # SentencePiece, as tokenizer.json
    "spm-legacy": converted(normalizer=_LEGACY, post=(["<s>"], [])),
    "spm-legacy-eos": converted(normalizer=_LEGACY, post=(["<s>"], ["</s>"])),
    "spm-always": converted(splitter=_metaspace("always"), post=(["<s>"], [])),
    "spm-first": converted(splitter=_metaspace("first"), post=(["<s>"], [])),
    "spm-never": converted(splitter=_metaspace("never")),
    "spm-always-split": converted(splitter=_metaspace("always", split=True)),
    "spm-gemma": converted(
        normalizer=_REPLACE, splitter=pre_tokenizers.Split(" ", "merged_with_previous"), post=(["<s>"], [])
    ),
    "spm-gemma-spaces": converted(
        normalizer=_REPLACE, added=[AddedToken("\n\n", normalized=False), AddedToken("\n\n\n", normalized=False)]
    ),
    "spm-nothing": converted(),
    "spm-added": converted(normalizer=_LEGACY, added=_added(normalized=False)),
    "spm-added-special": converted(normalizer=_LEGACY, added=_added(normalized=False, special=True)),
    "spm-added-normalized": converted(normalizer=_LEGACY, added=_added(normalized=True)),
    "spm-added-first": converted(splitter=_metaspace("first"), added=_added(normalized=False)),
    "spm-added-always": converted(splitter=_metaspace("always"), added=_added(normalized=False)),
    "spm-added-always-special": converted(splitter=_metaspace("always"), added=_added(normalized=False, special=True)),
    "spm-added-always-word": converted(
        splitter=_metaspace("always"),
        added=[AddedToken("tok_x", normalized=False), AddedToken("the", normalized=False)],
    ),
    "spm-added-never": converted(splitter=_metaspace("never"), added=_added(normalized=False)),
    "spm-added-gemma": converted(normalizer=_REPLACE, added=_added(normalized=False)),
    "spm-added-rstrip": converted(normalizer=_LEGACY, added=_added(normalized=False, rstrip=True)),
    "spm-nfkc": converted(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("▁"), _REPLACE])),
    "spm-digits": converted(normalizer=_LEGACY, split_digits=True),
    "spm-ignores-merges": converted(normalizer=_LEGACY, edit=_set("model.ignore_merges", True)),
    "spm-no-fallback": converted(normalizer=_LEGACY, edit=_set("model.byte_fallback", False)),
    "spm-trained-as-bpe": bpe_with_bytes(),
    # tokenizer.model alone
    "model": sentencepiece_model(),
    "model-no-prefix": sentencepiece_model(add_dummy_prefix=False),
    "model-digits": sentencepiece_model(split_digits=True),
    "model-whitespace-pieces": sentencepiece_model(allow_whitespace_only_pieces=True),
    "model-one-script-words": sentencepiece_model(split_by_unicode_script=False, split_by_number=False),
    "model-across-spaces": sentencepiece_model(split_by_whitespace=False),
    "model-symbols": sentencepiece_model(add_dummy_prefix=False, user_defined_symbols=["<extra>", "[TOOL]", "tok_x"]),
    "model-symbols-prefix": sentencepiece_model(user_defined_symbols=["<extra>"]),
    "model-controls": sentencepiece_model(control_symbols=["<ctl>"]),
    "model-nfkc": sentencepiece_model(normalization_rule_name="nmt_nfkc"),
    "model-trimmed": sentencepiece_model(remove_extra_whitespaces=True),
    "model-suffix": sentencepiece_model(treat_whitespace_as_suffix=True),
    "model-no-bytes": sentencepiece_model(byte_fallback=False),
    "model-unigram": sentencepiece_model(model_type="unigram"),
    "model-char": sentencepiece_model(model_type="char"),
    "unigram": _unigram,
}


def cut(job: dict[str, Any]) -> dict[str, Any]:
    """Make the tokenizer `name` in `folder` and cut the texts of texts.json; the ids go into ids.json."""
    folder = Path(job["folder"])
    texts, corpus = json.loads(Path(job["texts"]).read_text())
    raw, whole = MAKERS[job["name"]](folder, corpus)
    document = {"raw": [raw(text) for text in texts], "whole": [whole(text) for text in texts[:300]] if whole else None}
    if job.get("composed"):
        import unicodedata

        document["composed"] = [raw(unicodedata.normalize("NFC", text)) for text in texts]
    (folder / "ids.json").write_text(json.dumps(document))
    return {"version": tokenizers.__version__}
