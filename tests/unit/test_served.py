"""What a verifier says of a model: what ends an answer, and the fingerprint that promises equal words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.serving.open_request import Served, new_session
from tests.harness import LetterCodec
from tests.mock_engine import MockEngine

ENGINE = replace(MockEngine().info, eos_ids=(0, 5))


def served(engine: Any = ENGINE, **codec: Any) -> Served:
    letters: Any = LetterCodec()
    for name, value in codec.items():
        setattr(letters, name, value)
    return Served("mock", engine, letters)


def test_an_answer_ends_with_what_configuration_tokenizer_and_template_name() -> None:
    subject = served(end_ids={7, 5, 64})  # the last is beyond the model's vocabulary
    assert subject.eos_ids == (0, 5, 7)
    assert list(subject.model_info().eos_ids) == [0, 5, 7]
    request = pb.Open(protocol_version=1, prompt_ids=pb.TokenIds(ids=[9]), sampling=pb.SamplingParams(stop_ids=[3]))
    assert new_session(request, subject).stop_ids == {0, 3, 5, 7}
    request.sampling.ignore_eos = True
    assert new_session(request, subject).stop_ids == {3}


def test_the_fingerprint_covers_whatever_decides_words() -> None:
    same = served().model_info().target_fingerprint
    assert served().model_info().target_fingerprint == same
    others = [
        served(replace(ENGINE, fingerprint="other weights")),
        served(replace(ENGINE, eos_ids=(0,))),
        served(words_fingerprint="another template"),
        served(end_ids={7}),
    ]
    fingerprints = {other.model_info().target_fingerprint for other in others}
    assert len(fingerprints | {same}) == 5
