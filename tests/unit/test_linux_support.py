# SPDX-License-Identifier: MIT
"""What a kernel's image tells of its support for SEV-SNP and SVSMs."""

import gzip
import logging

import pytest

from svsmd.host.linux_support import check_linux, embedded_config
from svsmd.host.loader_error import LoaderError

PRINTK = b"\0\x015Kernel command line: %s\n\0"
SNP = b"\0\x01c SEV-SNP\0"
SVSM = b"\0\x016SEV: SNP running at VMPL%u.\n\0"


def banner(version: str) -> bytes:
    return f"\0Linux version {version} (builder@host) (gcc) #1 SMP\n\0".encode()


def config(text: str) -> bytes:
    return b"IKCFG_ST" + gzip.compress(text.encode()) + b"IKCFG_ED"


ON = config("CONFIG_SMP=y\nCONFIG_AMD_MEM_ENCRYPT=y\n")
OFF = config("CONFIG_SMP=y\n# CONFIG_AMD_MEM_ENCRYPT is not set\n")


@pytest.mark.parametrize(
    ("image", "under_svsm"),
    [
        (banner("6.12.3") + PRINTK + SNP + SVSM, True),
        (banner("6.1.0-50-cloud-amd64") + PRINTK + SNP, False),
        (banner("5.14.0-503.el9") + PRINTK + SNP + SVSM, True),
        (banner("6.4.0-sle") + PRINTK + SNP + b"Can't remap the SVSM CA", True),
        (banner("6.4.0-sle") + PRINTK + SNP + b"svsm_perform_call", True),
        (banner("6.12.3") + SNP + ON, False),
        (b"no Linux at all", True),
        (b"Linux version unknown", True),
        (b"", False),
    ],
)
def test_what_can_run_is_let_through(image, under_svsm, caplog):
    check_linux(image, under_svsm=under_svsm)
    assert not caplog.records


@pytest.mark.parametrize(
    ("image", "under_svsm", "message", "hint"),
    [
        (
            banner("6.1.0-50-cloud-amd64") + PRINTK + SNP, True,
            r"\(Linux 6\.1\.0-50-cloud-amd64\) cannot run under an SVSM", "--no-svsm",
        ),
        (banner("5.10.0") + PRINTK, False, "cannot run as an SEV-SNP guest$", "Linux 5.19"),
        (banner("5.10.0") + PRINTK, True, "cannot run as an SEV-SNP guest$", "6.11"),
        (banner("6.12.0") + PRINTK, True, "it was built without CONFIG_AMD_MEM_ENCRYPT", "=y"),
        (banner("6.12.0") + OFF, True, "was built without CONFIG_AMD_MEM_ENCRYPT", "=y"),
        (banner("6.12.0") + PRINTK + OFF, False, "was built without CONFIG_AMD_MEM", "=y"),
        (banner("6.1.0") + PRINTK + ON + SNP, True, "cannot run under an SVSM", "6.11"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(image, under_svsm, message, hint):
    with pytest.raises(LoaderError, match=message) as caught:
        check_linux(image, under_svsm=under_svsm)
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("image", "under_svsm", "message"),
    [
        (banner("6.12.0"), True, "cannot run as an SEV-SNP guest"),
        (banner("6.12.0") + ON, False, "cannot run as an SEV-SNP guest"),
        (banner("6.1.0") + SNP, True, "cannot run under an SVSM"),
        (banner("6.12.0") + PRINTK + SNP, True, "cannot run under an SVSM"),
    ],
)
def test_who_is_not_sure_warns(image, under_svsm, message, caplog):
    """A kernel without messages cannot be told from one without the support."""
    check_linux(image, under_svsm=under_svsm)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert message in record.getMessage()


def test_embedded_config():
    assert embedded_config(b"before" + ON + b"behind") == (
        "CONFIG_SMP=y\nCONFIG_AMD_MEM_ENCRYPT=y\n"
    )
    assert embedded_config(b"nothing") is None
    assert embedded_config(b"IKCFG_ST damaged") is None
    assert embedded_config(ON[:30]) is not None, "what there is of it"
    bomb = embedded_config(config("#" * (16 << 20)))
    assert bomb is not None
    assert len(bomb) == 4 << 20
