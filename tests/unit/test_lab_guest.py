"""Shapes, the command that boots a guest, and what set-up reads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pinstorm.errors import UsageError
from pinstorm.lab import accel, boot, setup
from pinstorm.lab.accel import Accel
from pinstorm.lab.guest import NEEDS_OF_PIECE
from pinstorm.lab.kernels import Kernel
from pinstorm.lab.shape import MOVABLE, NODE1_MIB, PLAIN, Shape, shapes_for
from telemetry import mountinfo, zoneinfo
from workloads.spec import Need

DATA = Path(__file__).parent / "data/lab"
TCG = Accel("tcg", "7.2.22")


def kernel(tmp_path: Path, config: str = "", vmlinux: bool = True) -> Kernel:
    config_file = tmp_path / "config"
    config_file.write_text(config)
    modules = tmp_path / "lib/modules/7.2.0"
    elf = tmp_path / "vmlinux" if vmlinux else None
    return Kernel("backports", "7.2.0", tmp_path / "vmlinuz", modules, elf, config_file)


EVERYTHING = {PLAIN: tuple(Need), MOVABLE: tuple(Need)}
QUICK = (Need.RDMA_DEVICE, Need.SCRATCH_EXT4, Need.SCRATCH_DAX, Need.HUGETLB_2M)


def test_one_guest_serves_both_shapes_with_cma(tmp_path):
    wanted = {PLAIN: QUICK, MOVABLE: [Need.MOVABLE]}
    shapes = shapes_for(kernel(tmp_path, "CONFIG_CMA=y\n"), wanted)
    assert [s.serves for s in shapes] == [{PLAIN, MOVABLE}]
    assert "cma=2600M" in shapes[0].kernel_options
    assert {"movable", "rxe", "pmem-dax"} <= set(shapes[0].pieces)


def test_movable_boots_alone_without_cma(tmp_path):
    shapes = shapes_for(kernel(tmp_path), {PLAIN: QUICK, MOVABLE: [Need.MOVABLE]})
    assert [s.serves for s in shapes] == [{PLAIN}, {MOVABLE}]
    assert "kernelcore=2G" not in shapes[0].kernel_options
    assert "kernelcore=2G" in shapes[1].kernel_options
    assert shapes[1].pieces == ("tracing", "movable")


def test_plain_alone_has_no_cma(tmp_path):
    (shape,) = shapes_for(kernel(tmp_path, "CONFIG_CMA=y\n"), {PLAIN: QUICK})
    assert not [o for o in shape.kernel_options if o.startswith("cma=")]


def test_a_boot_gets_what_its_cases_need_and_no_more(tmp_path):
    (bare,) = shapes_for(kernel(tmp_path), {PLAIN: []})
    assert bare.pieces == ("tracing",)
    assert not bare.modules
    (shape,) = shapes_for(kernel(tmp_path), {PLAIN: QUICK})
    assert shape.pieces == ("tracing", "rxe", "scratch-ext4", "pmem-dax", "hugepages")
    assert not shape.qemu_options
    assert shape.memory_mib == bare.memory_mib
    # the order in which cases come changes nothing
    assert shapes_for(kernel(tmp_path), {PLAIN: reversed(QUICK)}) == [shape]


def test_every_shape_ends_at_a_panic_and_stays_in_place(tmp_path):
    for shape in shapes_for(kernel(tmp_path), EVERYTHING):
        assert {"nokaslr", "panic=-1", "memmap=512M!4G"} <= set(shape.kernel_options)
        assert set(shape.pieces) <= set(setup.PIECES)


def test_every_piece_is_asked_for_by_a_need(tmp_path):
    (shape,) = shapes_for(kernel(tmp_path, "CONFIG_CMA=y\n"), EVERYTHING)
    # the gup-test module is something that the user has to ask for
    assert set(shape.pieces) == set(setup.PIECES) - {"gup-test"}
    assert set(NEEDS_OF_PIECE) == set(setup.PIECES) - {"tracing"}


def options_after(shape: Shape, option: str) -> list[str]:
    options = shape.kernel_options
    return [options[i + 1] for i, given in enumerate(options) if given == option]


def test_options_that_belong_together_stay_together(tmp_path):
    (shape,) = shapes_for(kernel(tmp_path, "CONFIG_CMA=y\n"), EVERYTHING)
    assert options_after(shape, "hugepagesz=2M") == ["hugepages=0:64"]
    assert options_after(shape, "hugepagesz=1G") == ["hugepages=0:1"]
    assert shape.kernel_options.count("brd.rd_nr=3") == 1


def test_memory_of_two_nodes_is_the_guests(tmp_path):
    (shape,) = shapes_for(kernel(tmp_path), {PLAIN: [Need.NUMA]})
    sizes = [int(w.split("size=")[1].rstrip("M")) for w in shape.qemu_options if "size=" in w]
    assert sizes == [shape.memory_mib - NODE1_MIB, NODE1_MIB]


def test_unknown_shape(tmp_path):
    with pytest.raises(UsageError, match="'numa'"):
        shapes_for(kernel(tmp_path), {"numa": []})


def command(tmp_path: Path, accelerator: Accel, **options: bool) -> list[str]:
    (shape,) = shapes_for(kernel(tmp_path), {PLAIN: QUICK})
    return boot._command(kernel(tmp_path, **options), shape, accelerator)


def test_command_without_kvm(tmp_path):
    words = command(tmp_path, TCG)
    assert {"--disable-kvm", "--force-9p", "mitigations=off"} <= set(words)
    assert words[-2:] == ["--qemu-opt=-kernel", f"--qemu-opt={tmp_path}/vmlinux"]


def test_command_with_kvm_measures_what_the_host_would(tmp_path):
    words = command(tmp_path, Accel("kvm", "7.2.22"), vmlinux=False)
    assert not {"--disable-kvm", "mitigations=off", "--qemu-opt=-kernel"} & set(words)


def test_entry_is_a_shell_script(tmp_path):
    (shape,) = shapes_for(kernel(tmp_path), {PLAIN: tuple(Need)})
    assert len(shape.modules) == 2
    share = Path(__file__).resolve().parents[2] / "runs/x"
    env = {"A": "b'c $d"}
    text = boot._entry(shape, share, share / ".guest-1", env, tmp_path)
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    # a share below a directory that the cached root covers is laid on top of it again
    assert f"mount --bind /run/pinstorm/share {share}" in text


@pytest.mark.parametrize("path", ["/run/user/0/out", "/var/tmp/x", "/home/a b/out", "/home/ü"])
def test_paths_the_guest_cannot_see(path):
    with pytest.raises(UsageError, match="--out"):
        boot.check_visible(Path(path), "--out")


def test_missing_virtme_ng_is_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="virtme-ng is not installed"):
        boot.virtme_run()


class Ended:
    """A process that is over."""

    pid = 1

    def poll(self) -> int:
        return 255


class Running(Ended):
    def poll(self) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("process", "code_text", "polled"),
    [
        (Running(), None, None),
        (Running(), "", None),
        (Running(), "3\n", 3),
        (Ended(), "0\n", 0),
        (Ended(), None, boot.GONE),
    ],
)
def test_exit_code_comes_from_the_share(tmp_path, process, code_text, polled):
    if code_text is not None:
        (tmp_path / "exit").write_text(code_text)
    guest = boot.Guest(process, tmp_path, tmp_path / "console.log", TCG)
    assert guest.poll() == polled
    assert not guest.started
    if polled is None:
        assert guest.wait(0.01) is None


def test_qemu_version():
    text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n"
    assert accel.parse_qemu_version(text) == "7.2.22"


def test_dax_is_read_from_mountinfo():
    mounts = mountinfo.parse((DATA / "mountinfo-6.12.txt").read_text())
    is_dax = {mount.mount_point: mountinfo.is_dax(mount) for mount in mounts}
    assert is_dax["/run/pinstorm/dax"]
    assert not is_dax["/run/pinstorm/ext4"]


def test_movable_zone_is_read_from_zoneinfo():
    zones = zoneinfo.parse((DATA / "zoneinfo-6.12-kernelcore.txt").read_text())
    assert sum(zone.present_pages or 0 for zone in zones if zone.name == "Movable") == 916480


def test_a_piece_fails_alone(monkeypatch):
    def broken() -> setup.Given:
        raise setup.SetupError("`rdma link add` failed: no")

    monkeypatch.setattr(setup, "RUN", Path("/nowhere"))
    good = setup.Given("64 pages", {"ext4": Path("/s")}, {"vfio": "0000:00:05.0"})
    monkeypatch.setattr(setup, "PIECES", {"rxe": broken, "hugepages": lambda: good})
    lab = setup.set_up(["rxe", "hugepages", "unheard-of"])
    assert {name: r.ok for name, r in lab.results.items()} == {
        "rxe": False,
        "hugepages": True,
        "unheard-of": False,
    }
    assert lab.results["rxe"].detail == "`rdma link add` failed: no"
    assert lab.device is None
    assert lab.scratch == {"ext4": "/s"}
    assert lab.nodes == {"vfio": "0000:00:05.0"}
    assert json.loads(json.dumps(lab.to_json()))["pieces"]["hugepages"]["ok"]


def test_setup_needs_the_standard_library_alone():
    code = "import sys; sys.path.insert(0, '.'); import pinstorm.lab.setup"
    root = Path(__file__).resolve().parents[2]
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", code], cwd=root, check=True)


# A QEMU that hangs, as it does where KVM is there and runs no guest.
HANGS = """#!/bin/sh
echo $$ > "$PINSTORM_CACHE/pid.new" && mv "$PINSTORM_CACHE/pid.new" "$PINSTORM_CACHE/pid"
exec sleep 1000
"""
PROBE = """
import signal
from pathlib import Path
from pinstorm.lab import accel
from pinstorm.lab.kernels import Kernel
signal.signal(signal.SIGINT, signal.default_int_handler)
nothing = Path("/nothing")
accel.why_kvm_fails(Kernel("backports", "7.2.0", nothing, nothing, None, nothing), 1000)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_probe_of_kvm_that_is_broken_off_leaves_no_qemu(tmp_path, number):
    program = tmp_path / accel.QEMU
    program.write_text(HANGS)
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PINSTORM_CACHE": str(tmp_path),
    }
    deadline = time.monotonic() + 60
    with subprocess.Popen(
        [sys.executable, "-c", PROBE], env=environment, stderr=subprocess.DEVNULL
    ) as probe:
        while not (tmp_path / "pid").exists():
            assert probe.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        qemu = Path("/proc", (tmp_path / "pid").read_text().strip())
        probe.send_signal(number)
    try:
        while qemu.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        if qemu.exists():
            os.kill(int(qemu.name), signal.SIGKILL)
