"""Chat templates of the shape that well-known families have, with the control tokens that they write."""

from typing import Any, NamedTuple

from mplus.testing import byte_tokenizer


class Family(NamedTuple):
    """A template and its control tokens."""

    template: str
    controls: tuple[str, ...]


QWEN3 = Family(
    """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}{% for message in messages %}{% set content = message.content or '' %}{% if message.role == 'user' or \
(message.role == 'system' and not loop.first) %}<|im_start|>{{ message.role }}
{{ content }}<|im_end|>
{% elif message.role == 'assistant' %}{% set thought = '' %}{% if '</think>' in content %}{% set thought = \
content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{% set content = \
content.split('</think>')[-1].lstrip('\\n') %}{% endif %}<|im_start|>assistant
{% if loop.last and thought %}<think>
{{ thought }}
</think>

{% endif %}{{ content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ content }}
</tool_response><|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
)
LLAMA31 = Family(
    """<|begin_of_text|>{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set messages \
= messages[1:] %}{% else %}{% set system = '' %}{% endif %}<|start_header_id|>system<|end_header_id|>

{% if tools %}Environment: ipython
{% endif %}{{ system }}<|eot_id|>{% for message in messages %}{% if message.tool_calls %}\
<|start_header_id|>assistant<|end_header_id|>

{% for call in message.tool_calls %}{"name": "{{ call.function.name }}", "parameters": \
{{ call.function.arguments | tojson }}}{% endfor %}<|eot_id|>{% elif message.role == 'tool' %}\
<|start_header_id|>ipython<|end_header_id|>

{{ message.content | tojson }}<|eot_id|>{% else %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if loop.first and tools %}Given the following functions:
{% for tool in tools %}{{ tool | tojson(indent=4) }}

{% endfor %}{% endif %}{{ message.content | trim }}<|eot_id|>{% endif %}{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>

{% endif %}""",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
)
MISTRAL = Family(
    """{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}\
{% else %}{% set system = '' %}{% endif %}<s>{% for message in messages %}{% if message.role == 'user' %}\
{% if tools and loop.index0 == 0 %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]\
{% if loop.last and system %}{{ system }}

{% endif %}{{ message.content }}[/INST]{% elif message.tool_calls %}[TOOL_CALLS][{% for call in message.tool_calls %}\
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}{% endfor %}]</s>\
{% elif message.role == 'tool' %}[TOOL_RESULTS]{"content": {{ message.content | string }}}[/TOOL_RESULTS]{% else %} \
{{ message.content | trim }}</s>{% endif %}{% endfor %}""",
    (
        *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"),
        *("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    ),
)
GEMMA = Family(
    """<bos>{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}{% set messages = \
messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for message in messages %}{% set role = 'model' if \
message.role == 'assistant' else message.role %}<start_of_turn>{{ role }}
{{ first if loop.first else '' }}{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}""",
    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
)
FAMILIES = {"qwen3": QWEN3, "llama31": LLAMA31, "mistral": MISTRAL, "gemma": GEMMA}


def tokenizer_of(family: Family) -> Any:
    """A byte tokenizer with a family's template and control tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.controls)})
    tokenizer.chat_template = family.template
    return tokenizer
