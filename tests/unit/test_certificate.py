"""What the doctor says of a verifier's certificate."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from edge_client.certificate import examine_certificate
from edge_client.security import Security

NOW = datetime.datetime.now(datetime.UTC)


@contextmanager
def server(issued: trustme.LeafCert | None) -> Iterator[str]:
    """Shakes hands once, or closes at once without a certificate."""
    listening = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if issued is not None:
        issued.configure_cert(context)

    def shake() -> None:
        connection, _ = listening.accept()
        try:
            if issued is None:
                connection.sendall(b"SSH-2.0-no-verifier\r\n")
            else:
                context.wrap_socket(connection, server_side=True).close()
        except OSError:
            pass
        finally:
            connection.close()

    thread = threading.Thread(target=shake, daemon=True)
    thread.start()
    yield f"localhost:{listening.getsockname()[1]}"
    thread.join(10)
    listening.close()


@pytest.mark.parametrize(
    ("names", "valid_days", "ok", "sentence"),
    [
        (["localhost"], (-1, 100), True, "trusted, for"),
        (["localhost"], (-1, 3), True, "have the verifier's certificate renewed"),
        (["localhost"], (-9, -1), False, "has expired, by this device's clock"),
        (["localhost"], (5, 9), False, "not valid yet"),
        (["example.org"], (-1, 100), False, "is not for localhost"),
    ],
)
def test_of_a_known_authority(
    tmp_path: Path, names: list[str], valid_days: tuple[int, int], ok: bool, sentence: str
) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    begins, ends = (NOW + datetime.timedelta(days=days) for days in valid_days)
    issued = authority.issue_cert(*names, not_before=begins, not_after=ends)
    with server(issued) as address:
        found, said = examine_certificate(address, Security(ca_certificate=file))
    assert found is ok
    assert sentence in said


def test_of_an_unknown_authority() -> None:
    with server(trustme.CA().issue_cert("localhost")) as address:
        found, said = examine_certificate(address, Security(tls=True))
    assert not found
    assert "--ssl-ca-certs" in said


def test_what_speaks_no_tls_and_what_is_not_there() -> None:
    with server(None) as address:
        assert "was it started with a certificate" in examine_certificate(address, Security(tls=True))[1]
    assert "cannot be reached" in examine_certificate("localhost:1", Security(tls=True))[1]
