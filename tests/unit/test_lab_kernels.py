"""Kernel names, releases and packages, on listings saved from Debian's mirrors."""

from pathlib import Path

import pytest

from pinstorm import cache
from pinstorm.errors import UsageError
from pinstorm.lab import debian, kernels

DATA = Path(__file__).parent / "data/lab"


def releases(suite: str) -> list[str]:
    return debian.image_releases((DATA / f"pkgnames-{suite}.txt").read_text().splitlines())


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PINSTORM_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(self, program, *arguments, cwd=None):
        raise AssertionError(f"{program} was asked")

    monkeypatch.setattr(debian.Apt, "_run", refuse)


def make_tree(root: Path, release: str) -> Path:
    tree = root / "kernels" / release
    modules = tree / "usr/lib/modules" / release
    modules.mkdir(parents=True)
    (tree / "lib").symlink_to("usr/lib")
    (modules / "vmlinuz").write_bytes(b"")
    (modules / "config").write_text("CONFIG_CMA=y\nCONFIG_9P_FS=m\n# CONFIG_NUMA is not set\n")
    return tree


def bzimage_head(release: bytes) -> bytes:
    head = bytearray(0x800)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x400 - 0x200).to_bytes(2, "little")
    text = release + b" (builder@host) #1 SMP\0"
    head[0x400 : 0x400 + len(text)] = text
    return bytes(head)


def test_mirrors_are_debians_own():
    mirrors = debian.parse_index_targets((DATA / "indextargets-debian12.txt").read_text())
    assert mirrors == debian.Mirrors(
        "http://mirror.example.org/debian/", "http://mirror.example.org/debian-security/"
    )


def test_mirrors_before_the_first_update_have_no_origin():
    line = "http://mirror.example.org/debian/\ttrixie\tmain\t\tPackages\n"
    assert debian.parse_index_targets(line) == debian.Mirrors(
        "http://mirror.example.org/debian/", None
    )


def test_no_debian_mirror():
    line = "http://archive.example.com/ubuntu/\tnoble\tmain\tUbuntu\tPackages\n"
    assert debian.parse_index_targets(line) is None


def test_security_suites_only_with_a_security_mirror():
    signed_by = Path("/k.gpg")
    both = debian.sources(debian.Mirrors("http://a/", "http://s/"), ["s", "s-security"], signed_by)
    assert both.count("Signed-By: /k.gpg") == 2
    assert "Suites: s-security" in both
    alone = debian.sources(debian.Mirrors("http://a/", None), ["s", "s-security"], signed_by)
    assert "security" not in alone


@pytest.mark.parametrize(
    ("suite", "release"),
    [
        ("oldstable", "6.1.0-54-amd64"),
        ("stable", "6.12.113+deb13-amd64"),
        ("backports", "7.2.11+deb13-amd64"),
    ],
)
def test_meta_package_names_the_release(suite, release):
    record = (DATA / f"show-linux-image-amd64-{suite}.txt").read_text()
    assert debian.image_releases(debian.parse_depends(record)) == [release]


def test_new_kernels_come_in_parts():
    record = (DATA / "show-linux-image-7.2.txt").read_text()
    assert [d for d in debian.parse_depends(record) if d.endswith("-7.2.11+deb13-amd64")] == [
        "linux-base-7.2.11+deb13-amd64",
        "linux-binary-7.2.11+deb13-amd64",
        "linux-modules-7.2.11+deb13-amd64",
    ]


def test_releases_leave_out_other_flavours_and_meta_packages():
    found = releases("oldstable") + releases("backports")
    assert all(r.endswith("-amd64") for r in found)
    assert not [r for r in found if "rt" in r or "cloud" in r]
    assert "6.12-amd64" not in found


@pytest.mark.parametrize(
    ("suite", "prefix", "release"),
    [
        ("backports", "7", "7.2.11+deb13-amd64"),
        ("backports", "7.1", "7.1.13+deb13-amd64"),
        ("backports", "6.19", "6.19.14+deb13-amd64"),
        ("oldstable", "6.1", "6.1.0-54-amd64"),
        ("oldstable", "6.12", "6.12.113+deb12-amd64"),
        ("oldstable", "6.1.0-50", "6.1.0-50-amd64"),
        ("backports", "8", None),
        ("oldstable", "6.", None),
    ],
)
def test_newest_with_prefix(suite, prefix, release):
    assert debian.newest_with_prefix(prefix, releases(suite)) == release


def test_no_network_is_one_sentence():
    stderr = (
        "W: Failed to fetch http://mirror/debian/dists/stable/InRelease  "
        "Temporary failure resolving 'mirror'\n"
        "E: Some index files failed to download.\n"
    )
    message = str(debian.explain_failure(stderr, ["stable"]))
    assert message.startswith("the Debian mirror cannot be reached")
    assert "\n" not in message


def test_expand():
    assert kernels.expand(["stable", "all"]) == ["stable", "oldstable", "backports"]


@pytest.mark.parametrize("name", ["oldstabel", "7.x", "trixie", "", "linux", "../7.2"])
def test_a_name_that_is_none_asks_nobody(name, empty_cache, no_network):
    with pytest.raises(UsageError):
        kernels.resolve(name)


def test_misspelt_name_is_told_the_nearest(empty_cache, no_network):
    with pytest.raises(UsageError, match="did you mean backports"):
        kernels.resolve("backport")


def test_resolved_name_never_touches_the_network(empty_cache, no_network):
    make_tree(empty_cache, "7.2.11+deb13-amd64")
    remembered = {"backports": {"release": "7.2.11+deb13-amd64"}}
    cache.write_json(empty_cache / "kernels/names.json", remembered)
    kernel = kernels.resolve("backports")
    assert kernel.release == "7.2.11+deb13-amd64"
    assert kernel.has("CMA")
    assert kernel.has("CONFIG_9P_FS")
    assert not kernel.has("NUMA")
    assert kernel.modules_base == empty_cache / "kernels/7.2.11+deb13-amd64"
    assert kernels.resolve("7.2.11+deb13-amd64").release == kernel.release
    known = {line.name: line for line in kernels.cached()}
    assert known["backports"].cached
    assert not known["stable"].cached


def test_module_closure():
    dep = (
        "kernel/a/rdma_rxe.ko.xz: kernel/b/ib-core.ko.xz kernel/c/udp_tunnel.ko.xz\n"
        "kernel/b/ib-core.ko.xz:\n"
        "kernel/d/other.ko.xz: kernel/b/ib-core.ko.xz\n"
    )
    assert kernels.module_closure(dep, ["rdma-rxe"]) == [
        "kernel/a/rdma_rxe.ko.xz",
        "kernel/b/ib-core.ko.xz",
        "kernel/c/udp_tunnel.ko.xz",
    ]


def test_image_release():
    assert kernels.image_release(bzimage_head(b"7.3.0-rc1+")) == "7.3.0-rc1+"
    with pytest.raises(ValueError, match="HdrS"):
        kernels.image_release(b"\x7fELF" + bytes(0x300))


def test_path_with_modules_beside_it(tmp_path, no_network):
    image = tmp_path / "vmlinuz"
    image.write_bytes(bzimage_head(b"7.3.0"))
    with pytest.raises(UsageError, match="no modules beside it"):
        kernels.resolve(str(image))
    modules = tmp_path / "lib/modules/7.3.0"
    modules.mkdir(parents=True)
    (modules / "modules.dep").touch()
    (tmp_path / ".config").write_text("CONFIG_CMA=y\n")
    kernel = kernels.resolve(str(image))
    assert (kernel.release, kernel.modules, kernel.vmlinux) == ("7.3.0", modules, None)
    assert kernel.has("CMA")


def test_path_that_is_not_there():
    with pytest.raises(UsageError, match="cannot be read"):
        kernels.resolve("/nowhere/vmlinuz")
