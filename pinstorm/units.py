"""Between stored units and people's units.

Stored data is in bytes, nanoseconds and pages of PAGE_SIZE; ``16MiB``, ``60s`` and ``41.3 us``
exist only in suites, on the command line and on screen.
"""

import re

from pinstorm.errors import UsageError

SIZE_FACTORS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
DURATION_FACTORS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_SIZE = re.compile(r"\s*(\d+)\s*([A-Za-z]*)\s*")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def parse_size(value: str | int) -> int:
    """Bytes of ``"16MiB"``, ``"4096"`` or 4096. Raises UsageError."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise UsageError(f"size {value} is negative; write bytes, or a size such as 16MiB")
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise UsageError(
            f'{_quoted(value)} is not a size; write a whole number and a unit: "16MiB"'
        )
    number, unit = match.groups()
    if unit not in SIZE_FACTORS:
        raise UsageError(
            f'size {_quoted(value)} has the unknown unit "{unit}"; write B, KiB, MiB, GiB or TiB'
        )
    return int(number) * SIZE_FACTORS[unit]


def parse_duration(value: str | int | float) -> float:
    """Seconds of ``"60s"``, ``"500ms"`` or ``"2m"``; a bare number is in seconds.

    Raises UsageError.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not 0 <= value < float("inf"):
            raise UsageError(f"duration {value} is no duration; write seconds, or one such as 60s")
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise UsageError(f'{_quoted(value)} is not a duration; write a number and a unit: "60s"')
    number, unit = match.groups()
    if unit not in DURATION_FACTORS:
        raise UsageError(
            f'duration {_quoted(value)} has the unknown unit "{unit}"; write ms, s, m or h'
        )
    return float(number) * DURATION_FACTORS[unit]


def format_bytes(size_bytes: int) -> str:
    """``16 MiB``, ``2.5 MiB``, ``100 B``: the largest binary unit, three digits."""
    if size_bytes < 0:
        return "-" + format_bytes(-size_bytes)
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = SIZE_FACTORS[unit]
        if size_bytes >= factor:
            if size_bytes % factor == 0:
                return f"{size_bytes // factor} {unit}"
            return f"{_three_digits(size_bytes / factor)} {unit}"
    return f"{size_bytes} B"


def format_ns(time_ns: int | float) -> str:
    """``870 ns``, ``41.3 us``, ``2.31 ms``, ``1.20 s``: three digits."""
    if time_ns < 0:
        return "-" + format_ns(-time_ns)
    if time_ns < 999.5:
        return f"{time_ns:.0f} ns"
    for unit, factor in (("us", 1e3), ("ms", 1e6)):
        if time_ns < 999.5 * factor:
            return f"{_three_digits(time_ns / factor)} {unit}"
    return f"{_three_digits(time_ns / 1e9)} s"


def format_pages(pages: int) -> str:
    """``1 page``, ``4096 pages``."""
    return "1 page" if pages == 1 else f"{pages} pages"


def format_seconds(seconds: float) -> str:
    """A span on the scale of a run: ``7 s``, ``1:05``, ``2:00:00``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def _three_digits(value: float) -> str:
    if value < 9.995:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"
