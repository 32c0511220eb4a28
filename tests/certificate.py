"""A certificate authority that lives as long as the process, for tests that speak TLS."""

from __future__ import annotations

import functools
import ssl

import trustme

__all__ = ["contexts"]


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's context; the client trusts the server, whose name is localhost."""
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    return client, server
