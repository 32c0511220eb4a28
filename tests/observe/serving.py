"""A client that says exactly what it is told to, for the tests of the server."""

from __future__ import annotations

import json
import socket
from urllib.parse import parse_qs, urlsplit

LIMIT = 20.0


def connected(server, by_port=False):
    """A connection to one of the two doors."""
    if by_port:
        return socket.create_connection(("127.0.0.1", port_of(server)), LIMIT)
    client = socket.socket(socket.AF_UNIX)
    try:
        # Blocking: with a time limit it would not wait for a place among those who knock.
        client.connect(server.socket)
        client.settimeout(LIMIT)
    except BaseException:
        client.close()
        raise
    return client


def port_of(server):
    return urlsplit(server.url).port


def token_of(server):
    return parse_qs(urlsplit(server.url).query)["token"][0]


def everything(client):
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def said(server, text, by_port=False):
    """Status and body of the answer to these bytes."""
    with connected(server, by_port) as client:
        client.sendall(text)
        head, _, body = everything(client).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else None, body


def ask(server, path, *headers, by_port=False):
    """Status and body of the answer to a request with these headers; by the port a right host and token are added."""
    lines = [f"GET {path} HTTP/1.1", *headers]
    names = {line.partition(":")[0].lower() for line in headers}
    if by_port and "host" not in names:
        lines.append(f"Host: 127.0.0.1:{port_of(server)}")
    if by_port and "authorization" not in names:
        lines.append(f"Authorization: Bearer {token_of(server)}")
    return said(server, ("\r\n".join(lines) + "\r\n\r\n").encode(), by_port)


def document(server, path):
    status, body = ask(server, path)
    assert status == 200, body
    return json.loads(body)
