"""/proc/PID/fdinfo/FD: what a kind of file tells of itself, after the lines that every file has.

Each kind has its own module for what it prints. Since Linux 2.6.22; a level; to look needs the
right to trace the process. See Documentation/filesystems/proc.rst.
"""


def read_text(pid: int | str, fd: int) -> str:
    """Raises PermissionError for another's process, FileNotFoundError when it is gone."""
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
