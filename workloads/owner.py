"""One owner for every resource of a case: each is registered on the line after it was acquired.

Unlike contextlib.ExitStack, every release runs, every failing release is kept, and a failure of
the body is never hidden behind a failing release.
"""

from collections.abc import Callable


class Owner:
    """A last-in, first-out list of releases. ``errors`` holds what failed while releasing."""

    def __init__(self) -> None:
        self._releases: list[tuple[str, Callable[[], object]]] = []
        self.errors: list[str] = []

    def release_with(self, what: str, release: Callable[[], object]) -> None:
        """Register ``release`` for the resource named ``what``."""
        self._releases.append((what, release))

    def close(self) -> None:
        """Release everything, newest first. Never raises; see ``errors``."""
        while self._releases:
            what, release = self._releases.pop()
            try:
                release()
            except Exception as error:  # a failing release must not stop the others
                self.errors.append(f"{what}: {error}")
