"""TLS between device and verifier: whom each side believes, and certificates that change under running sessions."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import grpc
import pytest
from outrider.v1 import verifier_pb2 as pb

from cloud_verifier.serving.address import Address, ServerError
from edge_client.client import EdgeClient, SamplingParams
from edge_client.errors import SessionError
from edge_client.link.channel import LinkSettings
from edge_client.link.security import Security
from speculation.pace.base import PATIENCE_UNLIMITED_MS
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine, answer
from tests.security.certificates import Authority, Pair
from tests.service.raw import PROMPT, SEED, Stream, opening

PARAMS = SamplingParams(max_tokens=12)
WORDS = answer(PROMPT, SEED, 12)
HASTY = LinkSettings(connect_timeout_s=1.0)  # where the sentence comes when time is up


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def served(authority: Authority) -> Pair:
    return authority.pair("server", "localhost", "127.0.0.1")


def verifier_with(served: Pair, client_authorities: Path | None = None) -> InProcessVerifier:
    address = Address(port=0, certificate=served.certificate, key=served.key, client_authorities=client_authorities)
    return InProcessVerifier(MockEngine(), address=address)


def words(address: str, security: Security) -> tuple[int, ...]:
    with EdgeClient(address, security=security) as client:
        return client.generate(PROMPT, PARAMS, seed=SEED).token_ids


def refusal(address: str, security: Security, link: LinkSettings | None = None) -> SessionError:
    with EdgeClient(address, security=security, link=link) as client, pytest.raises(SessionError) as caught:
        client.generate(PROMPT, PARAMS, seed=SEED)
    return caught.value


def test_a_device_that_trusts_the_authority_gets_its_words(authority: Authority, served: Pair) -> None:
    with verifier_with(served) as verifier:
        assert words(verifier.address, authority.trusted()) == tuple(WORDS)


def test_a_verifier_of_another_authority_is_not_believed(tmp_path: Path, served: Pair) -> None:
    other = Authority(tmp_path, "other")
    with verifier_with(served) as verifier:
        error = refusal(verifier.address, other.trusted())
        assert (error.code, error.reason) == ("UNAVAILABLE", "CERTIFICATE")
        assert "not signed by an authority that this device trusts" in str(error)
        with (
            EdgeClient(verifier.address, security=other.trusted()) as client,
            pytest.raises(SessionError, match="not signed by an authority"),
        ):
            client._channel.model_info(timeout_s=1.0)


def test_a_verifier_of_another_name_is_not_believed(authority: Authority) -> None:
    with verifier_with(authority.pair("server", "elsewhere.example")) as verifier:
        assert "made for another name" in str(refusal(verifier.address, authority.trusted()))


def test_tls_to_a_verifier_that_speaks_plaintext_is_explained(authority: Authority) -> None:
    with InProcessVerifier(MockEngine()) as verifier:
        assert "does not speak TLS" in str(refusal(verifier.address, authority.trusted()))


def test_plaintext_to_a_verifier_with_tls_gets_nothing(served: Pair) -> None:
    with verifier_with(served) as verifier:
        assert "TLS only" in str(refusal(verifier.address, Security(), HASTY))


def test_a_verifier_that_asks_for_certificates_serves_who_has_one(authority: Authority, served: Pair) -> None:
    with verifier_with(served, authority.file) as verifier:
        shown = authority.pair("laptop", "laptop.example", common_name="laptop")
        assert words(verifier.address, authority.trusted(shown)) == tuple(WORDS)
        assert "asks devices for a certificate" in str(refusal(verifier.address, authority.trusted(), HASTY))


def test_a_certificate_of_another_authority_opens_nothing(tmp_path: Path, authority: Authority, served: Pair) -> None:
    forged = Authority(tmp_path, "other").pair("forged", "laptop.example", common_name="laptop")
    with verifier_with(served, authority.file) as verifier:
        assert refusal(verifier.address, authority.trusted(forged), HASTY).code == "UNAVAILABLE"
        assert verifier.service.sessions == 0


def test_a_renewed_certificate_is_used_while_sessions_go_on(tmp_path: Path, authority: Authority, served: Pair) -> None:
    waiting = opening(sampling=pb.SamplingParams(max_tokens=12), patience_ms=PATIENCE_UNLIMITED_MS)
    with verifier_with(served) as verifier:
        credentials = authority.trusted().credentials()
        with Stream(verifier.address, waiting, credentials=credentials) as stream:
            stream.opened()
            said = stream.tokens(1)
            renewed = Authority(tmp_path, "renewed")
            assert renewed.pair("server", "127.0.0.1") == served, "the very files"
            assert words(verifier.address, renewed.trusted()) == tuple(WORDS)
            assert refusal(verifier.address, authority.trusted()).reason == "CERTIFICATE"
            stream.half_close()
            assert [*said, *stream.rest().tokens] == WORDS


@pytest.mark.parametrize("broken", ["certificate", "key", "gone"])
def test_a_renewal_gone_wrong_leaves_the_old_certificate(
    authority: Authority, served: Pair, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    with verifier_with(served) as verifier, caplog.at_level(logging.WARNING):
        if broken == "gone":
            served.key.unlink()
        elif broken == "key":
            authority.pair("other", "127.0.0.1").key.replace(served.key)
        else:
            served.certificate.write_text("half a certific")
        assert words(verifier.address, authority.trusted()) == tuple(WORDS)
        assert "stays in use" in caplog.text
        authority.pair("server", "127.0.0.1")
        assert words(verifier.address, authority.trusted()) == tuple(WORDS)


async def listen(address: Address) -> None:
    address.add_to(grpc.aio.server())


def test_files_that_are_no_certificate_stop_the_start(authority: Authority, served: Pair) -> None:
    other = authority.pair("other", "127.0.0.1")
    text = authority.file.with_name("text")
    text.write_text("no certificate")
    for wrong in (
        Address(port=0, certificate=served.certificate, key=other.key),
        Address(port=0, certificate=text, key=served.key),
        Address(port=0, certificate=served.certificate, key=served.key, client_authorities=text),
        Address(port=0, certificate=text.with_name("missing"), key=served.key),
        Address(port=0, client_authorities=authority.file),
    ):
        with pytest.raises(ServerError):
            asyncio.run(listen(wrong))


@pytest.mark.parametrize(
    ("security", "naming"),
    [
        (Security(certificate=Path("a.pem")), "private key"),
        (Security(ca_certificate=Path("missing.pem")), "missing.pem"),
        (Security(api_key="two words"), "characters that no key has"),
        (Security(api_key="ключ"), "characters that no key has"),
    ],
)
def test_a_device_is_told_what_is_wrong_with_its_own_files(security: Security, naming: str) -> None:
    with pytest.raises(ValueError, match=naming):
        EdgeClient("127.0.0.1:1", security=security)


def test_plaintext_leaves_the_machine_only_when_told_to() -> None:
    for security in (Security(), Security(api_key="key")):
        with pytest.raises(ValueError, match="in the clear"):
            EdgeClient("gpu.example:50051", security=security)
    EdgeClient("gpu.example:50051", security=Security(insecure=True)).close()


def test_a_key_is_not_shown_where_settings_are_printed() -> None:
    assert "s3cret" not in repr(Security(api_key="s3cret"))


def test_credentials_of_a_channel_in_plaintext_are_none() -> None:
    assert Security().credentials() is None
    assert isinstance(Security(tls=True).credentials(), grpc.ChannelCredentials)
