"""DVC remotes on a real S3 server, and a wire to it that can be cut."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from projects import git
from servers import HOST, S3Server, free_port

Direction = Literal["up", "down"]

_CONFIG = """\
[core]
    remote = storage
    analytics = false
[cache]
    dir = ../var/cache
['remote "storage"']
    url = s3://{bucket}/{prefix}
    endpointurl = {endpoint}
    region = {region}
    verify = true
"""


def use_s3(root: Path, server: S3Server, prefix: str, endpoint: str | None = None) -> None:
    """Commit a .dvc/config whose remote is a prefix of the server's bucket, as the endpoint shows it."""
    address = endpoint or server.endpoint
    text = _CONFIG.format(bucket=server.bucket, prefix=prefix, endpoint=address, region=server.region)
    (root / ".dvc/config").write_text(text)
    git(root, "commit", "-q", "-am", "the DVC remote is on S3")


def credentials(server: S3Server) -> dict[str, str]:
    """The environment variables that let a client in."""
    return {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}


def stored(server: S3Server, prefix: str, md5: str) -> Path:
    """The file in which the server keeps an object of a DVC remote."""
    return server.folder / prefix / "files/md5" / md5[:2] / md5[2:]


class Wire:
    """A TCP relay in front of a server that breaks after so many bytes have passed in one direction.

    Broken, it is `closed` (connections end, new ones are ended at once) or `silent` (they stay open, nothing passes);
    `mend` lets everything pass again.
    """

    def __init__(self, port: int) -> None:
        self._target = (HOST, port)
        self._listener = socket.create_server((HOST, free_port()))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.broken: Literal["closed", "silent"] | None = None
        self._plan: tuple[Direction, int, Callable[[], None]] | None = None
        self._uploads: tuple[int, Callable[[], None]] | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def break_after(self, size: int, direction: Direction, how: Literal["closed", "silent"]) -> None:
        """Break when this many further bytes have gone up to the server, or down from it."""
        self.act_after(size, direction, lambda: self._break(how))

    def act_after(self, size: int, direction: Direction, action: Callable[[], None]) -> None:
        """Do something when this many further bytes have passed."""
        self._plan = (direction, size, action)

    def stall_upload(self, number: int, action: Callable[[], None]) -> None:
        """Fall silent before this upload of an object (1: the next one) gets through, and do something then."""
        self._uploads = (number, action)

    def mend(self) -> None:
        self._plan, self._uploads, self.broken = None, None, None

    def close(self) -> None:
        self._listener.close()
        self._break("closed")

    def _break(self, how: Literal["closed", "silent"]) -> None:
        self.broken = how
        if how == "closed":
            with self._lock:
                for end in self._open:
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            for source, target, direction in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pass, args=(source, target, direction), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, direction: Direction) -> None:
        with suppress(OSError):
            while self.broken != "closed" and (block := source.recv(1 << 14)):
                self._count(direction, len(block))
                if block.startswith(b"PUT "):  # a client begins a request in a packet of its own
                    self._count_upload()
                if self.broken is None:
                    target.sendall(block)
            target.shutdown(socket.SHUT_WR)

    def _count(self, direction: Direction, size: int) -> None:
        with self._lock:
            if self._plan is None or self._plan[0] != direction:
                return
            wanted, left, action = self._plan[0], self._plan[1] - size, self._plan[2]
            self._plan = (wanted, left, action) if left > 0 else None
        if left <= 0:
            action()

    def _count_upload(self) -> None:
        with self._lock:
            if self._uploads is None:
                return
            left, action = self._uploads[0] - 1, self._uploads[1]
            self._uploads = (left, action) if left > 0 else None
            if left == 0:
                self.broken = "silent"
        if left == 0:
            action()
