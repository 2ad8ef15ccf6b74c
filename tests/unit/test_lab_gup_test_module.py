"""The module's build, as far as it needs no mirror, no compiler and no root."""

import io
import tarfile
from pathlib import Path

import pytest

from pinstorm.errors import UsageError
from pinstorm.lab import debian
from pinstorm.lab import gup_test_module as module
from pinstorm.lab.kernels import Kernel

RELEASE = "7.2.11+deb13-amd64"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setenv("PINSTORM_CACHE", str(tmp_path / "cache"))
    return Kernel("backports", RELEASE, tmp_path / "vmlinuz", tmp_path / "lib/modules" / RELEASE)


def build_of(calls: list[str], text: str = "module") -> object:
    def build(release: str, work: Path, note: object) -> None:
        calls.append(release)
        (work / f"{module.MODULE}.ko").write_text(text)

    return build


def test_built_once_for_each_release(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(module, "_build", build_of(calls))
    first = module.module_for(kernel)
    assert first is not None
    assert first.read_text() == "module"
    assert RELEASE in first.parts
    assert module.module_for(kernel) == first
    assert calls == [RELEASE]


def test_a_failed_build_leaves_nothing_and_says_what_to_do(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(release: str, work: Path) -> None:
        (work / "half").mkdir()
        raise UsageError("the mirror cannot be reached")

    monkeypatch.setattr(module, "_fetch", fetch)
    with pytest.raises(UsageError) as caught:
        module.module_for(kernel)
    message = str(caught.value)
    assert message.startswith(f"gup_test cannot be built for kernel {RELEASE} (the mirror cannot")
    assert "run without --gup-test" in message
    left = {path.name for path in (tmp_path / "cache/gup-test").iterdir()}
    assert left == {f"{RELEASE}.lock"}


def test_without_network_there_is_one_remedy(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Offline(debian.Apt):
        def update(self) -> None:
            stderr = "E: Failed to fetch x  Could not resolve 'deb.example.org'"
            raise debian.explain_failure(stderr, self.suites, self.wanted)

    monkeypatch.setattr(debian, "Apt", Offline)
    with pytest.raises(UsageError) as caught:
        module.module_for(kernel)
    message = str(caught.value)
    assert "the Debian mirror cannot be reached for the headers and source of stable/" in message
    assert message.endswith("): run without --gup-test, or give a kernel that has CONFIG_GUP_TEST")
    assert "vmlinuz" not in message
    assert "check the network" not in message


def test_a_kernel_that_has_it_built_in(kernel: Kernel, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("CONFIG_GUP_TEST=y\n")
    built_in = Kernel("own", RELEASE, kernel.vmlinuz, kernel.modules, config_file=config)
    assert module.module_for(built_in) is None


def source_tree(names: dict[str, str]) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as tree:
        for name, text in names.items():
            member = tarfile.TarInfo(f"linux-source-7.2/{name}")
            member.size = len(text)
            tree.addfile(member, io.BytesIO(text.encode()))
    packed.seek(0)
    return packed


def test_only_the_tests_own_sources_are_unpacked(tmp_path: Path) -> None:
    names = {"mm/gup.c": "no", "mm/gup_test.c": "code", "mm/gup_test.h": "header"}
    assert module._extract(source_tree(names), tmp_path) == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "gup_test.c": "code",
        "gup_test.h": "header",
    }
    other = {"tools/mm/gup_test.c": "no", "mm/gup_test.h": "header"}
    assert module._extract(source_tree(other), tmp_path) == 1


def test_a_module_of_another_kernel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_run", lambda *command: "6.1.0-54-amd64 SMP preempt\n")
    module._verify(tmp_path / "a.ko", "6.1.0-54-amd64")
    with pytest.raises(UsageError, match=r"came out for kernel 6\.1\.0-54-amd64"):
        module._verify(tmp_path / "a.ko", RELEASE)
