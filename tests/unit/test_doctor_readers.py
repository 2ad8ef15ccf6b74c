"""What doctor reads besides: loaded modules, IOMMU groups, device-DAX memory and file locks."""

import fcntl
import os
from pathlib import Path

import pytest

from telemetry import dax_devices, iommu, locks, modules
from telemetry.locks import Lock

DATA = Path(__file__).parent / "data" / "telemetry"


def saved(kernel: str, name: str) -> str:
    return (DATA / kernel / name).read_text()


def test_locks_that_are_held_and_not_those_that_wait() -> None:
    found = locks.parse(saved("6.18-host", "locks"))
    assert len(found) == 11
    assert Lock("FLOCK", "WRITE", 11078, (0xFE, 0, 2146948)) in found
    assert not [lock for lock in found if lock.pid == 11125], "it waits"
    assert {lock.kind for lock in found} == {"FLOCK", "POSIX", "LEASE"}


def test_a_lock_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(FileNotFoundError):
        locks.holders_of(path)
    with path.open("w") as file:
        assert locks.holders_of(path) == []
        fcntl.flock(file, fcntl.LOCK_EX)
        (held,) = locks.holders_of(path)
        assert (held.kind, held.access, held.pid) == ("FLOCK", "WRITE", os.getpid())
    assert locks.holders_of(path) == []


def test_modules_and_who_uses_them() -> None:
    found = modules.parse(saved("7.2-guest", "modules"))
    core = found["ib_core"]
    assert core.size_bytes == 622592
    assert core.users == 3
    assert core.used_by == ("ib_uverbs", "ib_uverbs_support", "rdma_rxe")
    assert (found["rdma_rxe"].users, found["rdma_rxe"].used_by) == (0, ())
    # whoever has it open counts, too
    assert (found["vfio"].users, len(found["vfio"].used_by)) == (4, 3)


def test_a_module_that_stays() -> None:
    # kernel/module/procfs.c, print_unload_info(), without CONFIG_MODULE_UNLOAD and with init only
    found = modules.parse("a 1 - - Live 0x0\nb 2 1 [permanent], Live 0x0\nc 3 0 - Live 0x0\n")
    assert (found["a"].users, found["a"].used_by) == (None, ())
    assert (found["b"].users, found["b"].used_by) == (1, ())
    assert found["c"].users == 0


def test_which_modules_could_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "kernel/drivers/media/test-drivers/vivid/vivid.ko.xz: kernel/drivers/a/videodev.ko.xz\n"
        "kernel/drivers/vfio/pci/vfio-pci.ko:\n"
    )
    assert modules.parse_dep(text) == {"vivid", "vfio_pci"}
    monkeypatch.setattr(modules, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(modules, "LIBRARY", tmp_path)
    assert modules.can_load("vivid") is False, "a kernel without modules"
    (tmp_path / "modules").touch()
    assert modules.can_load("vivid") is None, "a container without the kernel's files"
    below = tmp_path / os.uname().release
    below.mkdir()
    (below / "modules.dep").write_text(text)
    assert (modules.can_load("vivid"), modules.can_load("udmabuf")) == (True, False)


def test_parameters_are_read_where_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "PARAMETERS", tmp_path)
    assert modules.parameter("udmabuf", "size_limit_mb") is None
    folder = tmp_path / "udmabuf" / "parameters"
    folder.mkdir(parents=True)
    (folder / "size_limit_mb").write_text("64\n")
    assert modules.parameter("udmabuf", "size_limit_mb") == "64"
    assert modules.parameter_file("udmabuf", "size_limit_mb") == folder / "size_limit_mb"


def test_groups_of_an_iommu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iommu, "GROUPS", tmp_path)
    for number, kind, device in (("10", "DMA-FQ\n", "0000:01:00.0"), ("2", None, "0000:00:02.0")):
        folder = tmp_path / number
        (folder / "devices" / device).mkdir(parents=True)
        if kind is not None:
            (folder / "type").write_text(kind)
    assert iommu.read() == [
        iommu.Group(2, None, ("0000:00:02.0",)),
        iommu.Group(10, "DMA-FQ", ("0000:01:00.0",)),
    ]
    monkeypatch.setattr(iommu, "GROUPS", tmp_path / "none")
    assert iommu.read() == []


def test_devices_of_dax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dax_devices, "DEVICES", tmp_path)
    driver = tmp_path / "drivers" / "device_dax"
    driver.mkdir(parents=True)
    device = tmp_path / "dax0.0"
    device.mkdir()
    (device / "size").write_text("1073741824\n")
    (device / "driver").symlink_to(driver)
    found = {one.name: one for one in dax_devices.read()}["dax0.0"]
    assert (found.size_bytes, found.driver) == (1 << 30, "device_dax")
    assert found.node == Path("/dev/dax0.0")
    assert dax_devices.parse_size("") is None
