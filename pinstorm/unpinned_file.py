"""A file that is written without pinning the writer's pages.

A guest of the lab writes to a directory of the host, over 9p without a page cache. Where netfs does
9p's writes (v6.12, v7.2; not v6.1), each of them takes pins on the writer's buffer and gives them
back: netfs_unbuffered_write_iter_locked() calls netfs_extract_user_iter() in fs/netfs. They would
be counted in the very series that is written. What comes out of another file, sendfile(2), is no
memory of a user, and is not pinned.
"""

import contextlib
import os
from pathlib import Path
from typing import Self


class UnpinnedFile:
    """Written at its end by one process at a time. OSError of every method."""

    def __init__(self, path: Path, *, new: bool = False):
        """``new``: FileExistsError where there is one."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if new else 0)
        # Not O_APPEND, to which sendfile(2) does not write.
        self._fd = os.open(path, flags, 0o644)
        try:
            self._memory = os.memfd_create("pinstorm")
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            os.close(self._fd)
            raise

    def write(self, data: bytes) -> None:
        """All of it, or, when that fails, nothing."""
        os.pwrite(self._memory, data, 0)
        done = 0
        try:
            while done < len(data):
                done += os.sendfile(self._fd, self._memory, done, len(data) - done)
        except OSError:
            # A full disk takes half a line.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
                os.lseek(self._fd, self.size, os.SEEK_SET)
            raise
        self.size += done

    def close(self) -> None:
        os.close(self._memory)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
