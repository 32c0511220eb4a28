"""A server that says what a test wants, over a UNIX socket where an observed process would have it."""

import contextlib
import http.server
import json
import os
import shutil
import socketserver
import sys
import tempfile
import threading
from pathlib import Path


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        said = self.server.answers.get(self.path.partition("?")[0])
        if isinstance(said, list):
            # One after the other, the last one for ever.
            said = said.pop(0) if len(said) > 1 else said[0]
        if said is None:
            status, body = 404, b"no such path"
        elif isinstance(said, tuple):
            status, body = said
        else:
            status, body = 200, said if isinstance(said, bytes) else json.dumps(said).encode()
        if body is None:  # hangs up
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.server.hangs_up:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


class Answering(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers on `path`; `answers` is what each path is answered with: a document, bytes, a (status, bytes), or a list
    of these, one after the other. `asked` is what was asked."""

    daemon_threads = True
    hangs_up = False

    def __init__(self, path, answers):
        super().__init__(str(path), _Handler)
        os.chmod(path, 0o600)
        self.answers, self.asked = answers, []

    def handle_error(self, request, client_address):
        """Whoever asked may have gone."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def runtime():
    """A folder for sockets: their paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="tl-"))
    try:
        (folder / "tideloop").mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def serving(folder, pid, answers):
    """A process `pid` that says `answers`."""
    server = Answering(folder / "tideloop" / f"{pid}.sock", answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
