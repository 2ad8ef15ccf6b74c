"""Messages between the runner, the zygote and a case's child: one JSON object a line on a socket.

A message that names a file descriptor carries it along (SCM_RIGHTS). End of file means that the
other side is gone.
"""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

_CHUNK_BYTES = 1 << 16


class Channel:
    """One end of a stream socket that speaks JSON lines."""

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self._buffered = b""

    @staticmethod
    def pair() -> tuple["Channel", socket.socket]:
        """Our end, ready to use, and the other end's socket, to be handed away."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return Channel(ours), theirs

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, **message: Any) -> None:
        self._sock.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def send_with_descriptor(self, descriptor: int, **message: Any) -> None:
        """Send a message that fits one packet together with an open file."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        sent = socket.send_fds(self._sock, [data], [descriptor])
        self._sock.sendall(data[sent:])

    def receive(self, deadline_ns: int | None = None) -> dict[str, Any] | None:
        """The next message, or None at end of file; TimeoutError once CLOCK_MONOTONIC passes."""
        while b"\n" not in self._buffered:
            self._sock.settimeout(_seconds_until(deadline_ns))
            try:
                data = self._sock.recv(_CHUNK_BYTES)
            except ConnectionError:
                return None
            if not data:
                return None
            self._buffered += data
        return self._take_line()

    @property
    def has_message(self) -> bool:
        """Whether one is here already, so that the socket need not be readable."""
        return b"\n" in self._buffered

    def waiting(self) -> Iterator[dict[str, Any] | None]:
        """Once it is readable: the messages that are there, and None at end of file."""
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except ConnectionError:
            data = b""
        self._buffered += data
        while b"\n" in self._buffered:
            yield self._take_line()
        if not data:
            yield None

    def receive_with_descriptor(self) -> tuple[dict[str, Any] | None, int | None]:
        """The next message and the open file that came with it, if one did."""
        descriptor = None
        while b"\n" not in self._buffered:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._sock, _CHUNK_BYTES, 1)
            except ConnectionError:  # the peer closed with something of ours unread
                return None, descriptor
            if descriptors:
                descriptor = descriptors[0]
            if not data:
                return None, descriptor
            self._buffered += data
        return self._take_line(), descriptor

    def close(self) -> None:
        self._sock.close()

    def _take_line(self) -> dict[str, Any]:
        line, _, self._buffered = self._buffered.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def _seconds_until(deadline_ns: int | None) -> float | None:
    if deadline_ns is None:
        return None
    left_ns = deadline_ns - time.monotonic_ns()
    if left_ns <= 0:
        raise TimeoutError
    return left_ns / 1e9
