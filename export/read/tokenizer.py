"""From a Hub folder's tokenizer files to the vocabulary that a GGUF file carries.

Two kinds are known. Byte-level BPE (`gpt2` in GGUF: Llama 3, Qwen, SmolLM) needs the name of llama.cpp's
pre-tokenizer (`pre_tokenizers`). SentencePiece BPE (`llama` in GGUF: Llama 2, Mistral, Gemma, Phi-3) is read from
tokenizer.json, or from tokenizer.model where that is all there is.
"""

from __future__ import annotations

import struct
from pathlib import Path

from edgellm.export.read import sentencepiece_model, tokenizer_json
from edgellm.export.read.gguf_vocabulary import GgufVocabulary
from edgellm.export.read.json_file import read_json
from edgellm.export.read.tokenizer_facts import TokenizerError


def read_vocabulary(folder: Path, n_vocab: int | None = None) -> GgufVocabulary:
    """The vocabulary of a Hub folder: tokenizer.json (or tokenizer.model), tokenizer_config.json, config.json.

    Args:
        n_vocab: rows of the embedding; ids without a token are filled with unused ones. None: as many as there are
        tokens.

    Raises:
        TokenizerError: no tokenizer, a damaged one, or a kind that llama.cpp has no equal for.
    """
    try:
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        if (folder / "tokenizer.json").exists():
            return tokenizer_json.from_json(folder, config, n_vocab)
        if (folder / "tokenizer.model").exists():
            return sentencepiece_model.from_model_file(folder, config, n_vocab)
    except (KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise TokenizerError(f"{folder}: the tokenizer files are damaged ({error!r}): download them again") from error
    if (folder / "vocab.json").exists():
        raise TokenizerError(
            f"{folder} has vocab.json and no tokenizer.json, which says how text is split: transformers writes it "
            "(AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))"
        )
    raise TokenizerError(f"{folder} has neither tokenizer.json nor tokenizer.model: add the tokenizer's files to it")
