# SPDX-License-Identifier: MIT
"""Symbol tables and types that any kernel might have come back; damaged kernels are refused."""

import struct
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.symbols.btf import VOID, Kind, Member, Type, read_btf
from svsmd.symbols.debug_info import debug_info
from svsmd.symbols.elf_file import elf_file
from svsmd.symbols.image import SymbolsError, read_image
from svsmd.symbols.kallsyms import Symbol, read_kallsyms
from svsmd.symbols.kernel import symbol_file
from tests.kernel_image import ALLOC, EXEC, LAYOUTS, RODATA, TEXT, Part, btf, elf, kallsyms
from tests.symbol_reader import SymbolReader, type_of, value
from tests.unit.test_kernel_symbols import kernel

TEXT_SIZE = 0x100_0000
NAMES = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.", min_size=1)
# Markers are for 256 names each: tables of one of them, of two, and round the border.
COUNTS = st.one_of(st.integers(0, 40), st.integers(250, 260), st.integers(500, 520))


@given(
    layout=st.sampled_from(LAYOUTS),
    count=COUNTS,
    names=st.lists(NAMES, min_size=1, max_size=20),
    substrings=st.lists(st.text("abcdef_", min_size=2, max_size=8), max_size=60),
    before=st.integers(0, 7),
    behind=st.binary(max_size=64),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=80)
def test_symbol_tables(
    layout: str,
    count: int,
    names: list[str],
    substrings: list[str],
    before: int,
    behind: bytes,
    random: Random,
) -> None:
    """Also names of more than 127 tokens, whose length takes two bytes."""
    symbols = [Symbol(TEXT, "T", "_stext")]
    for place in sorted(random.randrange(TEXT_SIZE) for _ in range(count)):
        name = (random.choice(names) * random.choice([1, 1, 1, 200]))[:500]
        symbols.append(Symbol(TEXT + place, random.choice("tTdDrWbB"), name))
    if layout in ("6.1", "6.2", "6.5"):
        values = sorted(random.randrange(1 << 31) for _ in range(random.randrange(4)))
        symbols[:0] = [Symbol(number, "A", random.choice(names)) for number in values]
    rodata = bytes(8 * before) + kallsyms(symbols, layout, RODATA + 8 * before, substrings) + behind
    sections = read_image(
        elf(
            {
                ".text": Part(TEXT, ALLOC | EXEC, bytes(16)),
                ".rodata": Part(RODATA, ALLOC, rodata),
                ".data": Part(TEXT + TEXT_SIZE, ALLOC, bytes(16)),
            }
        )
    )
    assert read_kallsyms(sections) == symbols


VALID = kernel()
SIZES = st.integers(0, 1000)
FIELD_BITS = st.sampled_from([0, 0, 5])
INTERESTING = st.sampled_from(
    [0, 1, 2, 0x7F, 0x80, 0xFF, 0x1000, TEXT, RODATA, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]
)
MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, len(VALID) - 1),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.builds(lambda number: struct.pack("<Q", number), INTERESTING),
            st.builds(lambda number: struct.pack("<I", number & 0xFFFF_FFFF), INTERESTING),
        ),
    ),
    min_size=1,
    max_size=4,
)


def make_or_refuse(data: bytes) -> None:
    """Whatever is made of it can be read, and what is refused is in one line."""
    try:
        result = symbol_file(read_image(data))
    except SymbolsError as error:
        lines = [str(error)]
    else:
        lines = list(result.missing)
        file = SymbolReader(result.data)
        assert file.symbols()
        assert file.entries() is not None
    assert all(line and "\n" not in line for line in lines)


@given(MUTATIONS)
@settings(max_examples=400)
def test_damaged_kernels(mutations: list[tuple[int, bytes]]) -> None:
    data = bytearray(VALID)
    for at, change in mutations:
        data[at : at + len(change)] = change
    make_or_refuse(bytes(data))


@given(st.integers(0, len(VALID)))
def test_truncated_kernels(size: int) -> None:
    make_or_refuse(VALID[:size])


@given(st.binary(max_size=256))
def test_junk(data: bytes) -> None:
    make_or_refuse(data)
    make_or_refuse(b"\x7fELF\x02\x01\x01" + data)


@st.composite
def type_graphs(draw: st.DrawFn) -> list[Type]:
    """Types that refer to earlier ones, as the checks of references want it."""
    types = [Type(Kind.VOID)]
    for number in range(1, draw(st.integers(1, 30)) + 1):
        earlier = st.integers(0, number - 1)
        solid = [n for n, type_ in enumerate(types) if n and type_.kind is not Kind.FUNC_PROTO]
        kinds = [Kind.INT, Kind.PTR, Kind.CONST, Kind.TYPEDEF, Kind.ENUM]
        if solid:
            kinds += [Kind.ARRAY, Kind.STRUCT, Kind.UNION, Kind.FUNC_PROTO]
        kind, name = draw(st.sampled_from(kinds)), f"t{number}"
        match kind:
            case Kind.INT:
                size, flags = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([0, 1, 4]))
                types.append(Type(kind, name, size=size, flags=flags))
            case Kind.ENUM:
                values = draw(st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=4))
                named = [Member(f"v{n}", offset=value) for n, value in enumerate(values)]
                types.append(Type(kind, name, size=4, members=named))
            case Kind.ARRAY:
                types.append(Type(kind, type=draw(st.sampled_from(solid)), size=draw(SIZES)))
            case Kind.STRUCT | Kind.UNION:
                fields = draw(st.lists(st.tuples(st.sampled_from(solid), FIELD_BITS), max_size=6))
                named = [Member(f"m{n}", t, 64 * n, bits) for n, (t, bits) in enumerate(fields)]
                types.append(Type(kind, name, size=8 * len(named), members=named))
            case Kind.FUNC_PROTO:
                arguments = draw(st.lists(st.sampled_from(solid), max_size=9))
                named = [Member(f"p{n}", t) for n, t in enumerate(arguments)]
                types.append(Type(kind, type=draw(earlier), members=named))
            case _:
                types.append(Type(kind, name if kind is Kind.TYPEDEF else "", draw(earlier)))
    return types


@given(type_graphs())
def test_types_come_back(types: list[Type]) -> None:
    assert read_btf(btf(types)) == types


@given(type_graphs())
def test_types_as_debugging_information(types: list[Type]) -> None:
    contents = debug_info(types, (), (), range(TEXT, TEXT + 1))
    reader = SymbolReader(elf_file([], [], contents))
    entries = reader.top_entries()
    assert len(entries) == len(types) - 1
    by_offset = {entry.offset: number for number, entry in enumerate(entries, start=1)}

    def refers(die: Any) -> int:
        return by_offset[type_of(die).offset] if "DW_AT_type" in die.attributes else VOID

    for type_, entry in zip(types[1:], entries, strict=True):
        assert refers(entry) == type_.type
        children = list(entry.iter_children())
        if type_.kind is Kind.ARRAY:
            (bounds,) = children
            count = bounds.attributes.get("DW_AT_count")
            assert (count.value if count else 0) == type_.size
            continue
        if type_.name:
            assert value(entry, "name").decode() == type_.name
        if type_.size:
            assert value(entry, "byte_size") == type_.size
        assert [refers(child) for child in children] == [m.type for m in type_.members]
        for child, member in zip(children, type_.members, strict=True):
            if type_.kind is Kind.ENUM:
                assert value(child, "const_value") == member.offset
            elif member.bits:
                assert value(child, "bit_size") == member.bits
                assert value(child, "data_bit_offset") == member.offset
            elif type_.kind is not Kind.FUNC_PROTO:
                assert value(child, "data_member_location") == member.offset // 8
