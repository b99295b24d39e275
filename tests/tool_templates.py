"""Chat templates of our own that write tools and calls in the form of each family, with their control tokens."""

from __future__ import annotations

HERMES = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% elif m.role != 'system' or not tools %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAGGED = HERMES.replace(
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}',
    "<function={{ call.function.name }}>\n{% for key, value in call.function.arguments.items() %}<parameter={{ key }}>"
    "\n{{ value if value is string else value | tojson }}\n</parameter>\n{% endfor %}</function>",
)
LLAMA_3 = (
    "{{ bos_token }}{% if tools is not none %}<|start_header_id|>system<|end_header_id|>\n\n"
    "{% for tool in tools %}{{ tool | tojson(indent=4) }}\n{% endfor %}<|eot_id|>{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>{% elif 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at once') }}{% endif %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "<|eot_id|>{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.last %}[AVAILABLE_TOOLS]"
    "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}CALLS"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    "[TOOL_RESULTS]{{ m.tool_call_id }}: {{ m.content }}[/TOOL_RESULTS]{% else %}{{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL_LIST = _MISTRAL.replace(
    "CALLS",
    "[TOOL_CALLS][{% for call in m.tool_calls %}{{ call.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}]"
    "{{ eos_token }}",
).replace("{% if tools and loop.last %}", "{% if tools %}")
MISTRAL = _MISTRAL.replace(
    "CALLS",
    "{% for call in m.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    "[TOOL_CALLS]{{ call.function.name }}[CALL_ID]{{ call.id }}[ARGS]{{ call.function.arguments | tojson }}{% endfor %}"
    "{{ eos_token }}",
).replace("{% if tools and loop.last %}", "{% if tools %}")
HARMONY = (
    "<|start|>developer<|message|>{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "{% if tools %}namespace functions {\n{% for tool in tools %}// {{ tool.function.description }}\n"
    "type {{ tool.function.name }} = {{ tool.function.parameters | tojson }};\n{% endfor %}}{% endif %}<|end|>"
    "{% set ns = namespace(name='') %}{% for m in messages %}{% if m.tool_calls %}"
    "{% set call = m.tool_calls[0].function %}"
    "{% set ns.name = call.name %}<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>"
    "{{ call.arguments | tojson }}<|call|>{% elif m.role == 'tool' %}<|start|>functions.{{ ns.name }} to=assistant"
    "<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>{% elif m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% elif m.role == 'user' %}"
    "<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
GEMMA = (  # knows no tools and no system, and wants questions and answers in turn
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# name -> the form that it is, the template, its control tokens, and the last of them that ends a turn
FAMILIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "hermes": ("hermes", HERMES, ("<s>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>")),
    "tagged": ("tagged", TAGGED, ("<s>", "<tool_call>", "</tool_call>", "<|im_start|>", "<|im_end|>")),
    "llama3": ("llama3", LLAMA_3, ("<s>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": (
        "mistral",
        MISTRAL,
        (
            "<s>",
            "[TOOL_CALLS]",
            "[CALL_ID]",
            "[ARGS]",
            "[INST]",
            "[/INST]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
            "</s>",
        ),
    ),
    "mistral-list": ("mistral", MISTRAL_LIST, ("<s>", "[TOOL_CALLS]", "[INST]", "[/INST]", "[TOOL_RESULTS]", "</s>")),
    "harmony": (
        "harmony",
        HARMONY,
        ("<s>", "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"),
    ),
    "gemma": ("json", GEMMA, ("<s>", "<start_of_turn>", "<end_of_turn>")),
}
