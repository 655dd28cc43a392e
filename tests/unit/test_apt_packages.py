# SPDX-License-Identifier: MIT
"""What apt is configured for, read from both formats."""

import re
from pathlib import Path

import pytest

from tools.apt_packages import (
    AptError,
    AptRoot,
    Source,
    cache_directory,
    configured_sources,
    os_release,
    parse_deb822,
    parse_one_line,
    release_sources,
    suite_source,
)
from tools.fetch_kernel import cached_kernel, extract_kernel, newest_image, version_of

KEYS = "/usr/share/keyrings/keys.gpg"


def test_one_line() -> None:
    text = f"""
# deb http://off.invalid/debian bookworm main
deb [arch=amd64,arm64 signed-by={KEYS}] http://a.invalid/debian bookworm main contrib # why
deb http://a.invalid/debian-security bookworm-security main
deb [arch=riscv64] http://b.invalid/debian bookworm main
deb-src http://a.invalid/debian bookworm main
"""
    assert parse_one_line(text) == [
        Source("http://a.invalid/debian", "bookworm", ("main", "contrib"), KEYS),
        Source("http://a.invalid/debian-security", "bookworm-security", ("main",)),
    ]


def test_deb822() -> None:
    text = f"""\
Types: deb deb-src
# a comment in the middle
URIs: http://a.invalid/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: {KEYS}

Enabled: no
Types: deb
URIs: http://off.invalid/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://b.invalid/ubuntu
Suites: noble
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abcd
 -----END PGP PUBLIC KEY BLOCK-----
"""
    first, second, third = parse_deb822(text)
    assert first == Source("http://a.invalid/debian", "bookworm", ("main",), KEYS)
    assert second.suite == "bookworm-updates"
    assert third.signed_by == ""
    assert third.key.splitlines()[:3] == ["-----BEGIN PGP PUBLIC KEY BLOCK-----", "", "abcd"]


def test_configured_sources(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.invalid/debian bookworm main\n")
    (parts / "x.list").write_text("deb http://b.invalid/x stable contrib\n")
    (parts / "y.sources").write_text(
        "Types: deb\nURIs: http://c.invalid/debian\nSuites: sid\nComponents: main\n"
    )
    (parts / "z.sources.off").write_text("Types: deb\nURIs: http://d.invalid\nSuites: sid\n")
    assert [source.uri for source in configured_sources(tmp_path)] == [
        "http://a.invalid/debian",
        "http://c.invalid/debian",
    ]


def test_a_newer_suite_comes_from_the_archive_of_the_release() -> None:
    sources = [
        Source("http://tools.invalid/apt", "stable", ("main",)),
        Source("http://a.invalid/debian", "bookworm", ("main",), KEYS),
    ]
    found = suite_source(sources, "bookworm", "trixie")
    assert found.line() == (
        f"deb [arch=amd64 signed-by={KEYS}] http://a.invalid/debian trixie main\n"
    )
    with pytest.raises(AptError, match="no source for buster"):
        suite_source(sources, "buster", "trixie")


def test_release_sources() -> None:
    suites = ("noble", "noble-updates", "noble-security", "noble-backports", "jammy")
    sources = [Source("http://a.invalid/ubuntu", suite, ("main",)) for suite in suites]
    assert [source.suite for source in release_sources(sources, "noble")] == [*suites[:3]]


def test_os_release(tmp_path: Path) -> None:
    path = tmp_path / "os-release"
    path.write_text('ID=debian\nVERSION_ID="12"\n# comment\n')
    assert os_release(path) == {"ID": "debian", "VERSION_ID": "12"}
    assert os_release(tmp_path / "none") == {}


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "svsmd"
    # A relative path must be ignored (XDG base directory specification).
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_directory() == Path("/home/somebody/.cache/svsmd")


def test_the_newest_cached_kernel(tmp_path: Path) -> None:
    assert cached_kernel(tmp_path) is None
    for name in ("vmlinuz-6.12.9-cloud-amd64", "vmlinuz-6.12.41+deb13-cloud-amd64", "other-7.0"):
        (tmp_path / name).touch()
    kernel = cached_kernel(tmp_path)
    assert kernel is not None
    assert kernel.name == "vmlinuz-6.12.41+deb13-cloud-amd64"
    assert version_of("linux-image-6.11.0-29-generic") == (6, 11, 0)
    assert version_of("linux-image-generic") == ()


class FakeRoot(AptRoot):
    """An apt root that knows what each package depends on, and which files are in it."""

    def __init__(self, packages: dict[str, list[str]], files: dict[str, str]) -> None:
        self._packages = packages
        self._files = files

    def dependencies(self, package: str) -> list[str]:
        return self._packages.get(package, [])

    def extract(self, package: str, member: str, target: Path) -> Path:
        name = self._files[package]
        assert re.fullmatch(member, name)
        path = target / Path(name).name
        path.write_text(package)
        return path


def test_the_newest_usable_kernel_is_taken(tmp_path: Path) -> None:
    root = FakeRoot(
        {"old": ["linux-base", "linux-image-6.1.0-50-amd64"], "new": ["linux-image-6.12.9-amd64"]},
        {"linux-image-6.12.9-amd64": "boot/vmlinuz-6.12.9-amd64"},
    )
    assert newest_image(root, ("none", "old", "new")) == "linux-image-6.12.9-amd64"
    assert newest_image(root, ("old", "new"), (6, 1)) == "linux-image-6.1.0-50-amd64"
    kernel = extract_kernel(root, "linux-image-6.12.9-amd64", tmp_path)
    assert kernel.name == "vmlinuz-6.12.9-amd64"
    with pytest.raises(AptError, match=r"6\.11 or newer"):
        newest_image(root, ("old",))


def test_a_kernel_in_a_package_of_its_own_gets_its_release_for_a_name(tmp_path: Path) -> None:
    image, binary = "linux-image-7.2.13+deb14-amd64", "linux-binary-7.2.13+deb14-amd64"
    root = FakeRoot(
        {"meta": [image], image: ["linux-base-7.2.13", binary]},
        {binary: "usr/lib/modules/7.2.13+deb14-amd64/vmlinuz"},
    )
    assert newest_image(root, ("meta",)) == binary
    kernel = extract_kernel(root, binary, tmp_path)
    assert kernel == tmp_path / "vmlinuz-7.2.13+deb14-amd64"
    assert kernel.read_text() == binary
    assert version_of(kernel.name) == (7, 2, 13)
