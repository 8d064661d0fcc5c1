"""Chat templates as transformers renders them, construct by construct: a device has no transformers."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_verifier.serving.codec import Codec
from outrider_models.model_text import ModelText
from tests.tokenizers_of_all_kinds import byte_level, saved

CHAT = [
    {"role": "system", "content": " Be brief; <b>\"quotes\"</b> & 'more' é 😀 "},
    {"role": "user", "content": "\n  Hi!  \n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello <there>"},
    {"role": "user", "content": "Go on, {{ please }} {% raw %}"},
]
# As they stand in the templates of Llama 2, 3.1 and 3.2, Qwen 2.5 and 3, Gemma, Mistral, Phi, DeepSeek, SmolLM 3 and
# those that were made for training.
CONSTRUCTS = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "generation with trimming": "{%- for m in messages %}\n  {%- generation -%}\n {{ m.content }}\n"
    " {%- endgeneration -%}\n{%- endfor %}",
    "a name set within generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "tojson": "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ messages[0].content | tojson }}",
    "tojson with settings": "{{ messages | tojson(indent=4) }}{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=True) }}"
    "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}",
    "tools": "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}{{ tools is none }}"
    "{% if tools is not none and tools | length > 0 %}has tools{% endif %}{{ documents is defined }}{{ documents }}",
    "specials": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}{{ cls_token is defined }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(found=false, last=-1) %}{% for m in messages[::-1] %}"
    "{% set index = messages | length - 1 - loop.index0 %}{% if not ns.found and m.role == 'user' %}"
    "{% set ns.found = true %}{% set ns.last = index %}{% endif %}{% endfor %}{{ ns.last }}",
    "thoughts": "{% for m in messages %}{% set content = m.content %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ content }}|{% endfor %}",
    "trimming": "{% for m in messages %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}{% endfor %}",
    "blocks on lines of their own": "{% for m in messages %}\n    {% if m.role == 'user' %}\n    {{ m.content }}\n"
    "    {% endif %}\n{% endfor %}\n",
    "macros": "{% macro say(m, end='') -%}{{ m.role | upper }}: {{ m.content }}{{ end }}{%- endmacro %}"
    "{% for m in messages %}{{ say(m, end=eos_token) }}{% endfor %}",
    "tests and filters": "{{ messages | map(attribute='role') | join(',') }}{{ messages[0].content is string }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages[0].name is defined }}"
    "{{ messages[0]['tool_calls'] is defined }}{{ messages[0].get('name', 'nobody') }}",
    "a slice of the messages": "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{{ system }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "dates": "{{ strftime_now('%Y') }}",
    "an unknown name": "{{ nothing }}{{ enable_thinking is defined }}{% if date_string is not defined %}no{% endif %}",
    "refusing": "{% if (messages[0].role == 'user') != true %}{{ raise_exception('only users may begin') }}{% endif %}",
    "writing to a message": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_a_template_is_rendered_as_transformers_does(construct: str, tmp_path: Any) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CONSTRUCTS[construct]
    codec = Codec(saved(tokenizer, tmp_path))
    specials = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    text = ModelText(
        "m", codec.vocabulary, lambda text, _: codec._bare(text), CONSTRUCTS[construct], specials, frozenset()
    )
    for prompt in (True, False):
        assert _rendered(text, prompt) == _rendered(codec, prompt) != ""


def _rendered(side: Codec | ModelText, prompt: bool) -> str:
    """A text, or why there is none, in whatever words besides."""
    try:
        return side._render(CHAT, prompt=prompt)
    except Exception as error:
        return f"refused: {str(error).rpartition(': ')[2]}"
