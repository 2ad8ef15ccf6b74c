"""/sys/kernel/btf/vmlinux: what the running kernel's own types say of a name.

BTF (Documentation/bpf/btf.rst) lists the kernel's types one behind the other, without an index, so
that finding one means walking from the first: the 125 000 types of a 7.2 kernel in 40 ms, ten times
as long under emulation. Names of functions' parameters and of enumerators are in it; macros are
not.
"""

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("=HBBIIIII")

# enum of BTF_KIND_*, include/uapi/linux/btf.h.
_STRUCT, _UNION, _ENUM, _FUNC, _FUNC_PROTO, _ENUM64 = 4, 5, 6, 12, 13, 19
_KINDS: Final = 20
# Words of a type: name, info and size or type, then a fixed number (INT, ARRAY, VAR, DECL_TAG), or
# so many a member.
_WORDS: Final = tuple(3 + {1: 1, 3: 3, 14: 1, 17: 1}.get(kind, 0) for kind in range(_KINDS))
_PER_MEMBER: Final = tuple(
    {_STRUCT: 3, _UNION: 3, _ENUM: 2, _FUNC_PROTO: 2, 15: 3, _ENUM64: 3}.get(kind, 0)
    for kind in range(_KINDS)
)


class NotBtf(ValueError):
    """These bytes are not BTF of this machine's byte order, or of a kind that is not known."""


@dataclass(slots=True)
class Btf:
    """The types of one kernel, walked once. Places are counted in words of 4 bytes."""

    _words: memoryview
    _names: bytes
    # where each type lies, by its id; type 0 is void
    _places: list[int] = field(default_factory=lambda: [0])
    _enums: list[int] = field(default_factory=list)
    _structs: list[int] = field(default_factory=list)
    # by the place of the name
    _functions: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = VMLINUX) -> "Btf":
        """Read and walk it. OSError where the kernel has none; NotBtf."""
        return cls.parse(path.read_bytes())

    @classmethod
    def parse(cls, data: bytes) -> "Btf":
        """Walk over every type. NotBtf."""
        if len(data) < _HEADER.size:
            raise NotBtf(f"{len(data)} bytes are no BTF")
        magic, _, _, length, types, types_length, names, names_length = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise NotBtf(f"magic {magic:#x}, not {_MAGIC:#x}")
        types, names = length + types, length + names
        btf = cls(
            memoryview(data)[types : types + types_length].cast("I"),
            data[names : names + names_length],
        )
        btf._walk()
        return btf

    def enumerators(self, prefix: str) -> dict[str, int]:
        """The values of all enumerators whose names begin so; empty where there are none."""
        pattern = re.compile(b"\0(" + re.escape(prefix.encode()) + rb"\w*)(?=\0)")
        names = {m.start(1): m[1].decode() for m in pattern.finditer(self._names)}
        found = {}
        for place in self._enums:
            for member in range(place + 3, place + 3 + 2 * self._members(place), 2):
                name = names.get(self._words[member])
                if name is not None:
                    value = self._words[member + 1]
                    found[name] = value - (1 << 32) if value >> 31 else value
        return found

    def parameters(self, function: str) -> tuple[str, ...] | None:
        """The names of a function's parameters in order; None where there is no such function."""
        name = self._place_of_name(function)
        place = None if name is None else self._functions.get(name)
        if place is None:
            return None
        proto = self._places[self._words[place + 2]]
        first = proto + 3
        return tuple(
            self._name(self._words[at]) for at in range(first, first + 2 * self._members(proto), 2)
        )

    def members(self, structure: str) -> dict[str, int] | None:
        """The offset in bytes of each member of a struct; None where there is no such struct."""
        name = self._place_of_name(structure)
        place = next((place for place in self._structs if self._words[place] == name), None)
        if place is None:
            return None
        first = place + 3
        # With bit fields in it the offset has the field's width above 24 bits (kind_flag).
        return {
            self._name(self._words[at]): (self._words[at + 2] & 0xFFFFFF) // 8
            for at in range(first, first + 3 * self._members(place), 3)
        }

    def _walk(self) -> None:
        words, end = self._words, len(self._words)
        note_place, note_enum = self._places.append, self._enums.append
        note_struct, functions = self._structs.append, self._functions
        place = 0
        try:
            while place < end:
                note_place(place)
                info = words[place + 1]
                kind = info >> 24 & 0x1F
                if kind == _FUNC:
                    functions[words[place]] = place
                elif kind == _STRUCT:
                    note_struct(place)
                elif kind == _ENUM:
                    note_enum(place)
                place += _WORDS[kind] + _PER_MEMBER[kind] * (info & 0xFFFF)
        except IndexError as error:
            number = len(self._places) - 1
            raise NotBtf(f"type {number} is of a kind that is not known") from error

    def _members(self, place: int) -> int:
        return int(self._words[place + 1] & 0xFFFF)

    def _place_of_name(self, name: str) -> int | None:
        before = self._names.find(b"\0" + name.encode() + b"\0")
        return None if before < 0 else before + 1

    def _name(self, place: int) -> str:
        return self._names[place : self._names.index(b"\0", place)].decode()
