"""PostgreSQL and Redis of one's own: on loopback, in a temporary folder, gone at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.real import peers

_TRIES = 5
"""A port that was free may be taken by the time the server binds it."""


@dataclass(frozen=True)
class Postgres:
    host: str
    port: int
    folder: str
    user: str = "tide"
    database: str = "postgres"


@dataclass(frozen=True)
class Redis:
    port: int
    path: str


@dataclass(frozen=True)
class Certificate:
    authority: Path
    chain: Path
    key: Path

    @classmethod
    def made(cls, folder: Path) -> Certificate:
        trustme = peers.package("trustme")
        made = cls(folder / "authority.pem", folder / "chain.pem", folder / "key.pem")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(made.authority)
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(made.key)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(made.chain, append=True)
        return made


def find_postgres() -> Path:
    """The folder with PostgreSQL's programs. Raises FileNotFoundError."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise FileNotFoundError("no PostgreSQL here (tests/real/install-servers installs it on Debian)")


def find_redis() -> str:
    """The path of redis-server. Raises FileNotFoundError."""
    found = shutil.which("redis-server")
    if found is None:
        raise FileNotFoundError("no redis-server here (tests/real/install-servers installs it on Debian)")
    return found


def find_chromium() -> str:
    """The path of the distribution's Chromium. Raises FileNotFoundError."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise FileNotFoundError("no chromium here (tests/real/install-servers installs it on Debian)")
    return found


@contextlib.contextmanager
def _folder(owner: pwd.struct_passwd | None) -> Iterator[str]:
    """A folder with a short path (UNIX sockets must fit in 108 bytes) that belongs to `owner`."""
    with tempfile.TemporaryDirectory(prefix="tide-", dir="/tmp") as folder:
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        yield folder


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[Postgres]:
    """A PostgreSQL server. It refuses to run as root, so as root it runs as postgres or nobody."""
    owner = _somebody() if os.geteuid() == 0 else None
    identity = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    with _folder(owner) as folder:
        data = f"{folder}/data"
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": folder}
        peers.run(
            [str(programs / "initdb"), "-D", data, "-U", "tide", "-A", "trust", "--no-sync"],
            cwd=folder,
            env=environment,
            timeout=60,
            **identity,
        )
        for _ in range(_TRIES):
            port = _free_port()
            command = [str(programs / "postgres"), "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
            with peers.program(command, cwd=folder, env=environment, **identity) as running:
                if "could not bind" in running.wait_for("ready to accept connections", "could not bind"):
                    continue
                yield Postgres("127.0.0.1", port, folder)
                assert running.end(signal.SIGINT) == 0, running.output
                return
    raise RuntimeError(f"PostgreSQL found no free port in {_TRIES} tries")


def _somebody() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise FileNotFoundError("PostgreSQL does not run as root, and there is no user postgres or nobody")


class Restartable:
    """A Redis server that keeps nothing, and may be stopped and started again at its port."""

    def __init__(self, server: str, folder: str) -> None:
        self._server = server
        self._folder = folder
        self._running: contextlib.ExitStack | None = None
        self._program: peers.Program | None = None
        self.port = 0
        self.path = f"{folder}/redis.sock"

    @property
    def pid(self) -> int:
        assert self._program is not None
        return self._program.process.pid

    def start(self) -> None:
        """At the port of before, or at any that is free if there was none."""
        for _ in range(_TRIES):
            port = self.port or _free_port()
            settings = (
                f'bind 127.0.0.1\nport {port}\nunixsocket {self.path}\ndir {self._folder}\nsave ""\nappendonly no\n'
            )
            Path(self._folder, "redis.conf").write_text(settings)
            with contextlib.ExitStack() as stack:
                running = stack.enter_context(
                    peers.program([self._server, f"{self._folder}/redis.conf"], cwd=self._folder)
                )
                if "Could not create" in running.wait_for("eady to accept connections", "Could not create"):
                    continue
                self.port, self._program, self._running = port, running, stack.pop_all()
                return
        raise RuntimeError(f"Redis found no free port in {_TRIES} tries")

    def stop(self) -> None:
        """Ends it, in order; what it knew is gone."""
        assert self._program is not None
        assert self._running is not None
        with self._running:
            assert self._program.end(signal.SIGTERM) == 0, self._program.output
        self._running = None

    def close(self) -> None:
        if self._running is not None:
            self.stop()


@contextlib.contextmanager
def restartable_redis(server: str) -> Iterator[Restartable]:
    with _folder(None) as folder:
        running = Restartable(server, folder)
        running.start()
        try:
            yield running
        finally:
            running.close()


@contextlib.contextmanager
def redis(server: str) -> Iterator[Redis]:
    """A Redis server that keeps nothing."""
    with restartable_redis(server) as running:
        yield Redis(running.port, running.path)
