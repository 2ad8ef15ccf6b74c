"""Kernel packages of Debian's suites, through a private configuration of apt.

The mirror is the one the host's own apt uses (``apt-get indextargets``). Lists and packages live in
the cache, nothing is installed, signatures are checked against the archive's keyring as always.
apt reads the host's configuration first, so proxies keep working. See apt.conf(5), sources.list(5).
"""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinstorm.errors import UsageError

# The lab's names for kernels, and the suites whose linux-image-amd64 they follow.
SUITES: Mapping[str, tuple[str, ...]] = {
    "oldstable": ("oldstable", "oldstable-security"),
    "stable": ("stable", "stable-security"),
    "backports": ("stable-backports",),
}
META_PACKAGE = "linux-image-amd64"
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_TARGET_FORMAT = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)\t$(CREATED_BY)"
# linux-image-7.2.11+deb13-amd64, linux-image-6.1.0-50-amd64; not -rt-, -cloud-, -dbg, -unsigned,
# and not the meta package linux-image-6.12-amd64
_IMAGE = re.compile(r"linux-image-(\d+\.\d+\.\d+[\w.+~]*(?:-\d+)?-amd64)")


class FetchError(UsageError):
    """No package can be had; ``cause`` without the remedy, for those who know a better one."""

    def __init__(self, cause: str, remedy: str):
        super().__init__(f"{cause}: {remedy}")
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Base URIs of the Debian archive and of its security archive, as the host's apt has them."""

    archive: str
    security: str | None


def parse_index_targets(text: str) -> Mirrors | None:
    """The mirrors among the lines of ``apt-get indextargets``; None when none is Debian's.

    A line is URI, release, component, origin, kind. The origin is known only after an
    ``apt-get update``, so that a fresh machine is judged by the release and component alone.
    """
    archive = security = None
    for line in text.splitlines():
        uri, release, component, origin, kind = (*line.split("\t"), *[""] * 5)[:5]
        if kind != "Packages" or component != "main":
            continue
        if origin not in ("Debian", "", "$(ORIGIN)"):
            continue
        if release.endswith("-security"):
            security = security or uri
        elif re.fullmatch(r"[a-z]+(-updates|-backports)?", release) and "debian" in uri:
            archive = archive or uri
    return Mirrors(archive, security) if archive else None


def parse_depends(stanza: str) -> list[str]:
    """Package names in the Depends field of one package's record, alternatives left out."""
    match = re.search(r"^Depends: (.*)$", stanza, re.MULTILINE)
    if match is None:
        return []
    return [item.split()[0] for item in match[1].split(", ") if "|" not in item]


def image_releases(package_names: Iterable[str]) -> list[str]:
    """Kernel releases (``6.1.0-50-amd64``) among package names, oldest first."""
    found = {match[1] for name in package_names if (match := _IMAGE.fullmatch(name.strip()))}
    return sorted(found, key=release_order)


def release_order(release: str) -> list[tuple[int, int | str]]:
    """Sort key: runs of digits as numbers, so that 6.12 comes after 6.1."""
    return [
        (1, int(part)) if part.isdigit() else (0, part)
        for part in re.findall(r"\d+|[^\d.]+", release)
    ]


def newest_with_prefix(prefix: str, releases: Sequence[str]) -> str | None:
    """The newest release that starts with the version ``prefix``: 6.1 is not a prefix of 6.12."""
    starts = re.compile(re.escape(prefix) + r"(?!\d)")
    return next((r for r in reversed(releases) if starts.match(r)), None)


class Apt:
    """One private apt configuration: a directory in the cache and the suites it reads."""

    def __init__(self, directory: Path, suites: Sequence[str], wanted: str = "kernel"):
        self.directory = directory
        self.suites = tuple(suites)
        # what errors say that it is asked for
        self.wanted = wanted

    @property
    def _config(self) -> Path:
        return self.directory / "apt.conf"

    def update(self) -> None:
        """Write the configuration and fetch the suites' lists; UsageError with the remedy."""
        mirrors = host_mirrors()
        self.directory.mkdir(parents=True, exist_ok=True)
        for folder in ("lists/partial", "archives/partial"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        self._config.write_text(
            f'Dir::Etc::sourcelist "{self.directory}/debian.sources";\n'
            'Dir::Etc::sourceparts "/dev/null";\n'
            f'Dir::State::lists "{self.directory}/lists";\n'
            f'Dir::Cache "{self.directory}";\n'
            'Acquire::Languages "none";\n'
            'Acquire::Retries "2";\n'
            'APT::Get::List-Cleanup "true";\n'
        )
        (self.directory / "debian.sources").write_text(sources(mirrors, self.suites, keyring()))
        self._run("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")

    def meta_release(self) -> str:
        """The kernel release that linux-image-amd64 of these suites depends on."""
        record = self._run("apt-cache", "show", "--no-all-versions", META_PACKAGE)
        releases = image_releases(parse_depends(record))
        if not releases:
            raise UsageError(
                f"the package {META_PACKAGE} of {'/'.join(self.suites)} names no kernel: "
                "give a version prefix or the path of a vmlinuz"
            )
        return releases[-1]

    def releases(self) -> list[str]:
        """Every kernel release these suites offer, oldest first."""
        return image_releases(self._run("apt-cache", "pkgnames", "linux-image-").splitlines())

    def packages(self, release: str) -> list[str]:
        """The packages that make up ``release``: one, or from 7.x on linux-binary and -modules."""
        image = f"linux-image-{release}"
        depends = parse_depends(self._run("apt-cache", "show", "--no-all-versions", image))
        return [image, *(d for d in depends if d.endswith(f"-{release}"))]

    def download(self, packages: Sequence[str], into: Path) -> list[Path]:
        """Fetch and verify the packages' files into the directory ``into``."""
        self._run("apt-get", "-qq", "download", *packages, cwd=into)
        return sorted(into.glob("*.deb"))

    def version(self, package: str) -> str | None:
        """The newest version of a package that these suites offer; None when they have none."""
        known = self._run("apt-cache", "policy", package)
        match = re.search(r"^  Candidate: (\S+)$", known, re.MULTILINE)
        return match[1] if match and match[1] != "(none)" else None

    def download_closure(self, packages: Sequence[str]) -> list[Path]:
        """Fetch and verify the packages and all that they depend on, whatever the host has."""
        nothing_installed = self.directory / "status"
        nothing_installed.touch()
        self._run(
            *("apt-get", "-qq", "-y", "-o", f"Dir::State::status={nothing_installed}"),
            *("--no-install-recommends", "--download-only", "install", *packages),
        )
        return sorted((self.directory / "archives").glob("*.deb"))

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        command = [program, "-c", str(self._config), *arguments]
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        if done.returncode:
            raise explain_failure(done.stderr, self.suites, self.wanted)
        return done.stdout


def sources(mirrors: Mirrors, suites: Sequence[str], signed_by: Path) -> str:
    """A deb822 sources file for the suites; the security ones only where the host has a mirror."""
    plain = [s for s in suites if not s.endswith("-security")]
    secure = [s for s in suites if s.endswith("-security")]
    stanzas = [(mirrors.archive, plain)]
    if mirrors.security and secure:
        stanzas.append((mirrors.security, secure))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {' '.join(names)}\nComponents: main\n"
        f"Architectures: amd64\nSigned-By: {signed_by}\n"
        for uri, names in stanzas
    )


def keyring() -> Path:
    """The keyring that signs Debian's archive."""
    for path in _KEYRINGS:
        if path.exists():
            return path
    raise FetchError(
        f"the archive's keyring {_KEYRINGS[0]} is missing, so kernels cannot be verified",
        "install the package debian-archive-keyring, or give --kernel the path of a vmlinuz",
    )


@functools.cache
def host_mirrors() -> Mirrors:
    """The mirrors that this machine's apt uses; UsageError where there is no Debian's apt."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FetchError(
            "kernels are fetched with Debian's apt, which this machine does not have",
            "give --kernel the path of a vmlinuz that has its modules beside it",
        )
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", _TARGET_FORMAT],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    mirrors = parse_index_targets(done.stdout)
    if mirrors is None:
        raise FetchError(
            "this machine's apt names no Debian mirror (apt-get indextargets), so no kernel can be "
            "fetched",
            "give --kernel the path of a vmlinuz that has its modules beside it",
        )
    return mirrors


def explain_failure(stderr: str, suites: Sequence[str], wanted: str = "kernel") -> FetchError:
    """One sentence from apt's errors: no network, a bad signature, or its own first line."""
    # a warning, such as that root fetches unsandboxed, can stand before the error
    lines = [
        ln[2:].strip() for kind in ("E:", "W:") for ln in stderr.splitlines() if ln.startswith(kind)
    ]
    first = lines[0] if lines else (stderr.strip().splitlines() or ["no message"])[-1]
    named = "/".join(suites)
    unreachable = (
        "Temporary failure resolving",
        "Could not resolve",
        "Could not connect",
        "Unable to connect",
        "Cannot initiate the connection",
        "Connection timed out",
        "Network is unreachable",
        "connection timed out",
    )
    if any(words in stderr for words in unreachable):
        return FetchError(
            f"the Debian mirror cannot be reached for the {wanted} of {named} ({first})",
            "check the network, or give --kernel a cached kernel or the path of a vmlinuz",
        )
    return FetchError(
        f"apt cannot fetch the {wanted} of {named} ({first})",
        "repair it, or give --kernel a path",
    )
