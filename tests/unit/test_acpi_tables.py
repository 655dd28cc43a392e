# SPDX-License-Identifier: MIT
"""ACPI tables: checksums, pointers, contents, and iasl's opinion of the AML."""

import shutil
import struct
import subprocess

import pytest

from svsmd.host import aml
from svsmd.host.acpi_tables import build_acpi_tables, dsdt, facs, fadt, madt
from svsmd.host.loader_error import LoaderError
from svsmd.snp.types import Gpa

BASE = Gpa(0x1_6000)
FACS = Gpa(0x1_8000)


def tables(ncpus: int = 2) -> dict[bytes, bytes]:
    """All tables by signature, found as an operating system finds them."""
    blob = build_acpi_tables(BASE, 0x2000, FACS, ncpus)
    assert len(blob) == 0x2000

    def at(address: int) -> bytes:
        offset = address - BASE
        length = struct.unpack_from("<I", blob, offset + 4)[0]
        data = blob[offset : offset + length]
        assert sum(data) & 0xFF == 0
        return data

    assert blob[:8] == b"RSD PTR "
    assert sum(blob[:20]) & 0xFF == 0
    assert sum(blob[:36]) & 0xFF == 0
    assert blob[15] == 2
    (xsdt_address,) = struct.unpack_from("<Q", blob, 24)
    xsdt = at(xsdt_address)
    found = {b"XSDT": xsdt}
    for (address,) in struct.iter_unpack("<Q", xsdt[36:]):
        found[at(address)[:4]] = at(address)
    (dsdt_address,) = struct.unpack_from("<Q", found[b"FACP"], 140)
    assert struct.unpack_from("<I", found[b"FACP"], 40)[0] == dsdt_address
    found[b"DSDT"] = at(dsdt_address)
    return found


def test_all_tables_are_there_with_right_checksums():
    assert tables().keys() == {b"XSDT", b"FACP", b"APIC", b"DSDT"}


def test_fadt_names_the_fixed_hardware():
    data = fadt(0x1234, FACS)
    assert len(data) == 276
    assert data[8] == 6
    (flags,) = struct.unpack_from("<I", data, 112)
    # A kernel takes a hardware-reduced platform (bit 20) for one with EFI.
    assert flags == 1 << 0 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 10
    assert struct.unpack_from("<II", data, 36) == (FACS, 0x1234)
    assert struct.unpack_from("<H", data, 46) == (9,)
    # There is no SMI that would have to switch ACPI on.
    assert data[48:56] == bytes(8)
    for offset, port in ((116, 0xCF9), (244, 0x60C), (256, 0x60D)):
        space, width, _, access, address = struct.unpack_from("<BBBBQ", data, offset)
        assert (space, width, access, address) == (1, 8, 1, port)
    for offset, length, extended, port, size in (
        (56, 88, 148, 0x600, 4), (64, 89, 172, 0x604, 2), (76, 91, 208, 0x608, 4),
    ):  # fmt: skip
        assert struct.unpack_from("<I", data, offset) == (port,)
        assert data[length] == size
        space, width, _, access, address = struct.unpack_from("<BBBBQ", data, extended)
        assert (space, width, address) == (1, 8 * size, port)
        assert 1 << (access - 1) == size
    assert data[128] == 6
    assert data[108] == 0x32


def test_facs():
    data = facs()
    assert struct.unpack_from("<4sI", data) == (b"FACS", 64)
    assert len(data) == 64
    assert data[32] == 2
    assert not any(data[8:32])
    assert not any(data[33:])


def test_madt_lists_cpus_ioapic_and_override():
    data = madt(257)
    assert struct.unpack_from("<I", data, 36)[0] == 0xFEE0_0000
    entries = []
    position = 44
    while position < len(data):
        entries.append(data[position : position + data[position + 1]])
        position += data[position + 1]
    assert position == len(data)
    apics = [struct.unpack("<BBBBI", entry)[2:] for entry in entries if entry[0] == 0]
    assert apics == [(cpu, cpu, 1) for cpu in range(255)]
    x2apics = [struct.unpack("<BBHIII", entry)[3:] for entry in entries if entry[0] == 9]
    assert x2apics == [(255, 1, 255), (256, 1, 256)]
    assert entries[-3] == struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC0_0000, 0)
    assert entries[-2] == struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)
    assert entries[-1] == struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0xD)


@pytest.mark.parametrize("ncpus", [0, 2000])
def test_impossible_numbers_of_cpus(ncpus):
    with pytest.raises(LoaderError, match="CPU"):
        build_acpi_tables(BASE, 0x2000, FACS, ncpus)


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
def test_iasl_disassembles_and_recompiles_the_dsdt(tmp_path):
    original = dsdt()
    (tmp_path / "dsdt.aml").write_bytes(original)
    run = subprocess.run(
        ["iasl", "-d", "dsdt.aml"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "rror" not in run.stderr + run.stdout
    source = (tmp_path / "dsdt.dsl").read_text()
    for text in ("PNP0501", "PNP0B00", "0x03F8", "_S5"):
        assert text in source
    subprocess.run(
        ["iasl", "-p", "again", "dsdt.dsl"], cwd=tmp_path, capture_output=True, check=True
    )
    again = (tmp_path / "again.aml").read_bytes()
    # iasl signs its tables with its own creator id; the AML has to be the same.
    assert again[36:] == original[36:]


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (acpica-tools) is not installed")
@pytest.mark.parametrize(
    "table", [fadt(0x1_6040, FACS), facs(), madt(3)], ids=["fadt", "facs", "madt"]
)
def test_iasl_accepts_the_data_tables(tmp_path, table):
    (tmp_path / "table.aml").write_bytes(table)
    run = subprocess.run(
        ["iasl", "-d", "table.aml"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "nvalid" not in run.stdout + run.stderr
    subprocess.run(
        ["iasl", "-p", "again", "table.dsl"], cwd=tmp_path, capture_output=True, check=True
    )
    assert (tmp_path / "again.aml").read_bytes()[36:] == table[36:]


@pytest.mark.parametrize(
    ("size", "encoded"),
    [
        (0, "01"),
        (62, "3f"),
        (63, "4104"),
        (0xFFD, "4fff"),
        (0xFFE, "810001"),
        (0xFFFFC, "8fffff"),
        (0xFFFFD, "c1000001"),
    ],
)
def test_package_length(size, encoded):
    assert aml.package_length(size).hex() == encoded


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0x100, "0b0001"),
        (0x1_0000, "0c00000100"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integers(value, encoded):
    assert aml.integer(value).hex() == encoded


def test_eisa_id_and_names():
    assert aml.eisa_id("PNP0501").hex() == "0c41d00501"
    assert aml.name_string("_SB") == b"_SB_"
    for bad in ("", "com1", "TOOLONG", "1ABC", "\\_SB"):
        with pytest.raises(ValueError, match="no AML name"):
            aml.name_string(bad)
    with pytest.raises(ValueError, match="no EISA id"):
        aml.eisa_id("PNP05")
    with pytest.raises(ValueError, match="no AML integer"):
        aml.integer(-1)
