"""The parts of a manifest that have the form that a run writes; anybody may have edited it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pinstorm.frames import Frames

_OBJECTS: Final = (
    *("tool", "suite", "lab", "identity", "selftest", "trace", "kernel", "cpu", "memory"),
    *("sysctl", "limits", "packages", "empty_call_ns", "scratch"),
)
_LISTS: Final = ("boots", "clock", "numa", "rdma", "unmet", "sampler")


def sound(frames: "Frames[Any]") -> "Frames[Any]":
    """The same, without the parts of manifests that are not of the form that a run writes."""
    return replace(frames, manifests={name: kept(one) for name, one in frames.manifests.items()})


def kept(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Of one manifest the parts that have that form."""

    def fits(name: str, value: Any) -> bool:
        kind = Mapping if name in _OBJECTS else list if name in _LISTS else object
        return isinstance(value, kind)

    return {name: value for name, value in manifest.items() if fits(name, value)}


def part(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Of a manifest that anybody may have edited: {} where it is no object."""
    found = manifest.get(name)
    return found if isinstance(found, Mapping) else {}
