# SPDX-License-Identifier: MIT
"""Registers with named bits."""

from __future__ import annotations

import struct

import pytest

from svsmd.snp.bits import AddressBits, Bit, Bits, Register8, Register64


class Pte(Register64):
    P = Bit(0)
    W = Bit(1)
    ADDR = AddressBits(51, 12)
    PKEY = Bits(62, 59)
    NX = Bit(63)


def test_reads_named_bits():
    pte = Pte(0x8000_0000_1234_5003)
    assert (pte.P, pte.W, pte.NX) == (True, True, True)
    assert pte.ADDR == 0x1234_5000
    assert pte.PKEY == 0


def test_field_of_the_class_is_its_description():
    assert Pte.ADDR.mask == 0x000F_FFFF_FFFF_F000
    assert (Pte.PKEY.high, Pte.PKEY.low, Pte.PKEY.name) == (62, 59, "PKEY")


def test_of_and_replace():
    pte = Pte.of(P=1, ADDR=0x1000, PKEY=5)
    assert pte == 1 | 0x1000 | 5 << 59
    assert pte.replace(P=0, NX=True) == 0x1000 | 5 << 59 | 1 << 63
    assert pte == 1 | 0x1000 | 5 << 59


def test_replace_keeps_unnamed_bits():
    pte = Pte(0xE00)
    assert pte.unnamed == 0xE00
    assert pte.replace(P=1) == 0xE01


def test_is_an_int():
    assert struct.pack("<Q", Pte.of(NX=1)) == bytes(7) + b"\x80"
    assert type(Pte.of(P=1).replace(W=1)) is Pte


def test_prints_its_fields():
    assert str(Pte(0)) == "Pte()"
    assert str(Pte.of(P=1, ADDR=0x2000, PKEY=3)) == "Pte(P ADDR=0x2000 PKEY=0x3)"
    assert str(Pte(0x201)) == "Pte(P +0x200)"


@pytest.mark.parametrize(("name", "value"), [("PKEY", 16), ("P", 2), ("ADDR", 0x1001), ("P", -1)])
def test_refuses_a_value_that_does_not_fit(name: str, value: int):
    with pytest.raises(ValueError, match=name):
        Pte(0).replace(**{name: value})


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_refuses_a_register_that_is_too_wide(value: int):
    with pytest.raises(ValueError, match="64 bits"):
        Pte(value)


def test_refuses_a_field_outside_the_register():
    with pytest.raises(TypeError, match="bit 8 of 8"):
        type("Wide", (Register8,), {"X": Bit(8)})


def test_refuses_overlapping_fields():
    with pytest.raises(TypeError, match="overlaps"):
        type("Twice", (Register8,), {"A": Bits(3, 0), "B": Bit(3)})


def test_refuses_bits_in_the_wrong_order():
    with pytest.raises(ValueError, match="no such bits"):
        Bits(0, 1)


def test_inherits_fields():
    class Nested(Pte):
        C = Bit(52)

    assert list(Nested.FIELDS) == ["P", "W", "ADDR", "PKEY", "NX", "C"]
    assert "C" not in Pte.FIELDS
