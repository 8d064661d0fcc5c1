"""Whatever JSON comes in becomes a question or a refusal, never a fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.assistant.errors import ApiError
from edge_client.assistant.requests import Body, ChatBody, CompletionBody, parse

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
FIELDS = sorted({*ChatBody.model_fields, *CompletionBody.model_fields, "tools", "functions", "unknown"})


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
