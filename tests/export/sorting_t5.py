"""A tiny T5 that learnt for a minute to put words in order, and its greedy answers; runs where transformers is.

`python sorting_t5.py make FOLDER` writes the checkpoint; `python sorting_t5.py answer FOLDER TEXTS.json OUT.json N`
writes what `generate` says to each text: ids of the input, of the answer, and its text.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

N_STEPS, N_BATCH = 450, 24
WORDS = "ant ball cat dog ear fish gate hat ink jar key lamp map nest oak pen queen rope sun top urn vase wall yard zoo"
WORDS += " apple bread cloud drum eagle frog grass house iron juice king leaf moon night onion"


def a_text(rng: random.Random) -> str:
    return " ".join(rng.sample(WORDS.split(), rng.randint(2, 12)))


def make(folder: Path) -> None:
    import sentencepiece
    import torch
    import transformers

    folder.mkdir(parents=True)
    rng = random.Random(3)
    (folder / "corpus").write_text("\n".join(a_text(rng) for _ in range(2000)) + "\nQuick? 123, 456: fox-jump!\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus"), model_prefix=str(folder / "spiece"), vocab_size=110, minloglevel=2,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "corpus").unlink()
    (folder / "spiece.vocab").unlink()
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=4)
    tokenizer.save_pretrained(folder)
    n_vocab = -(-len(tokenizer) // 32) * 32
    torch.manual_seed(7)
    torch.set_num_threads(1)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=n_vocab,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(N_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (N_STEPS - step) / (N_STEPS / 2))
        texts = [a_text(rng) for _ in range(N_BATCH)]
        given = tokenizer(texts, return_tensors="pt", padding=True)
        wanted = tokenizer([" ".join(sorted(text.split())) for text in texts], return_tensors="pt", padding=True)
        labels = wanted.input_ids.masked_fill(wanted.input_ids == 0, -100)
        loss = model(**{k: given[k] for k in ("input_ids", "attention_mask")}, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {float(loss.detach()):.3f}", flush=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())  # so that F16 holds them as they are
    model.save_pretrained(folder)


def answers(folder: Path, texts: list[str], n_most: int) -> list[dict[str, Any]]:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            made = model.generate(ids, max_new_tokens=n_most, do_sample=False, num_beams=1)
        tokens = made[0].tolist()[1:]
        said = tokenizer.decode(tokens, skip_special_tokens=True)
        found.append({"input": ids[0].tolist(), "tokens": tokens, "text": said})
    return found


if __name__ == "__main__":
    job, folder = sys.argv[1], Path(sys.argv[2])
    if job == "make":
        make(folder)
    else:
        texts, out, n_most = json.loads(Path(sys.argv[3]).read_text()), Path(sys.argv[4]), int(sys.argv[5])
        out.write_text(json.dumps(answers(folder, texts, n_most)))
