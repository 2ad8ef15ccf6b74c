"""/proc/sys/kernel/tainted: why the kernel no longer counts itself clean.

A bit mask; machine-wide; bits are set and never cleared until reboot. Since Linux 2.3 (bits came
later). See Documentation/admin-guide/tainted-kernels.rst.
"""

from pathlib import Path

TAINTED = Path("/proc/sys/kernel/tainted")

# kernel/panic.c taint_flags[], bit 0 first. J (fwctl) is new in v6.15.
LETTERS = "PFSRMBUDAWCIOELKXTNJ"
WARN = 1 << LETTERS.index("W")


def parse(text: str) -> int:
    return int(text)


def read() -> int | None:
    """The mask; None where it may not be read."""
    try:
        return parse(TAINTED.read_text(encoding="ascii"))
    except OSError:
        return None


def letters(mask: int) -> str:
    """``"WO"`` for bits 9 and 12; bits that this table lacks as ``?<bit>``."""
    return "".join(
        LETTERS[bit] if bit < len(LETTERS) else f"?{bit}"
        for bit in range(mask.bit_length())
        if mask >> bit & 1
    )


def new_bits(before: int | None, after: int | None) -> int | None:
    """The bits that came in between; None where either is not known."""
    return None if before is None or after is None else after & ~before


def new(before: int | None, after: int | None) -> str | None:
    """The letters that came in between, ``""`` for none; None where either is not known."""
    bits = new_bits(before, after)
    return None if bits is None else letters(bits)
