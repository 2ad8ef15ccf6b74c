"""Antagonists in a guest with CMA and two nodes: each has its effect, and pins stay where they are.

One guest for all of it. What an antagonist says of itself is compared with /proc/vmstat, with what
is in the page cache, and with where the memory of another process lies, half of which is pinned.
"""

import json
from pathlib import Path
from typing import Any

import guest_script
import pytest

from pinstorm.lab.kernels import Kernel
from pinstorm.lab.shape import MOVABLE
from workloads.spec import MIB, PAGE_BYTES, Need

NEEDS = (Need.MOVABLE, Need.NUMA, Need.TARGET_DIO)
DEADLINE_S = 400.0

# As antagonists_guest.py has them.
SIZE = 4 * MIB
PAGES = SIZE // PAGE_BYTES
HELD_PAGES = 8 * MIB // PAGE_BYTES
FREE_PERCENT = 90
FREED_LATER_BYTES = 64 * MIB

# Beside the holder of pins, and how many acts each did.
BESIDE = {
    "compaction": 2,
    "compaction-node": 2,
    "drop-caches": 3,
    "dontneed-churn": 4,
    "munmap-churn": 4,
    "fork-storm": 8,
    "thp-split": 8,
    "migrate-own": 4,
    "migrate-load": 1,
    "reclaim own-group": 4,
    "reclaim madv-pageout": 4,
    "reclaim load-group": 2,
}


@pytest.fixture(scope="module")
def seen(backports: Kernel, module_tmp: Path) -> dict[str, Any]:
    """What antagonists_guest.py wrote on the newest kernel."""
    result = module_tmp / "result.json"
    guest_script.printed(
        "antagonists_guest.py",
        backports,
        module_tmp,
        str(result),
        needs=NEEDS,
        group=MOVABLE,
        deadline_s=DEADLINE_S,
    )
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def trial(seen: dict[str, Any], name: str) -> dict[str, Any]:
    found: Any = seen
    for word in name.split():
        found = found[word]
    assert "failed" not in found, found
    trial: dict[str, Any] = found
    return trial


@pytest.mark.parametrize("name", BESIDE)
def test_it_did_its_acts_and_left_nothing(seen: dict[str, Any], name: str) -> None:
    found = trial(seen, name)
    assert (found["operations"], found["latencies"]) == (BESIDE[name], BESIDE[name])
    assert (found["errors"], found["children"], found["refused"]) == ([], 0, {})


@pytest.mark.parametrize("name", BESIDE)
def test_pins_of_another_process_stay(seen: dict[str, Any], name: str) -> None:
    found = trial(seen, name)
    assert seen["held_pages"] == HELD_PAGES
    assert found["held_pages"] == HELD_PAGES
    assert found["holder"]["pinned_moved"] == 0
    assert found["holder"]["vmpin_bytes"] == HELD_PAGES * PAGE_BYTES


def test_all_pins_came_back_and_no_byte_was_changed(seen: dict[str, Any]) -> None:
    assert seen["release"] == {"intact": True, "leaked_pages": 0}


def test_what_the_same_process_has_not_pinned_does_move(seen: dict[str, Any]) -> None:
    """Else that the pins stayed would say nothing."""
    found = trial(seen, "migrate-load")
    assert found["holder"]["free_moved"] == HELD_PAGES
    assert found["rose"]["pgmigrate_success"] >= HELD_PAGES
    assert found["rose"]["pgmigrate_fail"] >= HELD_PAGES


@pytest.mark.parametrize("name", ["compaction", "compaction-node"])
def test_compaction_scans_memory(seen: dict[str, Any], name: str) -> None:
    assert trial(seen, name)["rose"].get("compact_migrate_scanned", 0) > HELD_PAGES


def test_compaction_moves_pages(seen: dict[str, Any]) -> None:
    assert trial(seen, "compaction")["rose"].get("pgmigrate_success", 0) > 0


def test_caches_are_dropped(seen: dict[str, Any]) -> None:
    found = trial(seen, "drop-caches")
    assert found["cached"] == [HELD_PAGES, 0]
    assert found["rose"]["drop_pagecache"] == BESIDE["drop-caches"]
    assert "drop_slab" not in found["rose"]


@pytest.mark.parametrize("name", ["dontneed-churn", "munmap-churn"])
def test_churned_pages_are_faulted_in_again(seen: dict[str, Any], name: str) -> None:
    assert trial(seen, name)["minor_faults"] >= BESIDE[name] * PAGES


def test_huge_pages_were_split(seen: dict[str, Any]) -> None:
    rose = trial(seen, "thp-split")["rose"]
    assert rose["thp_split_page"] >= BESIDE["thp-split"]
    assert rose["thp_collapse_alloc"] >= BESIDE["thp-split"] - 2


def test_own_memory_moves_from_node_to_node(seen: dict[str, Any]) -> None:
    found = trial(seen, "migrate-own")
    assert found["bytes"] == BESIDE["migrate-own"] * SIZE
    assert found["rose"]["pgmigrate_success"] >= BESIDE["migrate-own"] * PAGES


def test_a_group_of_its_own_is_reclaimed_and_removed(seen: dict[str, Any]) -> None:
    found = trial(seen, "reclaim own-group")
    assert found["bytes"] >= BESIDE["reclaim own-group"] * SIZE // 2
    assert found["rose"]["pgsteal_proactive"] * PAGE_BYTES >= found["bytes"]
    assert found["leaves"] == []


def test_the_group_that_a_killed_one_leaves_is_removed_by_the_next_run(
    seen: dict[str, Any],
) -> None:
    found = seen["reclaim"]["kill"]
    (leaf,) = found["during"]
    assert leaf.startswith(f"pinstorm_{found['pid']}_")
    assert found["killed"] == [leaf]
    assert found["next-run"] == []


def test_madv_pageout_needs_no_group(seen: dict[str, Any]) -> None:
    found = trial(seen, "reclaim madv-pageout")
    assert found["bytes"] >= BESIDE["reclaim madv-pageout"] * SIZE // 2
    assert found["major_faults"] >= BESIDE["reclaim madv-pageout"]
    assert "pgsteal_proactive" not in found["rose"]
    without = seen["reclaim"]["any-without-controller"]
    assert without["bytes"] >= SIZE
    assert "own-group" not in without


def test_reclaim_of_the_loads_group_takes_what_others_have(seen: dict[str, Any]) -> None:
    found = trial(seen, "reclaim load-group")
    before, after = found["cached"]
    assert before == HELD_PAGES
    assert after < HELD_PAGES // 2
    assert found["rose"]["pgsteal_proactive"] >= HELD_PAGES // 2


def test_cma_is_filled_and_given_back(seen: dict[str, Any]) -> None:
    found = trial(seen, "fill-cma")
    free, total_bytes = found["free_bytes"], found["total_bytes"]
    enough_bytes = total_bytes * FREE_PERCENT // 100
    assert free["before"] > enough_bytes + FREED_LATER_BYTES
    assert free["least"] <= enough_bytes
    assert free["after"] >= free["before"] - FREED_LATER_BYTES
    assert found["held_bytes"] >= free["before"] - free["least"] - FREED_LATER_BYTES
    assert found["errors"] == []


def test_filling_leaves_the_machine_most_of_its_memory(seen: dict[str, Any]) -> None:
    assert trial(seen, "fill-cma")["least_available_bytes"] > 1 << 30
