"""What the doctor says of certificates: the verifier's, and the device's own."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from cloud_verifier.serving.address import Address
from edge_client.link.certificates import Fault, examine_certificate, examine_own, examine_plaintext
from edge_client.link.reachability import Reached, Refusal, Wanted, reach
from edge_client.link.security import Security
from tests.harness import InProcessVerifier
from tests.mock_engine import MockEngine
from tests.security.certificates import Authority, Pair

NOW = datetime.datetime.now(datetime.UTC)


@contextmanager
def server(issued: trustme.LeafCert | None) -> Iterator[str]:
    """Shakes hands once and says something, or, without a certificate, says something else to whoever comes."""
    listening = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if issued is not None:
        issued.configure_cert(context)

    def shake() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # closed
            with contextlib.suppress(OSError), connection:
                if issued is None:
                    connection.sendall(b"SSH-2.0-no-verifier\r\n")
                    continue
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.sendall(b"x")
                    secure.recv(64)

    thread = threading.Thread(target=shake, daemon=True)
    thread.start()
    yield f"localhost:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)


@pytest.mark.parametrize(
    ("names", "valid_days", "fault", "sentence"),
    [
        (["localhost"], (-1, 100), None, "trusted, for"),
        (["localhost"], (-1, 3), None, "have the verifier's certificate renewed"),
        (["localhost"], (-9, -1), Fault.OUT_OF_DATE, "has expired, by this device's clock"),
        (["localhost"], (5, 9), Fault.OUT_OF_DATE, "not valid yet"),
        (["example.org"], (-1, 100), Fault.WRONG_NAME, "is not for localhost"),
    ],
)
def test_of_a_known_authority(
    tmp_path: Path, names: list[str], valid_days: tuple[int, int], fault: Fault | None, sentence: str
) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    begins, ends = (NOW + datetime.timedelta(days=days) for days in valid_days)
    issued = authority.issue_cert(*names, not_before=begins, not_after=ends)
    with server(issued) as address:
        found, said = examine_certificate(address, Security(ca_certificate=file))
    assert found is fault
    assert sentence in said


def test_of_an_unknown_authority() -> None:
    with server(trustme.CA().issue_cert("localhost")) as address:
        found, said = examine_certificate(address, Security(tls=True))
    assert found is Fault.UNTRUSTED
    assert "--ssl-ca-certs" in said


def test_what_speaks_no_tls_and_what_is_not_there() -> None:
    with server(None) as address:
        assert "was it started with a certificate" in examine_certificate(address, Security(tls=True)).sentence
    assert "cannot be reached" in examine_certificate("localhost:1", Security(tls=True)).sentence


def test_an_address_is_a_name_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with serving(authority.pair("server", "localhost")) as verifier:
        assert examine_certificate(verifier.address, authority.trusted()).fault is Fault.WRONG_NAME


def serving(pair: Pair | None, clients: Path | None = None) -> InProcessVerifier:
    where = Address(port=0, certificate=pair.certificate, key=pair.key, client_authorities=clients) if pair else None
    return InProcessVerifier(MockEngine(), address=where)


def dated(folder: Path, *days: int) -> tuple[Path, Security]:
    """A device's certificate, valid for these days from now: its authority, and what shows it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "clients.pem"))
    begins, ends = (NOW + datetime.timedelta(days=number) for number in days)
    issued = authority.issue_cert("laptop.example", common_name="laptop", not_before=begins, not_after=ends)
    issued.cert_chain_pems[0].write_to_path(str(folder / "laptop.crt"))
    issued.private_key_pem.write_to_path(str(folder / "laptop.key"))
    return folder / "clients.pem", Security(certificate=folder / "laptop.crt", key=folder / "laptop.key")


@pytest.mark.parametrize(
    ("days", "fault", "sentence"),
    [
        ((-1, 100), None, "valid, for 100 more days"),
        ((-1, 3), None, "laptop.crt renewed"),
        ((-9, -1), Fault.OUT_OF_DATE, "laptop.crt has expired"),
        ((5, 9), Fault.OUT_OF_DATE, "laptop.crt is not valid yet"),
    ],
)
def test_of_the_devices_own(tmp_path: Path, days: tuple[int, int], fault: Fault | None, sentence: str) -> None:
    clients, security = dated(tmp_path, *days)
    verdict = examine_own(security)
    assert verdict.fault is fault
    assert sentence in verdict.sentence
    authority = Authority(tmp_path)
    shown = Security(ca_certificate=authority.file, certificate=security.certificate, key=security.key)
    with serving(authority.pair("server", "127.0.0.1"), clients) as verifier:
        assert examine_certificate(verifier.address, shown).fault is fault


def test_who_shows_none_or_one_of_a_stranger_is_told_so(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    stranger = Authority(tmp_path, "other").pair("stranger", "laptop.example")
    good = authority.pair("laptop", "laptop.example")
    with serving(authority.pair("server", "127.0.0.1"), authority.file) as verifier:
        for shown, fault in (
            (None, Fault.CLIENT_CERTIFICATE_MISSING),
            (stranger, Fault.CLIENT_CERTIFICATE_REFUSED),
            (good, None),
        ):
            assert examine_certificate(verifier.address, authority.trusted(shown)).fault is fault


def test_files_that_are_none_are_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(ValueError, match=r"cannot use .*text.pem for TLS"):
        examine_certificate("127.0.0.1:1", Security(ca_certificate=tmp_path / "text.pem"))


def test_what_is_there_where_plaintext_is_tried(tmp_path: Path) -> None:
    with serving(Authority(tmp_path).pair("server", "127.0.0.1")) as verifier:
        assert examine_plaintext(verifier.address).fault is Fault.TLS_ONLY
    with serving(None) as verifier:
        assert examine_plaintext(verifier.address).ok
    with server(None) as address:
        assert examine_plaintext(address).fault is Fault.NO_VERIFIER
    assert examine_plaintext("localhost:1").fault is Fault.AWAY


def test_what_would_help_is_told_to_whoever_can_ask_for_it(tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    authority = Authority(tmp_path)
    plain, files = Security(), Security(ca_certificate=tmp_path / "text.pem")
    with serving(authority.pair("server", "127.0.0.1")) as verifier:
        here = verifier.address
        for address, security, wanted in (
            (here, plain, Wanted.TLS),
            (here, Security(tls=True), Wanted.AUTHORITY),
            (here, files, Wanted.AUTHORITY),
            (here.replace("127.0.0.1", "localhost"), authority.trusted(), Wanted.ADDRESS),
            ("127.0.0.1:1", plain, Wanted.ADDRESS),
            ("no port", plain, Wanted.ADDRESS),
            ("gpu..example:50051", Security(insecure=True), Wanted.ADDRESS),
            ("gpu.example:50051", plain, Wanted.PROTECTION),
        ):
            refusal = reach(address, "", security)
            assert isinstance(refusal, Refusal)
            assert refusal.wanted is wanted, refusal.sentence
        no_model = reach(here, "other", authority.trusted())
        assert isinstance(no_model, Refusal)
        assert no_model.wanted is Wanted.NOTHING_FROM_HERE
        reached = reach(f"127.0.0.1:1,{here}", "", authority.trusted())
        assert isinstance(reached, Reached)
        assert reached.info.model == "mock"
        assert reached.rtt_ms > 0
