"""Where a figure is from: the kernel, and how it ran. What is emulated is a place of its own."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import polars

from pinstorm.manifest_form import part

EMULATED = " (emulated)"
_HOW = {"tcg": EMULATED, "kvm": " (KVM)"}
_UNKNOWN = "unknown kernel"
_SIZE = re.compile(r"\d+([KMG]i)?B")


def expression() -> polars.Expr:
    """``place`` of a row of the cases."""
    # Not replace_strict(), for which polars 2.1 holds the whole table.
    how = polars.lit("")
    for accel, words in _HOW.items():
        how = polars.when(polars.col("accel") == accel).then(polars.lit(words)).otherwise(how)
    return polars.concat_str(polars.col("kernel").fill_null(_UNKNOWN), how).alias("place")


def of_manifest(manifest: Mapping[str, Any]) -> str:
    """The place of a bundle's loads, whose time series do not name it."""
    identity = part(manifest, "identity")
    kernel = identity.get("kernel") or part(manifest, "kernel").get("release") or _UNKNOWN
    return f"{kernel}{_HOW.get(str(manifest.get('accel') or identity.get('accel')), '')}"


def is_emulated(place: str) -> bool:
    return place.endswith(EMULATED)


def order(place: str) -> tuple[bool, str]:
    """Real ones first, then older kernels before newer ones."""
    return is_emulated(place), re.sub(r"\d+", lambda number: number[0].zfill(9), place)


def short_names(places: Iterable[str]) -> dict[str, str]:
    """``7.2.11`` of ``7.2.11+deb13-amd64``, unless two would be alike."""
    names = {place: re.sub(r"\+[^ ]*", "", place) for place in places}
    short = list(names.values())
    return {place: name if short.count(name) == 1 else place for place, name in names.items()}


def variant(case: str) -> str:
    """What a case's name says besides workload, memory and size: ``ro offset_bytes=512``."""
    return " ".join(word for word in case.split("/")[2:] if not _SIZE.fullmatch(word))


def page_bytes(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """PAGE_SIZE by bundle; 4 KiB of one that does not say."""
    sizes = {name: found.get("page_bytes") for name, found in manifests.items()}
    return {
        name: size if isinstance(size, int) and size > 0 else 4096 for name, size in sizes.items()
    }


def usual_page_bytes(manifests: Mapping[str, Mapping[str, Any]]) -> int:
    """The PAGE_SIZE of most bundles, in which folios are named."""
    sizes = list(page_bytes(manifests).values()) or [4096]
    return max(set(sizes), key=sizes.count)
