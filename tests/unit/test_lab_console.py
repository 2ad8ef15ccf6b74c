"""What a guest's console is taken to say, from consoles of real guests."""

from pathlib import Path

import pytest

from pinstorm.lab import console
from pinstorm.lab.accel import Accel

DATA = Path(__file__).parent / "data/lab"
OLD = Accel("tcg", "7.2.22")


def test_panic_is_seen_in_a_real_console():
    lines = console.lines_of(DATA / "console_panic_7.2.txt")
    panic = console.panic(lines)
    assert "Kernel panic - not syncing: sysrq triggered crash" in panic[0]
    assert lines[-len(panic) :] == panic
    assert console.panic(lines[: -len(panic)]) == []
    assert not console.is_emulators(panic, OLD)


@pytest.mark.parametrize(
    "line",
    [
        "[    3.9] BUG: unable to handle page fault for address: ffff8880",
        "[    3.9] Oops: Oops: 0002 [#1] SMP NOPTI",
        "[    3.9] Oops: 0002 [#1] PREEMPT SMP",
        "[    3.9] int3: 0000 [#1] PREEMPT SMP NOPTI",
        "[    3.9] divide error: 0000 [#1] PREEMPT SMP NOPTI",
        "[    3.9] general protection fault, maybe for address 0xdead: 0000 [#1] SMP",
    ],
)
def test_oops_is_seen(line):
    assert console.panic(["[    3.8] before", line, "after"]) == [line, "after"]


def test_lines_are_plain_text(tmp_path):
    file = tmp_path / "console.log"
    assert console.lines_of(file) == []
    file.write_bytes(b"\x1bc\x1b[?7l\x1b[2Jone\r\n\r\ntwo \xff\r\nthree\r\n")
    assert console.lines_of(file) == ["one", "two \ufffd", "three"]
    assert console.lines_of(file, file.stat().st_size - 7) == ["three"]


@pytest.mark.parametrize(
    ("accel", "emulators"),
    [
        (OLD, True),
        (Accel("tcg", "8.0.5"), True),
        (Accel("tcg", "8.1.0"), False),
        (Accel("tcg", "10.0.2"), False),
        (Accel("tcg", "unknown"), False),
        (Accel("kvm", "7.2.22"), False),
    ],
)
def test_int3_out_of_nowhere_is_the_emulators(accel, emulators):
    """A boot of 7.2.11 under QEMU 7.2.22, in sched_clock_cpu(): a jump label, being patched."""
    panic = console.panic(console.lines_of(DATA / "console_int3_qemu_7.2.txt"))
    assert "Oops: int3: 0000 [#1]" in panic[0]
    assert console.is_emulators(panic, accel) is emulators


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["[    2.0] Oops: Oops: 0002 [#1] SMP NOPTI", "[    2.1] Oops: int3: 0000 [#2] SMP NOPTI"],
        ["[    2.0] Kernel panic - not syncing: sysrq triggered crash"],
        [
            "[    2.0] int3: 0000 [#1] SMP",
            "[    9.0] Kernel panic - not syncing: sysrq triggered crash",
        ],
        [
            "[    2.0] Oops: int3: 0000 [#1] SMP NOPTI",
            "[    9.0] BUG: unable to handle page fault for address: ffff8880",
            "[    9.0] Oops: Oops: 0002 [#2] SMP NOPTI",
            "[    9.1] Kernel panic - not syncing: Fatal exception",
        ],
        ["[    2.0] int3: 0000 [#1] SMP", "[    9.0] invalid opcode: 0000 [#2] SMP"],
    ],
)
def test_other_ends_are_the_kernels(lines):
    assert not console.is_emulators(console.panic(lines), OLD)
