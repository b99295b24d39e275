"""Makes random adapters with PEFT on a checkpoint and says what PEFT computes. Run by a Python that has peft.

argv: the checkpoint, a folder for the adapters, and JSON of {name: arguments of LoraConfig}. Each adapter's folder gets
`expected.npy`, logits of the tokens in `tokens.json` beside them, of the adapter loaded anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch  # type: ignore[import-not-found]
from peft import LoraConfig, PeftModel, get_peft_model  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM  # type: ignore[import-not-found]


def main() -> None:
    base, folder, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    tokens = torch.tensor([json.loads((folder / "tokens.json").read_text())])

    def loaded() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()

    for name, arguments in cases.items():
        torch.manual_seed(0)
        model = get_peft_model(loaded(), LoraConfig(task_type="CAUSAL_LM", **arguments))
        for parameter, weight in model.named_parameters():
            if "lora_A" in parameter or "lora_B" in parameter or "lora_embedding" in parameter:
                torch.nn.init.normal_(weight, std=0.3 if "embedding_A" in parameter else 0.15)
            elif "magnitude" in parameter:
                weight.data *= torch.rand_like(weight) + 0.5
            elif "modules_to_save" in parameter or (
                parameter.endswith("bias") and arguments.get("bias") == "lora_only"
            ):
                weight.data += torch.randn_like(weight) * 0.1
        model.save_pretrained(folder / name)
        with torch.no_grad():
            logits = PeftModel.from_pretrained(loaded(), folder / name).eval()(tokens).logits[0]
        np.save(folder / name / "expected.npy", logits.numpy())


if __name__ == "__main__":
    main()
