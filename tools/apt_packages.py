# SPDX-License-Identifier: MIT
"""Single files out of Debian and Ubuntu packages, without installing anything and without root.

A private apt root in svsmd's cache reads the archives that this machine's own apt is configured
for, with the same keys, so that signatures are checked as usual and nothing of the system changes.
A suite that the system does not read is taken from the same archive under the same keys.

Spec: apt.conf(5), sources.list(5), deb822(5).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

APT_DIRECTORY: Final = Path("/etc/apt")
OS_RELEASE: Final = Path("/etc/os-release")
ARCHITECTURE: Final = "amd64"
COMPONENT: Final = "main"

_OPTION = re.compile(r"([a-z-]+)=(\S+)", re.IGNORECASE)
_ONE_LINE = re.compile(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)")


class AptError(Exception):
    """A package cannot be had; the text is one line for people."""


@dataclass(frozen=True, slots=True)
class Source:
    """One archive and one suite of it, as apt is configured for it.

    Attributes:
        uri: base address of the archive.
        suite: code name or suite name, such as "trixie".
        components: areas of the archive.
        signed_by: file of keys, fingerprints, or empty for apt's default keys.
        key: the keys themselves, if the configuration contains them.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""
    key: str = ""

    def line(self) -> str:
        """The source in the one-line format, `main` only."""
        options = f"arch={ARCHITECTURE}" + (
            f" signed-by={self.signed_by}" if self.signed_by else ""
        )
        return f"deb [{options}] {self.uri} {self.suite} {COMPONENT}\n"


def parse_one_line(text: str) -> list[Source]:
    """Sources of a `.list` file; what is commented out or for other architectures is left out."""
    found = []
    for raw in text.splitlines():
        match = _ONE_LINE.fullmatch(raw.partition("#")[0].strip())
        if match is None:
            continue
        options = {name.lower(): value for name, value in _OPTION.findall(match[1] or "")}
        if ARCHITECTURE in options.get("arch", ARCHITECTURE).split(","):
            found.append(
                Source(match[2], match[3], tuple(match[4].split()), options.get("signed-by", ""))
            )
    return found


def _stanzas(text: str) -> Iterable[dict[str, str]]:
    """The paragraphs of a deb822 file, with lower-case field names."""
    fields: dict[str, str] = {}
    name = ""
    for raw in [*text.splitlines(), ""]:
        if raw.startswith("#"):
            continue
        if not raw.strip():
            if fields:
                yield fields
            fields = {}
        elif raw[0] in " \t":
            fields[name] += "\n" + raw.strip()
        else:
            name, _, value = raw.partition(":")
            name = name.lower()
            fields[name] = value.strip()


def parse_deb822(text: str) -> list[Source]:
    """Sources of a `.sources` file; what is disabled or for other architectures is left out."""
    found = []
    for fields in _stanzas(text):
        enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "0"}
        architectures = fields.get("architectures", ARCHITECTURE).split()
        if not enabled or "deb" not in fields.get("types", "").split():
            continue
        if ARCHITECTURE not in architectures:
            continue
        signed_by, key = fields.get("signed-by", ""), ""
        if "BEGIN PGP" in signed_by:
            # An empty line of the key is written as a dot.
            lines = ("" if line == "." else line for line in signed_by.strip().splitlines())
            signed_by, key = "", "\n".join(lines) + "\n"
        signed_by = ",".join(signed_by.split())
        found += [
            Source(uri, suite, tuple(fields.get("components", "").split()), signed_by, key)
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return found


def configured_sources(directory: Path = APT_DIRECTORY) -> list[Source]:
    """All that this machine's apt reads packages from, `main` at least."""
    parts = directory / "sources.list.d"
    found: list[Source] = []
    for path in (directory / "sources.list", *sorted(parts.glob("*.list"))):
        if path.is_file():
            found += parse_one_line(path.read_text(errors="replace"))
    for path in sorted(parts.glob("*.sources")):
        found += parse_deb822(path.read_text(errors="replace"))
    return [source for source in found if COMPONENT in source.components]


def os_release(path: Path = OS_RELEASE) -> Mapping[str, str]:
    """The fields of os-release(5); none if there is no such file."""
    if not path.is_file():
        return {}
    lines = (line.partition("=") for line in path.read_text().splitlines())
    return {name: value.strip("'\"") for name, equals, value in lines if equals}


def release_sources(sources: Iterable[Source], codename: str) -> list[Source]:
    """Those of the distribution itself: the release, its updates and its security fixes."""
    names = {codename, f"{codename}-updates", f"{codename}-security"}
    return [source for source in sources if source.suite in names]


def suite_source(sources: Sequence[Source], codename: str, suite: str) -> Source:
    """`suite` from the archive that the release `codename` comes from, under the same keys.

    Raises:
        AptError: apt is not configured for the release.
    """
    for source in sources:
        if source.suite in {suite, codename}:
            return replace(source, suite=suite)
    raise AptError(f"apt has no source for {codename}, from whose archive {suite} could be read")


def cache_directory() -> Path:
    """Where svsmd's developer tools keep what they have downloaded."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return home / "svsmd"


class AptRoot:
    """A private apt: its own sources, lists and downloads, the system's keys and settings.

    Args:
        directory: where it lives; made if it is not there.
        sources: what it reads.

    Raises:
        AptError: apt is not here, or does not get at the sources, or does not trust them.
    """

    def __init__(self, directory: Path, sources: Iterable[Source]) -> None:
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(program) is None:
                raise AptError(f"{program} is not here: packages come from Debian or Ubuntu only")
        self._directory = directory
        for part in ("lists/partial", "cache/archives/partial", "downloads"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        lines = []
        for number, source in enumerate(sources):
            if source.key:
                key = directory / f"key{number}.asc"
                key.write_text(source.key)
                source = replace(source, signed_by=str(key))
            lines.append(source.line())
        (directory / "sources.list").write_text("".join(lines))
        settings = {
            "APT::Architecture": ARCHITECTURE,
            # The cache is the user's own, where apt's unprivileged user cannot write.
            "APT::Sandbox::User": "root",
            "Dir::State": directory,
            "Dir::State::lists": directory / "lists",
            "Dir::State::status": directory / "status",
            "Dir::Cache": directory / "cache",
            "Dir::Etc::sourcelist": directory / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        configuration = directory / "apt.conf"
        configuration.write_text(
            "".join(f'{name} "{value}";\n' for name, value in settings.items())
        )
        self._environment = {**os.environ, "APT_CONFIG": str(configuration), "LC_ALL": "C"}
        # Without this, apt-get update ends well although a source was refused.
        self._run("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self._directory / "downloads",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
            reason = (errors or done.stderr.splitlines() or ["no reason given"])[0]
            raise AptError(f"{' '.join(command[:1])} failed: {reason}")
        return done.stdout

    def dependencies(self, package: str) -> list[str]:
        """Names that a package depends on directly; none if there is no such package."""
        try:
            output = self._run("apt-cache", "depends", package)
        except AptError:
            return []
        return re.findall(r"^ *Depends: (\S+)$", output, re.MULTILINE)

    def download(self, packages: Sequence[str]) -> list[Path]:
        """The archives of packages and of all that they depend on, in the root's own cache.

        Raises:
            AptError: not all of them can be had.
        """
        archives = self._directory / "cache" / "archives"
        for path in archives.glob("*.deb"):  # of older versions, or asked for by others
            path.unlink()
        options = ("-qq", "--yes", "--no-install-recommends", "--download-only")
        self._run("apt-get", *options, "install", *packages)
        return sorted(archives.glob("*.deb"))

    def extract(self, package: str, member: str, target: Path) -> Path:
        """Download a package and put the file that `member` (a regular expression) names there.

        Returns:
            `target` / the file's own name.

        Raises:
            AptError: there is no such package, or no such file in it.
        """
        files = self._unpack(package, member, target, at_most=1)
        if not files:
            raise AptError(f"{package} has no file {member}")
        return files[0]

    def extract_all(self, package: str, member: str, target: Path) -> list[Path]:
        """As `extract`, for all files that `member` names, which may be none."""
        return self._unpack(package, member, target)

    def _unpack(
        self, package: str, member: str, target: Path, at_most: int | None = None
    ) -> list[Path]:
        downloads = self._directory / "downloads"
        shutil.rmtree(downloads)
        downloads.mkdir()
        self._run("apt-get", "-qq", "download", package)
        (archive,) = downloads.glob("*.deb")
        target.mkdir(parents=True, exist_ok=True)
        found: list[Path] = []
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
        ) as unpacker:
            assert unpacker.stdout is not None
            with tarfile.open(fileobj=unpacker.stdout, mode="r|") as tar:
                for info in tar:
                    content = tar.extractfile(info) if info.isfile() else None
                    if content is None or not re.fullmatch(member, info.name.lstrip("./")):
                        continue
                    place = target / Path(info.name).name
                    temporary = place.with_name(f".{place.name}.{os.getpid()}")
                    with temporary.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    temporary.chmod(0o755 if info.mode & 0o111 else 0o644)
                    temporary.replace(place)
                    found.append(place)
                    if len(found) == at_most:
                        unpacker.kill()
                        break
        archive.unlink()
        return found


def unpack_archive(archive: Path, tree: Path) -> None:
    """As dpkg-deb --extract, which puts directories in the place of links to directories.

    Raises:
        AptError: it is no package, or there is no room for it.
    """
    tree.mkdir(exist_ok=True)
    command = ("tar", "--extract", "--preserve-permissions", "--keep-directory-symlink")
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
    ) as unpacker:
        done = subprocess.run([*command, "-C", tree], stdin=unpacker.stdout, check=False)
    if unpacker.returncode or done.returncode:
        raise AptError(f"{archive.name} cannot be unpacked")


def debian_root(suite: str) -> AptRoot:
    """A private apt that reads `suite` from the archive of the Debian that runs here.

    A Debian release is signed with the keys of the one before it, too, so that the keys that are
    here serve.

    Raises:
        AptError: as AptRoot; or apt is not configured for the release that runs here.
    """
    codename = os_release().get("VERSION_CODENAME", suite)
    source = suite_source(configured_sources(), codename, suite)
    return AptRoot(cache_directory() / "apt" / suite, [source])


def release_root() -> AptRoot:
    """A private apt that reads the release that runs here, with its updates.

    Raises:
        AptError: as AptRoot; or apt is not configured for the release.
    """
    codename = os_release().get("VERSION_CODENAME", "")
    sources = release_sources(configured_sources(), codename)
    if not sources:
        raise AptError(f"apt has no source for {codename or 'this system'}")
    return AptRoot(cache_directory() / "apt" / codename, sources)
