"""Chat templates of our own, for files that carry none."""

from __future__ import annotations

from edgellm.runtime.text.vocabulary import Vocabulary

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TRANSCRIPT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% elif m.role == 'user' %}"
    "USER: {{ m.content }}\n{% else %}ASSISTANT:{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
DOCUMENT = (  # for base models, which know no turns
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}### Question\n\n{{ m.content }}\n\n### Answer\n\n"
    "{% elif m.role == 'assistant' %}{{ m.content }}\n\n{% endif %}{% endfor %}"
)
# A control token that only one family has -> that family's template, for files that carry none.
FAMILIES = (
    ("<|im_start|>", "ChatML", CHATML),
    ("<start_of_turn>", "Gemma", GEMMA),
    ("<|eot_id|>", "Llama 3", LLAMA_3),
)


def family_of(vocabulary: Vocabulary) -> tuple[str, str]:
    """Name and source of the format that a vocabulary's control tokens show."""
    for marker, name, source in FAMILIES:
        if marker in vocabulary.literals:
            return name, source
    return "plain transcript", TRANSCRIPT
