"""Fields of other servers that would change the answer and cannot be had here: refused by name, never left aside.

Of OpenAI, vLLM, SGLang, llama.cpp's server and Ollama. A value with which the field does nothing is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_client.assistant.errors import ApiError

_NOTHING: tuple[Any, ...] = (None, False, "", [], {})  # 0 and 0.0 equal False
_GRAMMAR = "the verifier cannot follow a grammar yet"
_TEMPLATE = "the verifier renders the model's chat template with its defaults"
_BEGINNING = "an answer cannot be given its beginning; the last message is complete, and a new one follows it"
_SAMPLER = "this way of sampling is not known here"
_LENGTH = "use max_tokens"
_EXTRA = "put its fields into the request itself"

_SENTENCES = {
    "audio": "answers are text; leave out audio",
    "web_search_options": "the verifier cannot search the web",
    "suffix": "text can only be continued, not filled in; leave out suffix",
    **dict.fromkeys(
        (
            *("grammar", "json_schema", "regex", "ebnf", "structural_tag", "structured_outputs", "format"),
            *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        ),
        _GRAMMAR,
    ),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "documents", "enable_thinking", "think"), _TEMPLATE),
    "add_generation_prompt": _BEGINNING,
    "continue_final_message": _BEGINNING,
    **dict.fromkeys(
        (
            *("typical_p", "tfs_z", "top_a", "top_n_sigma", "mirostat", "dynatemp_range", "xtc_probability"),
            *("dry_multiplier", "epsilon_cutoff", "eta_cutoff", "smoothing_factor", "samplers", "logits_processors"),
        ),
        _SAMPLER,
    ),
    "repeat_penalty": "use repetition_penalty, which looks at the whole of prompt and answer",
    "bad_words": "words cannot be forbidden; give their token ids a logit_bias of -100",
    "allowed_token_ids": "tokens cannot be limited to a list; use logit_bias",
    "use_beam_search": "answers are sampled; there is no beam search",
    "length_penalty": "answers are sampled; there is no beam search",
    "min_tokens": "an answer has no least length here",
    "stop_regex": "use stop, which takes plain texts",
    "include_stop_str_in_output": "an answer ends before its stop text",
    "no_stop_trim": "an answer ends before its stop text",
    "skip_special_tokens": "special tokens have no text here",
    "spaces_between_special_tokens": "special tokens have no text here",
    "truncate_prompt_tokens": "prompts are not cut; send a shorter one",
    "prompt_logprobs": "the verifier gives log-probabilities of answers only",
    "n_probs": "use logprobs",
    "return_token_ids": "tokens are told as text; use logprobs",
    "return_tokens_as_token_ids": "tokens are told as text; use logprobs",
    **dict.fromkeys(("n_predict", "num_predict", "max_new_tokens", "max_length"), _LENGTH),
    "random_seed": "use seed",
    "safe_prompt": "send a system message instead",
    "system_prompt": "send a system message instead",
    "options": _EXTRA,
    "extra_body": _EXTRA,
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # beside or instead of _NOTHING
    "add_generation_prompt": (None, True),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "prompt_logprobs": (None,),
    **dict.fromkeys(("repeat_penalty", "typical_p", "tfs_z", "length_penalty"), (*_NOTHING, 1)),
    **dict.fromkeys(("top_n_sigma", "n_predict", "num_predict", "truncate_prompt_tokens"), (*_NOTHING, -1)),
}


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raises ApiError for the first such field."""
    for name, sentence in _SENTENCES.items():
        if name in body and body[name] not in _NEUTRAL.get(name, _NOTHING):
            raise not_here(name, f"{name} is not supported here: {sentence}")
    modalities = body.get("modalities")
    if modalities not in (None, [], ["text"]):
        raise not_here("modalities", "answers are text; leave out modalities")


def not_here(param: str, sentence: str) -> ApiError:
    """As OpenAI refuses a parameter that a model does not support."""
    return ApiError(400, sentence, code="unsupported_parameter", param=param)
