# SPDX-License-Identifier: MIT
"""Call frame information leads to the same caller as the unwind tables that it was made of."""

from bisect import bisect_right
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.symbols.call_frames import Landings, debug_frame
from svsmd.symbols.dwarf import Reg
from svsmd.symbols.elf_file import elf_file
from svsmd.symbols.image import read_image
from svsmd.symbols.orc import read_orc
from tests.kernel_image import RODATA, TEXT, Orc, elf, orc
from tests.symbol_reader import SymbolReader
from tests.unwinders import BASES, assert_same_caller

SIZE = 0x1000
LANDINGS = Landings.below(TEXT)
OFFSETS = st.one_of(st.integers(-40, 40).map(lambda words: 8 * words), st.integers(-1000, 1000))
CALLS = st.builds(
    Orc,
    address=st.just(0),
    kind=st.just("call"),
    sp=st.sampled_from([*BASES, "sp", "sp", "sp indirect", "bp indirect"]),
    sp_offset=OFFSETS,
    bp=st.sampled_from(["none", "previous sp", "bp"]),
    bp_offset=OFFSETS,
)
ENTRIES = st.builds(
    Orc,
    address=st.just(0),
    kind=st.sampled_from(["regs", "iret"]),
    sp=st.sampled_from(["sp", "dx"]),
    sp_offset=OFFSETS,
    bp=st.just("none"),
    bp_offset=st.just(0),
)
OTHERS = st.sampled_from([Orc(0, "unknown"), Orc(0, "end")])


@st.composite
def tables(draw: st.DrawFn) -> list[Orc]:
    """Rows in ascending order, more than one entry has in some, with small and large distances."""
    few = draw(st.lists(st.one_of(CALLS, CALLS, ENTRIES, OTHERS), min_size=1, max_size=12))
    count = draw(st.integers(1, 150))
    random = draw(st.randoms(use_true_random=False))
    places = sorted(random.sample(range(SIZE), count))
    return [random.choice(few)._replace(address=TEXT + place) for place in places]


@given(
    tables(),
    st.sampled_from(["6.1", "6.4", "6.19", "7.0"]),
    st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=10),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100)
def test_same_caller(rows: list[Orc], version: str, offsets: list[int], random: Random) -> None:
    sections = read_image(elf(orc(rows, version, RODATA, RODATA + 0x1000)))
    frames = debug_frame(read_orc(sections, range(TEXT, TEXT + SIZE)), TEXT + SIZE, LANDINGS)
    reader = SymbolReader(elf_file([], [], {".debug_frame": frames}))
    entries = reader.call_frames()
    starts = [row.address for row in rows]
    for offset in offsets:
        registers = {reg: random.getrandbits(64) for reg in Reg} | {Reg.RIP: TEXT + offset}
        place = bisect_right(starts, TEXT + offset) - 1
        row = rows[place] if place >= 0 else Orc(0, "unknown")
        assert_same_caller(row, registers, entries, reader.dwarf, LANDINGS)
