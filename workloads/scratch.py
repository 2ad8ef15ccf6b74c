"""Files of a case's own, nameless, so that not even SIGKILL leaves one behind."""

import os

from workloads import libc
from workloads.owner import Owner


def nameless_file(directory: str, owner: Owner, flags: int = 0) -> int:
    """A descriptor of a new empty file in ``directory``, open for reading and writing."""
    path = os.path.join(directory, f"pinstorm-{os.getpid()}-{os.urandom(8).hex()}")
    with libc.refusal_of("open", path):
        flags |= os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
    owner.release_with("scratch file", lambda: os.close(fd))
    with libc.refusal_of("unlink", path):
        os.unlink(path)
    return fd
