"""What is done to pinned memory while the pins are held, none of which may touch them (``during``).

A pin is a reference to the page, not to its mapping: Documentation/core-api/pin_user_pages.rst.
"""

from workloads.memory import Region


def disturb(what: str, region: Region) -> int:
    """The nanoseconds that it took. CallFailed when the kernel refuses."""
    raise NotImplementedError(what)
