"""TLS with a real certificate: verified unless the user says otherwise."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint_drives import ASK, Drive, both, loopback, pulled, text

from ada_guard.errors import ConfigError, GenerationError
from ada_guard.sources import Endpoint
from ada_guard.testing_endpoint import ScriptedEndpoint

pytestmark = [
    loopback,
    both,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that only itself vouches for, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run(["openssl", *kind, "-keyout", key, "-out", cert, *names], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def base_url(certificate: tuple[Path, Path]) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with ScriptedEndpoint("a b").serve(tls=context) as url:
        yield url


async def test_a_certificate_that_nobody_vouches_for_is_refused(drive: Drive, base_url: str) -> None:
    endpoint = Endpoint(base_url=base_url, model="m")
    with pytest.raises(ConfigError, match="certificate is not trusted: pass verify="):
        await drive(endpoint.open(ASK).start())
    await drive(endpoint.close())


@pytest.mark.parametrize("how", ["file", "context", "off"])
async def test_a_certificate_can_be_vouched_for_or_not_looked_at(
    drive: Drive, base_url: str, certificate: tuple[Path, Path], how: str
) -> None:
    file = str(certificate[0])
    verify = {"file": file, "context": ssl.create_default_context(cafile=file), "off": False}[how]
    endpoint = Endpoint(base_url=base_url, model="m", verify=verify)
    assert text(await pulled(drive, endpoint.open(ASK))) == "a b"
    await drive(endpoint.close())


async def test_plain_http_to_a_server_that_speaks_tls(drive: Drive, base_url: str) -> None:
    endpoint = Endpoint(base_url=base_url.replace("https", "http"), model="m", retries=0)
    with pytest.raises(GenerationError, match="closed the connection without an answer"):
        await drive(endpoint.open(ASK).start())
    await drive(endpoint.close())
