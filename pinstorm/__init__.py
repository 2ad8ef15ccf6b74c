"""pinstorm: makes the kernel pin user pages, and records what the kernel did.

``pinstorm.load(path)`` gives a bundle, or many, as polars frames; ``pinstorm.scan(path)`` gives
lazy ones. See docs/data.md.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Late: the command line, a guest and the zygote import this package and no polars.
    if name in ("load", "scan"):
        from pinstorm import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
