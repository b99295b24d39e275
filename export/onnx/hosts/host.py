"""Loads a bundle with onnxruntime and continues a text greedily, the cache handed from pass to pass.

pip install onnxruntime tokenizers
python host.py "The capital of France is" 16
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

prompt, count = [*sys.argv[1:], *["The capital of France is", "16"][len(sys.argv) - 1 :]][:2]
bundle = Path(__file__).resolve().parent
files = json.loads((bundle / "edgellm.json").read_text(encoding="utf-8"))["files"]
graph = next(
    bundle / file["path"] for file in files if file["role"] == "target" and file["path"].endswith((".onnx", ".ort"))
)
config = json.loads((graph.parent / "config.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(graph.parent / "tokenizer.json"))
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
names = [entry.name for entry in session.get_inputs()]
heads = config.get("num_key_value_heads") or config["num_attention_heads"]
dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
cache = {name: np.zeros((1, heads, 0, dim), np.float32) for name in names if name.startswith("past_key_values.")}
outputs = ["logits", *[name.replace("past_key_values", "present") for name in cache]]

prefix = tokenizer.encode(prompt).ids
ids: list[int] = []
held, following = 0, prefix
while len(ids) < int(count):
    n = len(following)
    feed = {"input_ids": np.array([following], np.int64), "attention_mask": np.ones((1, held + n), np.int64), **cache}
    if "position_ids" in names:
        feed["position_ids"] = np.arange(held, held + n, dtype=np.int64)[None]
    if "logits_start" in names:
        feed["logits_start"] = np.array([n - 1], np.int64)
    logits, *grown = session.run(outputs, feed)
    cache = dict(zip(cache, grown, strict=True))
    held, following = held + n, [int(logits[0, -1].argmax())]
    ids += following
print(json.dumps({"prompt": prefix, "ids": ids, "text": tokenizer.decode(ids)}))
