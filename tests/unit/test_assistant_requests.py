"""Whatever JSON comes in becomes a question or a refusal, never a fault."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.assistant.errors import ApiError
from edge_client.assistant.requests import Body, ChatBody, CompletionBody, parse
from edge_client.assistant.unsupported import _SENTENCES
from speculation.sampling import filtered

HELLO = [{"role": "user", "content": "hello"}]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**32, 2**64, -(2**63), 10**40]),
    st.floats(),
    st.sampled_from(["", "user", "text", "default", "streaming", "a\x00", "\ud800"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["5", "\ud800", "role", "content", "type", "9" * 5000]), inner),
    ),
    max_leaves=6,
)
FIELDS = sorted(
    {*ChatBody.model_fields, *CompletionBody.model_fields, *_SENTENCES, "tools", "functions", "modalities", "unknown"}
)


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody])
@given(fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_any_object_is_a_question_or_a_refusal(kind: type[Body], fields: dict[str, Any]) -> None:
    refusal, question = None, None
    try:
        question = parse(kind, {"messages": HELLO, "prompt": "hello"} | fields)
    except ApiError as error:
        refusal = error
    if question is not None:
        assert 1 <= question.n * len(question.prompts) <= 16
        assert 0 <= question.seed < 2**64
    else:
        assert refusal is not None
        assert refusal.status in (400, 422)
        json.dumps(refusal.body, ensure_ascii=False).encode()


@given(body=VALUES)
def test_what_is_no_object_is_refused(body: Any) -> None:
    if not isinstance(body, dict):
        with pytest.raises(ApiError):
            parse(ChatBody, body)


def test_openais_defaults() -> None:
    chat, completion = parse(ChatBody, {"messages": HELLO}), parse(CompletionBody, {"prompt": "hello"})
    assert (chat.params.temperature, chat.params.top_p, chat.params.max_tokens) == (1.0, 1.0, None)
    assert completion.params.max_tokens == 16
    assert chat.drafts
    assert not any((chat.stream, chat.include_usage, chat.ride, chat.echo))
    assert chat.model == parse(ChatBody, {"messages": HELLO, "model": "default"}).model == ""


def test_a_developers_message_is_a_systems() -> None:
    said = parse(ChatBody, {"messages": [{"role": "developer", "content": None}, *HELLO]}).prompts[0]
    assert said == [{"role": "system", "content": ""}, *HELLO]


CHANGES_THE_ANSWER = {
    "grammar": "root ::= x", "json_schema": {"type": "object"}, "guided_json": {"type": "object"},
    "chat_template_kwargs": {"x": 1},
    "continue_final_message": True, "add_generation_prompt": False, "bad_words": ["x"], "allowed_token_ids": [5],
    "repeat_penalty": 1.1, "typical_p": 0.9, "mirostat": 2, "dry_multiplier": 0.8, "xtc_probability": 0.5,
    "min_tokens": 4, "use_beam_search": True, "length_penalty": 0.8, "skip_special_tokens": False,
    "include_stop_str_in_output": True, "truncate_prompt_tokens": 100, "prompt_logprobs": 0, "n_predict": 5,
    "suffix": "x", "modalities": ["text", "audio"], "options": {"temperature": 0}, "extra_body": {"top_k": 1},
    "enable_thinking": True, "documents": [{}], "samplers": "kpt", "n_probs": 5, "random_seed": 5,
}  # fmt: skip


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody])
@pytest.mark.parametrize("name", CHANGES_THE_ANSWER)
def test_what_would_change_the_answer_is_refused_by_name(kind: type[Body], name: str) -> None:
    with pytest.raises(ApiError, match=name) as refused:
        parse(kind, {"messages": HELLO, "prompt": "hello", name: CHANGES_THE_ANSWER[name]})
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "unsupported_parameter", name)
    parse(kind, {"messages": HELLO, "prompt": "hello", name: None})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repeat_penalty", 1),
        ("typical_p", 1.0),
        ("min_tokens", 0),
        ("top_n_sigma", -1),
        ("mirostat", 0),
        ("bad_words", []),
    ],
)
def test_a_value_that_does_nothing_is_taken(name: str, value: Any) -> None:
    parse(ChatBody, {"messages": HELLO, name: value})


def test_special_tokens_are_what_each_endpoint_adds() -> None:
    parse(ChatBody, {"messages": HELLO, "add_special_tokens": False})
    parse(CompletionBody, {"prompt": "hello", "add_special_tokens": True})
    parse(CompletionBody, {"prompt": [5], "add_special_tokens": False})
    for kind, value in ((ChatBody, True), (CompletionBody, False)):
        with pytest.raises(ApiError, match="add_special_tokens"):
            parse(kind, {"messages": HELLO, "prompt": "hello", "add_special_tokens": value})


def test_several_texts_in_a_message_are_lines() -> None:
    parts = [{"type": "text", "text": "look:"}, {"type": "text", "text": "here"}]
    assert parse(ChatBody, {"messages": [{"role": "user", "content": parts}]}).prompts == [
        [{"role": "user", "content": "look:\nhere"}]
    ]


def test_edges_are_read_as_the_most_used_servers_read_them() -> None:
    def params(**fields: Any) -> Any:
        return parse(ChatBody, {"messages": HELLO} | fields).params

    assert params(max_tokens=-1).max_tokens is None
    assert params(max_tokens=5, max_completion_tokens=-1).max_tokens is None
    assert parse(CompletionBody, {"prompt": "hello", "max_tokens": -1}).params.max_tokens is None
    assert params(stop="").stop == params(stop=["", ""]).stop == ()
    assert params(stop=["a", "", "b"]).stop == ("a", "b")
    for top_p in (0, 0.0, 1e-60):
        kept = filtered(np.log(np.full(4, 0.25)), params(top_p=np.float32(params(top_p=top_p).top_p).item()))
        assert np.isfinite(kept).tolist() == [True, False, False, False]
