"""send with MSG_ZEROCOPY: the socket refers to the user's pages (FOLL_GET), and no counter moves.

What is held when: what reaches a receiver over loopback is a copy (skb_orphan_frags_rx()), and what
the receiver acknowledges is given back at once. So nothing may get that far: in prepare, more
ordinary bytes are sent than the receiver has room for, and nobody reads them; the pages stay in the
sender's queue behind these, from the send until release. That aborts the connection (connect with
AF_UNSPEC), which gives them back; the kernel says so by a completion notification, read in release.
It would also say that it had copied (SO_EE_CODE_ZEROCOPY_COPIED), and then they were not held:
release fails.

A connection's send buffer holds a few MiB, so each takes one, and there are as many connections as
the region needs. The kernel charges pages to the user (user->locked_vm) unless the process has
CAP_IPC_LOCK. See Documentation/networking/msg_zerocopy.rst.
"""

import errno
import select
import socket
import struct
from dataclasses import dataclass
from time import monotonic_ns

from workloads import libc
from workloads.memory import Region
from workloads.owner import Owner
from workloads.spec import ZEROCOPY_SEND_BYTES, CallFailed, Case, Surroundings

LOOPBACK = "127.0.0.1"
RECEIVE_BUFFER_BYTES = 64 << 10  # the kernel doubles it, see socket(7)
FILLING = bytes(4 * RECEIVE_BUFFER_BYTES)
NOTICE_DEADLINE_NS = 2_000_000_000
# struct sock_extended_err, include/uapi/linux/errqueue.h
EXTENDED_ERROR = struct.Struct("=IBBBBII")


def prepare(case: Case, region: Region, around: Surroundings, owner: Owner) -> "ZerocopySend":
    with libc.refusal_of("listen", LOOPBACK):
        listener = socket.create_server((LOOPBACK, 0))
        # Inherited by what it accepts, and no longer grown by the kernel.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    owner.release_with("listening socket", listener.close)
    operation = ZerocopySend(region, listener)
    owner.release_with("connections", operation.close)
    return operation


@dataclass(frozen=True, slots=True)
class Connection:
    """Two ends on loopback, of which one sends and the other never reads."""

    sender: socket.socket
    receiver: socket.socket

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


class ZerocopySend:
    """The whole region in the send queues of connections; released by aborting these."""

    def __init__(self, region: Region, listener: socket.socket) -> None:
        self.done_bytes: int | None = None
        self._listener = listener
        self._connections: list[Connection] = []
        self.aim_at(region)

    def aim_at(self, region: Region) -> None:
        self._pieces = libc.pieces(region.address, region.size_bytes, ZEROCOPY_SEND_BYTES)
        while len(self._connections) < len(self._pieces):
            self._connections.append(_connect(self._listener))

    def acquire(self) -> int:
        self.done_bytes = None
        send, flags = libc.send, libc.MSG_ZEROCOPY | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        parts = [
            (connection.sender.fileno(), *piece)
            for connection, piece in zip(self._connections, self._pieces, strict=True)
        ]
        done = elapsed_ns = 0
        for sender, address, size_bytes in parts:
            start_ns = monotonic_ns()
            result = send(sender, address, size_bytes, flags)
            elapsed_ns += monotonic_ns() - start_ns
            if result == -1:
                self._refuse_unless_short(done, elapsed_ns)
            done += max(result, 0)
            if result < size_bytes:  # a bad page behind the first bytes makes a short send
                self.done_bytes = done
                break
        return elapsed_ns

    def release(self) -> int:
        """Abort every connection; the ones of the next cycle are made behind that, untimed."""
        elapsed_ns = 0
        for connection in self._connections:
            start_ns = monotonic_ns()
            result = libc.disconnect(connection.sender.fileno())
            elapsed_ns += monotonic_ns() - start_ns
            libc.check("connect", result, "AF_UNSPEC", elapsed_ns)
        sent_bytes = sum(size for _, size in self._pieces)
        if self.done_bytes is not None:
            sent_bytes = self.done_bytes
        used = -(-sent_bytes // ZEROCOPY_SEND_BYTES)
        for connection in self._connections[:used]:
            _await_notice(connection.sender)
        self._renew_connections()
        return elapsed_ns

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def _refuse_unless_short(self, done: int, elapsed_ns: int) -> None:
        """A bad page behind the first bytes is no refusal; a limit refuses the region as a whole.

        Then nothing stays in the queues.
        """
        try:
            libc.check("send", -1, "MSG_ZEROCOPY", elapsed_ns)
        except CallFailed as error:
            if done and error.errno == errno.EFAULT:
                return
            if done:
                self._renew_connections()
            raise

    def _renew_connections(self) -> None:
        count = len(self._connections)
        self.close()
        self._connections += [_connect(self._listener) for _ in range(count)]


def _connect(listener: socket.socket) -> Connection:
    sender = socket.socket()
    try:
        with libc.refusal_of("connect", LOOPBACK):
            sender.setsockopt(socket.SOL_SOCKET, libc.SO_ZEROCOPY, 1)
            sender.connect(listener.getsockname())
            receiver, _ = listener.accept()
    except CallFailed:
        sender.close()
        raise
    for end in (sender, receiver):  # closed at once and by a reset, whatever the other has become
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    _fill(sender)
    return Connection(sender, receiver)


def _fill(sender: socket.socket) -> None:
    """More than the receiver can hold, in a queue that what is sent later has to wait for."""
    with libc.refusal_of("send"):
        sent_bytes = sender.send(FILLING, socket.MSG_DONTWAIT | socket.MSG_EOR)
    if sent_bytes < len(FILLING):
        detail = f"the send buffer takes {sent_bytes} of {len(FILLING)} bytes"
        raise CallFailed("send", errno.EAGAIN, detail)


def _await_notice(sender: socket.socket) -> None:
    """The completion notification of all that the socket sent, which must not say "copied"."""
    for level, kind, data in _error_message(sender):
        if (level, kind) == (socket.IPPROTO_IP, libc.IP_RECVERR):
            _, origin, _, code, _, _, _ = EXTENDED_ERROR.unpack_from(data)
            if origin == libc.SO_EE_ORIGIN_ZEROCOPY:
                if code & libc.SO_EE_CODE_ZEROCOPY_COPIED:
                    raise CallFailed("recvmsg", errno.EIO, "the kernel copied, and held no pages")
                return
    raise CallFailed("recvmsg", errno.EPROTO, "a message without a completion")


def _error_message(sender: socket.socket) -> list[tuple[int, int, bytes]]:
    """The control messages of what the error queue has, or gets soon."""
    poll = select.poll()
    poll.register(sender, 0)  # POLLERR is always asked for
    until_ns = monotonic_ns() + NOTICE_DEADLINE_NS
    while True:
        try:
            return sender.recvmsg(0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)[1]
        except BlockingIOError as error:
            left_ms = (until_ns - monotonic_ns()) // 1_000_000
            if left_ms <= 0 or not poll.poll(left_ms):
                detail = "no completion notification"
                raise CallFailed("recvmsg", errno.ETIMEDOUT, detail) from error
