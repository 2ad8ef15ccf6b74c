"""What differs between the machines of two sides, from their manifests."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from pinstorm.compare.pairing import Paired, Side

ABSENT: Final = "-"
# Words of a lab guest's command line that name the run's own directories.
_VOLATILE: Final = ("virtme", "nr_open=", "PATH=", "init=")
# Which parts differ is what counts, of a text of some hundred words.
_BY_WORDS: Final = "command line"

_FIELDS: Final = (
    ("accel", ("accel",)),
    ("kernel", ("kernel", "release")),
    ("kernel build", ("kernel", "version")),
    ("tainted", ("kernel", "tainted")),
    ("host", ("hostname",)),
    ("CPU", ("cpu", "model")),
    ("microcode", ("cpu", "microcode")),
    ("CPUs online", ("cpu", "online")),
    ("memory bytes", ("memory", "total_bytes")),
    ("device", ("device",)),
    ("qemu", ("qemu",)),
    ("page bytes", ("page_bytes",)),
    ("uid", ("limits", "uid")),
    ("seccomp", ("limits", "seccomp")),
    ("containment", ("containment",)),
    ("pinstorm version", ("tool", "version")),
    ("pinstorm commit", ("tool", "commit")),
    ("suite", ("suite", "name")),
    ("suite's text", ("suite", "sha256")),
    ("seed", ("suite", "seed")),
    ("rounds", ("suite", "rounds")),
    ("order", ("suite", "order")),
    ("trace", ("suite", "trace")),
    ("hold seconds", ("suite", "hold_s")),
)
# Tables of which each entry is a line.
_TABLES: Final = (
    ("config", ("kernel", "config")),
    ("sysctl", ("sysctl",)),
    ("limit", ("limits", "rlimits")),
    ("package", ("packages",)),
    ("THP", ("memory", "thp")),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same, as people read it; ``-`` where it is not told.

    Of a side with several runs that do not agree: all that they say.
    """

    what: str
    a: str
    b: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def differences(paired: Paired) -> list[Difference]:
    """In a fixed order: machine and kernel first, then limits, packages and the suite."""
    a, b = (_facts(side) for side in paired.sides)
    return [
        Difference(what, *_shown(what, a.get(what, ABSENT), b.get(what, ABSENT)))
        for what in dict.fromkeys([*a, *b])
        if a.get(what, ABSENT) != b.get(what, ABSENT)
    ]


def _shown(what: str, a: str, b: str) -> tuple[str, str]:
    """Both texts; of a command line only the words that the other has not."""
    if what != _BY_WORDS or ABSENT in (a, b):
        return a, b
    words_a, words_b = a.split(), b.split()
    return (
        " ".join(word for word in words_a if word not in words_b) or "the same words",
        " ".join(word for word in words_b if word not in words_a) or "the same words",
    )


def _facts(side: Side) -> dict[str, str]:
    found: dict[str, dict[str, None]] = {}
    for manifest in side.manifests.values():
        for what, value in _of_manifest(manifest):
            found.setdefault(what, {})[_words(value)] = None
    return {what: " / ".join(sorted(values)) for what, values in found.items()}


def _of_manifest(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for what, path in _FIELDS:
        value = _at(manifest, path)
        yield what, str(value)[:12] if path == ("suite", "sha256") and value else value
    yield "command line", _command_line(_at(manifest, ("kernel", "cmdline")))
    for device in (one for one in manifest.get("rdma") or () if isinstance(one, Mapping)):
        for key in ("driver", "firmware", "hca_type"):
            yield f"{device.get('name')} {key}", device.get(key)
    for what, path in _TABLES:
        table = _at(manifest, path)
        for name, value in (table or {}).items() if isinstance(table, Mapping) else ():
            if not isinstance(value, Mapping):
                yield f"{what} {name}", value


def _command_line(text: Any) -> str | None:
    if text is None:
        return None
    words = str(text).split()
    return " ".join(word for word in words if not word.startswith(_VOLATILE)) or None


def _words(value: Any) -> str:
    if value is None or value == "":
        return ABSENT
    if isinstance(value, list):
        return ":".join("unlimited" if item is None else str(item) for item in value)
    return str(value)


def _at(value: Any, path: Iterable[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
