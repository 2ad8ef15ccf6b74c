"""telemetry.btf against a plain walk over the running kernel's BTF, and on types made by hand."""

import struct
from pathlib import Path

import pytest

from telemetry.btf import VMLINUX, Btf, NotBtf

# What follows the first three words of a type, by kind: so many bytes, or so many a member.
FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
PER_MEMBER = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


class Walked:
    """Every type, one after the other, as Documentation/bpf/btf.rst has them: slow and plain."""

    def __init__(self, data: bytes):
        header = struct.unpack_from("<HBBIIIII", data)
        _, _, _, length, types, types_length, names, names_length = header
        self.names = data[length + names : length + names + names_length]
        self.types: list[tuple[str, int, int, int, bytes]] = [("", 0, 0, 0, b"")]
        offset, end = length + types, length + types + types_length
        while offset < end:
            name, info, third = struct.unpack_from("<III", data, offset)
            kind, members = info >> 24 & 0x1F, info & 0xFFFF
            rest = FIXED.get(kind, PER_MEMBER.get(kind, 0) * members)
            payload = data[offset + 12 : offset + 12 + rest]
            self.types.append((self.name(name), kind, members, third, payload))
            offset += 12 + rest

    def name(self, offset: int) -> str:
        return self.names[offset : self.names.index(b"\0", offset)].decode()

    def enumerators(self, prefix: str) -> dict[str, int]:
        found = {}
        for _, kind, members, _, payload in self.types:
            for index in range(members if kind == 6 else 0):
                name, value = struct.unpack_from("<Ii", payload, 8 * index)
                if self.name(name).startswith(prefix):
                    found[self.name(name)] = value
        return found

    def parameters(self, function: str) -> tuple[str, ...] | None:
        for name, kind, _, proto, _ in self.types:
            if (name, kind) == (function, 12):
                _, _, members, _, payload = self.types[proto]
                return tuple(
                    self.name(struct.unpack_from("<I", payload, 8 * index)[0])
                    for index in range(members)
                )
        return None

    def members(self, structure: str) -> dict[str, int] | None:
        for name, kind, members, _, payload in self.types:
            if (name, kind) == (structure, 4):
                found = {}
                for index in range(members):
                    at, _, bits = struct.unpack_from("<III", payload, 12 * index)
                    found[self.name(at)] = (bits & 0xFFFFFF) // 8
                return found
        return None


@pytest.fixture(scope="module")
def running() -> bytes:
    if not VMLINUX.exists():
        pytest.skip(f"{VMLINUX}: this kernel has no BTF")
    return VMLINUX.read_bytes()


def test_agrees_with_a_plain_walk_over_the_running_kernel(running: bytes) -> None:
    btf, walked = Btf.parse(running), Walked(running)
    assert btf.enumerators("FOLL_") == walked.enumerators("FOLL_")
    assert btf.enumerators("BTF_KIND_") == walked.enumerators("BTF_KIND_")
    functions = (
        "pin_user_pages_fast",
        "get_user_pages_unlocked",
        "__get_user_pages",
        "memfd_pin_folios",
        "schedule",
        "no_such_function",
    )
    for function in functions:
        assert btf.parameters(function) == walked.parameters(function), function
    for structure in ("hmm_range", "list_head", "task_struct", "no_such_struct"):
        assert btf.members(structure) == walked.members(structure), structure


def test_running_kernel_knows_the_entry_points(running: bytes) -> None:
    parameters = Btf.parse(running).parameters("pin_user_pages_fast")
    assert parameters is not None
    assert parameters[:3] == ("start", "nr_pages", "gup_flags")


def made() -> bytes:
    """An int, pointers, an enum, a function, a struct with a bit field, in that order."""
    names = b"\0int\0FOLL_A\0FOLL_B\0other\0fn\0first\0second\0st\0bits\0"

    def at(name: bytes) -> int:
        return names.index(b"\0" + name + b"\0") + 1

    types = b"".join(
        (
            struct.pack("<IIII", at(b"int"), 1 << 24, 4, 32),  # 1
            *(struct.pack("<III", 0, 2 << 24, 1) for _ in range(5)),  # 2-6: pointers
            struct.pack("<III", 0, 6 << 24 | 2, 4),  # 7: an enum
            struct.pack("<Ii", at(b"FOLL_A"), 1),
            struct.pack("<Ii", at(b"FOLL_B"), -2),
            struct.pack("<III", 0, 13 << 24 | 2, 1),  # 8: a prototype
            struct.pack("<II", at(b"first"), 1),
            struct.pack("<II", at(b"second"), 2),
            struct.pack("<III", at(b"fn"), 12 << 24 | 1, 8),  # 9: the function
            # 10: a struct with kind_flag, where an offset has the width above it
            struct.pack("<III", at(b"st"), 1 << 31 | 4 << 24 | 2, 16),
            struct.pack("<III", at(b"first"), 1, 64),
            struct.pack("<III", at(b"bits"), 1, 3 << 24 | 96),
            struct.pack("<III", at(b"other"), 18 << 24 | 1 << 31, 1),  # 11: a type tag
        )
    )
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return header + types + names


def test_reads_types_made_by_hand() -> None:
    btf = Btf.parse(made())
    assert btf.enumerators("FOLL_") == {"FOLL_A": 1, "FOLL_B": -2}
    assert btf.enumerators("FOLL_B") == {"FOLL_B": -2}
    assert btf.enumerators("NONE_") == {}
    assert btf.parameters("fn") == ("first", "second")
    assert btf.parameters("int") is None
    assert btf.members("st") == {"first": 8, "bits": 12}
    assert btf.members("fn") is None


def test_what_is_no_btf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotBtf, match="no BTF"):
        Btf.parse(b"")
    with pytest.raises(NotBtf, match="magic"):
        Btf.parse(bytes(64))
    unknown = bytearray(made())
    unknown[24 + 7] = 31
    with pytest.raises(NotBtf, match="type 1"):
        Btf.parse(bytes(unknown))
    with pytest.raises(FileNotFoundError):
        Btf.read(tmp_path / "none")
