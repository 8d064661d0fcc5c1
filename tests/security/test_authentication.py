"""Who may call, by key and by certificate, and whose session is whose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from outrider.v1 import verifier_pb2 as pb
from outrider.v1 import verifier_pb2_grpc as pb_grpc

from cloud_verifier.security.authentication import Authentication
from cloud_verifier.security.keys import ID_DIGITS, KeyFile, KeyStore, hash_of
from cloud_verifier.serving.address import Address
from edge_client.client import EdgeClient, SamplingParams
from edge_client.errors import SessionError
from edge_client.link.security import Security
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine, answer
from tests.security.certificates import Authority, Pair
from tests.service.raw import DEADLINE_S, PROMPT, SEED, Refusal, Stream, opening, until

WORDS = answer(PROMPT, SEED, 12)
PARAMS = SamplingParams(max_tokens=12)
WAITING = opening(sampling=pb.SamplingParams(max_tokens=12), patience_ms=PATIENCE_UNLIMITED_MS)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.toml")


@pytest.fixture
def key(file: KeyFile) -> str:
    return file.add("laptop", {})


@pytest.fixture
def verifier(file: KeyFile, key: str) -> Iterator[InProcessVerifier]:
    assert key
    with InProcessVerifier(MockEngine(), authentication=Authentication(KeyStore(file.path))) as subject:
        yield subject


def refusals(address: str, *metadata: tuple[str, str]) -> set[Refusal]:
    """Of every method but health checks."""
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.VerifierServiceStub(channel)
        asking = reflection_pb2.ServerReflectionRequest(list_services="")
        calls = [
            stub.Generate(iter([pb.GenerateRequest(open=WAITING)]), metadata=metadata, timeout=DEADLINE_S),
            stub.GetVocabulary(pb.GetVocabularyRequest(), metadata=metadata, timeout=DEADLINE_S),
            reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([asking]), metadata=metadata, timeout=DEADLINE_S
            ),
        ]

        def info() -> Iterator[pb.GetModelInfoResponse]:
            yield stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=metadata, timeout=DEADLINE_S)

        return {Stream.refused(call) for call in [*calls, info()]}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "NO_KEY"),
        ((("authorization", "Bearer outr_wrong"),), "UNKNOWN_KEY"),
        ((("authorization", "Bearer "),), "UNKNOWN_KEY"),
        ((("authorization", "Basic dXNlcjpwYXNz"),), "NO_BEARER"),
        ((("authorization", "Bearer a"), ("authorization", "Bearer b")), "NO_BEARER"),
    ],
)
def test_without_a_good_key_nothing_is_told(
    verifier: InProcessVerifier, metadata: tuple[tuple[str, str], ...], reason: str
) -> None:
    (refusal,) = refusals(verifier.address, *metadata)
    assert refusal[:2] == ("UNAUTHENTICATED", reason)
    assert verifier.service.sessions == 0


def test_health_needs_no_key(verifier: InProcessVerifier) -> None:
    with grpc.insecure_channel(verifier.address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_device_with_its_key_is_served(verifier: InProcessVerifier, key: str) -> None:
    with EdgeClient(verifier.address, security=Security(api_key=key)) as client:
        assert client.model_info().model == "mock"
        assert client.generate(PROMPT, PARAMS, seed=SEED).token_ids == tuple(WORDS)


def test_a_device_without_one_is_told_what_to_do(verifier: InProcessVerifier) -> None:
    with EdgeClient(verifier.address) as client, pytest.raises(SessionError, match="--verifier-api-key-file") as caught:
        client.generate(PROMPT, PARAMS)
    assert caught.value.reason == "NO_KEY"


def test_keys_come_and_go_while_it_serves(verifier: InProcessVerifier, file: KeyFile, key: str) -> None:
    with Stream(verifier.address, WAITING, api_key=key) as stream:
        session_id = stream.opened().session_id
        said = stream.tokens(1)
        file.remove("laptop")
        resume = opening(resume=pb.Resume(session_id=session_id, known_length=len(PROMPT)))
        with Stream(verifier.address, resume, api_key=key) as again:
            assert again.refusal().reason == "UNKNOWN_KEY"
        code, reason, sentence, *_ = stream.refusal()
        assert (code, reason) == ("UNAUTHENTICATED", "KEY_REMOVED")
        assert "continue_from" in sentence
    until(lambda: verifier.service.sessions == 0, "its session is forgotten")
    until(lambda: verifier.scheduler.room == verifier.engine.info.max_sequences, "its place is free")
    other = file.add("laptop", {})
    with Stream(verifier.address, resume, api_key=other) as again:
        assert again.refusal().reason == "SESSION"
    rest = opening(sampling=pb.SamplingParams(max_tokens=12), continue_from=said)
    with Stream(verifier.address, rest, api_key=other) as stream:
        stream.opened()
        assert [*said, *stream.rest().tokens] == WORDS


def test_only_what_a_key_opened_ends_with_it(verifier: InProcessVerifier, file: KeyFile, key: str) -> None:
    new_key, tower = file.add("laptop", {}), file.add("tower", {})
    with (
        Stream(verifier.address, WAITING, api_key=key) as old,
        Stream(verifier.address, WAITING, api_key=key) as away,
        Stream(verifier.address, WAITING, api_key=key) as moved,
        Stream(verifier.address, WAITING, api_key=tower) as other,
    ):
        for stream in (old, away, other):
            stream.opened()
        session_id = moved.opened().session_id
        resume = opening(resume=pb.Resume(session_id=session_id, known_length=len(PROMPT)))
        with Stream(verifier.address, resume, api_key=new_key) as again:
            again.opened()
            away.cut()
            file.remove("laptop", hash_of(key)[:ID_DIGITS])
            assert old.refusal().reason == "KEY_REMOVED"
            until(lambda: verifier.service.sessions == 2, "the one whose device was away is forgotten too")
            for stream in (again, other):
                stream.half_close()
                assert stream.rest().tokens == WORDS


def test_a_session_ends_when_its_principal_is_disabled(verifier: InProcessVerifier, file: KeyFile, key: str) -> None:
    with Stream(verifier.address, WAITING, api_key=key) as stream:
        stream.opened()
        file.path.write_text(file.path.read_text() + "disabled = true\n")
        assert stream.refusal()[:2] == ("PERMISSION_DENIED", "DISABLED")


def test_a_file_of_keys_that_is_broken_ends_nothing(verifier: InProcessVerifier, file: KeyFile, key: str) -> None:
    store = KeyStore(file.path)
    with Stream(verifier.address, WAITING, api_key=key) as stream:
        stream.opened()
        good = file.path.read_text()
        file.path.write_text("principals = 5")
        assert hash_of(key) in store.holders()
        file.path.unlink()
        assert hash_of(key) in store.holders()
        file.path.write_text(good)
        stream.half_close()
        assert stream.rest().tokens == WORDS


def test_a_disabled_principal_is_told_so(verifier: InProcessVerifier, file: KeyFile, key: str) -> None:
    file.path.write_text(file.path.read_text() + "disabled = true\n")
    with Stream(verifier.address, WAITING, api_key=key) as stream:
        assert stream.refusal()[:2] == ("PERMISSION_DENIED", "DISABLED")


def test_a_session_is_resumed_by_who_opened_it_and_to_others_does_not_exist(
    verifier: InProcessVerifier, file: KeyFile, key: str
) -> None:
    new_key, thief = file.add("laptop", {}), file.add("thief", {})
    with Stream(verifier.address, WAITING, api_key=key) as stream:
        session_id = stream.opened().session_id
        said = stream.tokens(1)

        def resuming(this: str) -> pb.Open:
            return opening(resume=pb.Resume(session_id=this, known_length=len(PROMPT) + len(said)))

        with (
            Stream(verifier.address, resuming(session_id), api_key=thief) as theft,
            Stream(verifier.address, resuming("0" * 32), api_key=thief) as guess,
        ):
            assert theft.refusal() == guess.refusal()
        stream.cut()
        with Stream(verifier.address, resuming(session_id), api_key=new_key) as again:
            assert again.opened().resumed_at == len(PROMPT) + len(said)
            again.half_close()
            assert [*said, *again.rest().tokens] == WORDS
    until(lambda: verifier.service.sessions == 0, "the session is forgotten")


# -- client certificates -----------------------------------------------------------------------------------------------


def test_a_certificate_is_as_good_as_a_key_and_must_not_contradict_it(tmp_path: Path, file: KeyFile) -> None:
    authority = Authority(tmp_path)
    served = authority.pair("server", "127.0.0.1")
    laptop, robot, stranger = (
        authority.pair(name, f"{name}.example", common_name=name) for name in ("laptop", "robot", "stranger")
    )
    file.add("laptop", {}, certificate="laptop.example")
    key = file.add("robot", {})
    file.add("robot", {}, certificate="robot")
    address = Address(port=0, certificate=served.certificate, key=served.key, client_authorities=authority.file)
    with InProcessVerifier(
        MockEngine(), address=address, authentication=Authentication(KeyStore(file.path))
    ) as verifier:

        def ends(shown: Pair, api_key: str = "") -> str:
            credentials = authority.trusted(shown).credentials()
            with Stream(verifier.address, WAITING, credentials=credentials, api_key=api_key) as stream:
                stream.half_close()
                try:
                    return stream.opened().model_info.model
                except grpc.RpcError as error:
                    return Stream.refused(_raising(error)).reason

        assert ends(laptop) == "mock"
        assert ends(robot) == "mock"
        assert ends(robot, key) == "mock"
        assert ends(stranger, key) == "mock"
        assert ends(laptop, key) == "KEY_OF_ANOTHER"
        assert ends(stranger) == "NO_KEY"
        with Stream(verifier.address, WAITING, credentials=authority.trusted(laptop).credentials()) as stream:
            stream.opened()
            file.remove("laptop")
            assert stream.refusal()[:2] == ("UNAUTHENTICATED", "KEY_REMOVED")


def _raising(error: grpc.RpcError) -> Iterator[None]:
    yield from ()
    raise error


def test_without_a_file_of_keys_certificates_name_their_principals(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    served = authority.pair("server", "127.0.0.1")
    ann, ben = (authority.pair(name, f"{name}.example", common_name=name) for name in ("ann", "ben"))
    address = Address(port=0, certificate=served.certificate, key=served.key, client_authorities=authority.file)
    anns, bens = authority.trusted(ann).credentials(), authority.trusted(ben).credentials()
    with (
        InProcessVerifier(MockEngine(), address=address) as verifier,
        Stream(verifier.address, WAITING, credentials=anns) as stream,
    ):
        session_id = stream.opened().session_id
        resume = opening(resume=pb.Resume(session_id=session_id, known_length=len(PROMPT)))
        with Stream(verifier.address, resume, credentials=bens) as theft:
            assert theft.refusal()[:2] == ("NOT_FOUND", "SESSION")
        with Stream(verifier.address, resume, credentials=anns) as again:
            assert again.opened().session_id == session_id
