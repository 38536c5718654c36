"""A certificate authority for one test run: a server certificate for 127.0.0.1 and a client certificate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one authority, and of another one that signed none of them."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    stranger_ca: Path
    """An authority that a correct client must refuse the server under."""


def make_tls_files(directory: Path) -> TlsFiles:
    """Create authority and certificates in ``directory``; takes some 10 ms (elliptic curves)."""
    # In the function: whoever imports the harness without TLS does not need trustme.
    import trustme

    directory.mkdir(parents=True, exist_ok=True)
    files = TlsFiles(
        ca=directory / "ca.pem",
        server_cert=directory / "server.pem",
        server_key=directory / "server.key",
        client_cert=directory / "client.pem",
        client_key=directory / "client.key",
        stranger_ca=directory / "stranger-ca.pem",
    )
    authority = trustme.CA()
    authority.cert_pem.write_to_path(files.ca)
    trustme.CA().cert_pem.write_to_path(files.stranger_ca)
    # Consul's servers are also addressed by their role in the data centre.
    server = authority.issue_cert("127.0.0.1", "localhost", "server.dc1.consul")
    server.cert_chain_pems[0].write_to_path(files.server_cert)
    server.private_key_pem.write_to_path(files.server_key)
    client = authority.issue_cert("client.test")
    client.cert_chain_pems[0].write_to_path(files.client_cert)
    client.private_key_pem.write_to_path(files.client_key)
    return files
