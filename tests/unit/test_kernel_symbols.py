# SPDX-License-Identifier: MIT
"""Symbols, call frames and types out of a kernel's image, read back by pyelftools."""

import lzma
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from svsmd.cli import invoke
from svsmd.errors import ExitCode
from svsmd.host.bzimage import is_bzimage
from svsmd.symbols.btf import INT_SIGNED, Kind, Member, Type
from svsmd.symbols.elf_file import find_symbol
from svsmd.symbols.functions import prologue_size
from svsmd.symbols.image import SymbolsError, read_image
from svsmd.symbols.kallsyms import Symbol, parse_proc_kallsyms, read_kallsyms
from svsmd.symbols.kernel import symbol_file
from svsmd.symbols.orc import Base, Row, read_orc
from svsmd.symbols.orc import Kind as RowKind
from tests.kernel_image import (
    ALLOC,
    EXEC,
    LAYOUTS,
    RODATA,
    TEXT,
    WRITE,
    Orc,
    Part,
    btf,
    elf,
    kallsyms,
    orc,
)
from tests.symbol_reader import SymbolReader, type_of, value

DATA = 0xFFFF_FFFF_8300_0000
SYMBOLS = (
    Symbol(0, "A", "__per_cpu_start"),
    Symbol(0x1000, "A", "current_task"),
    Symbol(TEXT, "T", "_text"),
    Symbol(TEXT, "T", "_stext"),
    Symbol(TEXT + 0x10, "T", "do_open"),
    Symbol(TEXT + 0x10, "W", "alias_of_do_open"),
    Symbol(TEXT + 0x40, "t", "helper.isra.0"),
    Symbol(TEXT + 0x60, "T", "sysvec"),
    Symbol(TEXT + 0x100, "T", "_etext"),
    Symbol(TEXT + 0x100, "T", "_sinittext"),
    Symbol(TEXT + 0x100, "T", "_einittext"),
    Symbol(RODATA, "D", "linux_banner"),
    Symbol(RODATA + 0x20, "r", "something"),
    Symbol(DATA, "D", "jiffies"),
    Symbol(DATA + 8, "d", "local_data"),
)
ROWS = (
    Orc(TEXT, "end"),
    Orc(TEXT + 0x10, "call"),
    Orc(TEXT + 0x11, "call", sp_offset=16, bp="previous sp", bp_offset=-16),
    Orc(TEXT + 0x38, "unknown"),
    Orc(TEXT + 0x40, "regs", sp_offset=0),
    Orc(TEXT + 0x60, "call", sp_offset=24),
    Orc(TEXT + 0x70, "call", sp="sp indirect", sp_offset=24),
    Orc(TEXT + 0x80, "call", sp_offset=24),
    Orc(TEXT + 0x90, "unknown"),
)
TYPES = (
    Type(Kind.VOID),
    Type(Kind.INT, "int", size=4, flags=INT_SIGNED),  # 1
    Type(Kind.INT, "char", size=1),  # 2
    Type(Kind.CONST, type=2),  # 3
    Type(Kind.PTR, type=3),  # 4
    Type(
        Kind.STRUCT, "how", size=24,
        members=(
            Member("flags", 1), Member("low", 1, offset=32, bits=3), Member("name", 4, offset=64),
            Member("", 6, offset=128),
        ),
    ),  # 5
    Type(Kind.UNION, size=8, members=(Member("next", 7), Member("number", 1))),  # 6
    Type(Kind.PTR, type=5),  # 7
    Type(Kind.ENUM, "state", size=4, members=(Member("OFF", offset=-1), Member("ON", offset=1))),
    Type(Kind.ARRAY, type=1, size=3),  # 9
    Type(
        Kind.FUNC_PROTO, type=1,
        members=(Member("dfd", 1), Member("name", 4), Member("how", 5), Member("more")),
    ),  # 10
    Type(Kind.FUNC, "do_open", type=10),  # 11
    Type(Kind.VAR, "current_task", type=7),  # 12
    Type(Kind.TYPEDEF, "open_fn", type=10),  # 13
    Type(Kind.INT, "long unsigned int", size=8),  # 14
    Type(Kind.FWD, "elsewhere", flags=1),  # 15
    Type(Kind.FUNC_PROTO),  # 16
    Type(Kind.FUNC, "sysvec", type=16),  # 17
)  # fmt: skip
CODE = bytes.fromhex("f30f1efa 0f1f440000 4157 55 4889e5 31c0")


def kernel(
    *, layout: str = "6.5", orc_version: str = "6.4", without: str = "", **parts: Part
) -> bytes:
    """A vmlinux but for one of its parts; other parts are added, or replace those of their name."""
    symbols = SYMBOLS[:2] if layout in ("6.1", "6.2", "6.5") else ()
    tables = kallsyms((*symbols, *SYMBOLS[2:]), layout, RODATA + 0x40, ["do_", "_text"])
    all_parts = {
        ".text": Part(TEXT, ALLOC | EXEC, bytes(0x10) + CODE.ljust(0xF0, b"\x90")),
        ".rodata": Part(RODATA, ALLOC, b"Linux version 0\0".ljust(0x40, b"\1") + tables),
        ".data": Part(DATA, ALLOC | WRITE | EXEC, bytes(0x20)),
        ".data..percpu": Part(0, ALLOC | WRITE, bytes(0x2000)),
        ".BTF": Part(RODATA + 0x80_0000, ALLOC, btf(TYPES)),
        **orc(ROWS, orc_version, RODATA + 0x40_0000, RODATA + 0x50_0000),
    }
    all_parts |= {f".{name}": part for name, part in parts.items()}
    return elf({name: part for name, part in all_parts.items() if name != without})


def made(data: bytes) -> SymbolReader:
    """What is made of a kernel."""
    result = symbol_file(read_image(data))
    assert result.missing == ()
    return SymbolReader(result.data)


# -- symbols ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kallsyms(layout: str) -> None:
    expected = SYMBOLS if layout in ("6.1", "6.2", "6.5") else SYMBOLS[2:]
    assert read_kallsyms(read_image(kernel(layout=layout))) == list(expected)


def test_symbol_table() -> None:
    file = made(kernel())
    found = {symbol.name: symbol for symbol in file.symbols()}
    assert set(found) == {symbol.name for symbol in SYMBOLS}
    for symbol in SYMBOLS:
        assert found[symbol.name]["st_value"] == symbol.address
    assert found["do_open"]["st_size"] == 0x30
    assert found["do_open"]["st_info"] == {"bind": "STB_GLOBAL", "type": "STT_FUNC"}
    assert found["alias_of_do_open"]["st_info"]["bind"] == "STB_WEAK"
    assert found["helper.isra.0"]["st_info"]["bind"] == "STB_LOCAL"
    assert found["jiffies"]["st_info"]["type"] == "STT_OBJECT"
    assert found["current_task"]["st_shndx"] == "SHN_ABS"
    local = [symbol["st_info"]["bind"] == "STB_LOCAL" for symbol in file.symbols()]
    assert local == sorted(local, reverse=True)
    assert file.section(".symtab")["sh_info"] == 1 + local.count(True)


def test_no_contents() -> None:
    file = made(kernel())
    text = file.section(".text")
    assert (text["sh_type"], text["sh_addr"], text["sh_size"]) == ("SHT_NOBITS", TEXT, 0x100)
    assert file.section(".data..percpu") is None


def test_where_it_runs() -> None:
    image = read_image(kernel())
    moved = symbol_file(image, text=TEXT + 0x1A00_0000)
    file = SymbolReader(moved.data)
    assert file.symbol("do_open")["st_value"] == TEXT + 0x1A00_0010
    assert file.symbol("current_task")["st_value"] == 0x1000
    assert file.section(".text")["sh_addr"] == TEXT + 0x1A00_0000
    for wrong in (0, TEXT + 1, TEXT - 0x200_0000_0000, TEXT + 0x3D00_0000):
        with pytest.raises(SymbolsError, match=r"no kernel (begins|ends) at"):
            symbol_file(image, text=wrong)


def proc_kallsyms(slide: int) -> str:
    """What /proc/kallsyms says of a kernel that has moved."""
    lines = [
        f"{symbol.address + (0 if symbol.type == 'A' else slide):016x} {symbol.type} {symbol.name}"
        for symbol in SYMBOLS
    ]
    return "\n".join([*lines, "ffffffffc0001000 t probe\t[virtio]", ""])


@pytest.mark.parametrize("some", [False, True])
def test_symbols_of_a_running_kernel(some: bool) -> None:
    lines = proc_kallsyms(0x200_0000).splitlines()
    if some:
        # What somebody has copied from a terminal.
        lines = [f"{line}\r" for line in lines if " _text" in line or "[" in line] + [""]
    running = parse_proc_kallsyms("\n".join(lines))
    assert running[-1] == Symbol(0xFFFF_FFFF_C000_1000, "t", "probe", "virtio")
    file = SymbolReader(symbol_file(read_image(kernel()), running=running).data)
    assert file.symbol("do_open")["st_value"] == TEXT + 0x200_0010
    assert file.symbol("current_task")["st_value"] == 0x1000
    probe = file.symbol("probe")
    section = file.section(probe["st_shndx"])
    assert section.name == ".modules"
    assert section["sh_addr"] <= probe["st_value"] < section["sh_addr"] + section["sh_size"]


def test_wrong_symbols_of_a_running_kernel() -> None:
    with pytest.raises(SymbolsError, match="line 2 of"):
        parse_proc_kallsyms("0000000000000000 t a\nhello\n")
    with pytest.raises(SymbolsError, match="as root"):
        parse_proc_kallsyms("0000000000000000 T _text\n0000000000000000 t a\n")
    other = proc_kallsyms(0).replace(f"{TEXT + 0x10:016x} T", f"{TEXT + 0x20:016x} T")
    with pytest.raises(SymbolsError, match="another kernel: do_open differs"):
        symbol_file(read_image(kernel()), running=parse_proc_kallsyms(other))
    with pytest.raises(SymbolsError, match="no _text"):
        symbol_file(read_image(kernel()), running=parse_proc_kallsyms("f000000000000000 T a\n"))


# -- call frames --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["6.1", "6.4", "6.19", "7.0"])
def test_orc(version: str) -> None:
    rows = read_orc(read_image(kernel(orc_version=version)), range(TEXT, TEXT + 0x100))
    assert rows == [
        (TEXT, Row(RowKind.END)),
        (TEXT + 0x10, Row(RowKind.CALL, Base.SP, 8)),
        (TEXT + 0x11, Row(RowKind.CALL, Base.SP, 16, Base.PREVIOUS_SP, -16)),
        (TEXT + 0x38, Row(RowKind.UNKNOWN)),
        (TEXT + 0x40, Row(RowKind.REGS, Base.SP, 0)),
        (TEXT + 0x60, Row(RowKind.CALL, Base.SP, 24)),
        (TEXT + 0x70, Row(RowKind.CALL, Base.SP_INDIRECT, 24)),
        (TEXT + 0x80, Row(RowKind.CALL, Base.SP, 24)),
        (TEXT + 0x90, Row(RowKind.UNKNOWN)),
    ]


def test_the_last_of_several_rows_for_an_address_holds() -> None:
    sections = read_image(
        elf(orc([Orc(TEXT, "unknown"), Orc(TEXT, "call")], "6.4", RODATA, RODATA + 0x1000))
    )
    assert read_orc(sections, range(TEXT, TEXT + 1)) == [(TEXT, Row(RowKind.CALL, Base.SP, 8))]


def test_unusual_rows_are_unknown() -> None:
    rows = [
        Orc(TEXT, "call", sp="previous sp"),
        Orc(TEXT + 1, "call", bp="r10"),
        Orc(TEXT + 2, "call", sp="none"),
        Orc(TEXT + 3, "regs", bp="bp"),
    ]
    sections = read_image(elf(orc(rows, "6.4", RODATA, RODATA + 0x1000)))
    assert [row.kind for _, row in read_orc(sections, range(TEXT, TEXT + 3))] == [
        RowKind.UNKNOWN
    ] * 4


def test_where_there_are_call_frames() -> None:
    entries = made(kernel()).call_frames()
    ranges = [
        (entry["initial_location"], entry["initial_location"] + entry["address_range"])
        for entry in entries
    ]
    assert ranges[:-2] == [(TEXT, TEXT + 0x38), (TEXT + 0x40, TEXT + 0x90)]
    assert [entry.cie["augmentation"] for entry in entries[-2:]] == [b"zS", b"zS"]
    assert all(end < TEXT for _, end in ranges[-2:])


# -- types --------------------------------------------------------------------------------------


def test_types() -> None:
    by_name = made(kernel()).entries()
    how = by_name["how"]
    assert how.tag == "DW_TAG_structure_type"
    assert value(how, "byte_size") == 24
    flags, low, name, unnamed = how.iter_children()
    assert value(flags, "data_member_location") == 0
    assert type_of(flags) == by_name["int"]
    assert value(low, "bit_size") == 3
    assert value(low, "data_bit_offset") == 32
    assert value(name, "data_member_location") == 8
    assert "DW_AT_name" not in unnamed.attributes
    union = type_of(unnamed)
    assert union.tag == "DW_TAG_union_type"
    pointer = next(union.iter_children()).get_DIE_from_attribute("DW_AT_type")
    assert pointer.tag == "DW_TAG_pointer_type"
    assert type_of(pointer) == how

    off, on = by_name["state"].iter_children()
    assert value(off, "const_value") == -1
    assert value(on, "const_value") == 1
    assert by_name["elsewhere"].tag == "DW_TAG_union_type"
    assert value(by_name["elsewhere"], "declaration")
    signature = type_of(by_name["open_fn"])
    assert [die.tag for die in signature.iter_children()] == [
        "DW_TAG_formal_parameter", "DW_TAG_formal_parameter", "DW_TAG_formal_parameter",
        "DW_TAG_unspecified_parameters",
    ]  # fmt: skip


def test_functions() -> None:
    file = made(kernel())
    by_name = file.entries()
    function = by_name["do_open"]
    assert value(function, "low_pc") == TEXT + 0x10
    assert value(function, "high_pc") == 0x30
    assert type_of(function) == by_name["int"]
    dfd, name, how, more = function.iter_children()
    assert [value(die, "name") for die in (dfd, name, how)] == [
        b"dfd", b"name", b"how",
    ]  # fmt: skip
    assert more.tag == "DW_TAG_unspecified_parameters"
    # Up to the first byte of what follows ENDBR64, the NOP, two pushes and mov rbp, rsp.
    for die, expression in ((dfd, [0x55]), (name, [0x54]), (how, [0x9C, 0x23, 0])):
        (where,) = file.locations(die)
        assert (where.begin_offset, where.end_offset) == (0x10, 0x10 + 16)
        assert where.loc_expr == expression


def test_the_other_stack_is_an_inlined_function() -> None:
    by_name = made(kernel()).entries()
    (inlined,) = by_name["sysvec"].iter_children()
    assert inlined.tag == "DW_TAG_inlined_subroutine"
    assert inlined.get_DIE_from_attribute("DW_AT_abstract_origin") == by_name["stack_switch"]
    assert value(inlined, "low_pc") == TEXT + 0x70
    assert value(inlined, "high_pc") == 0x10
    # gdb passes over an inlined function if nothing says where it is called.
    assert {"DW_AT_call_file", "DW_AT_call_line"} <= set(inlined.attributes)


def test_variables() -> None:
    by_name = made(kernel()).entries()
    jiffies = by_name["jiffies"]
    assert type_of(jiffies) == by_name["long unsigned int"]
    assert bytes(value(jiffies, "location")) == b"\3" + struct.pack("<Q", DATA)
    # A per-CPU variable is where it is in the area of each CPU.
    assert bytes(value(by_name["current_task"], "location")) == b"\x10\x80\x20"
    banner = type_of(by_name["linux_banner"])
    (bounds,) = banner.iter_children()
    assert value(bounds, "count") == 0x20


def test_a_function_of_two_signatures_has_none() -> None:
    types = (*TYPES, Type(Kind.FUNC, "do_open", type=16))
    by_name = made(kernel(BTF=Part(RODATA + 0x80_0000, ALLOC, btf(types)))).entries()
    assert "do_open" not in by_name


@pytest.mark.parametrize(
    ("code", "size"),
    [
        ("31c0", 1), ("f30f1efa31c0", 5), ("f30f1efae81122334431c0", 10),
        ("55534157c3", 5), ("5541544889e5c3", 7), ("", 0), ("f30f1efa", 4),
    ],
)  # fmt: skip
def test_prologues(code: str, size: int) -> None:
    assert prologue_size(bytes.fromhex(code)) == size


# -- what is not there --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (kernel(without=".BTF"), "no types: the kernel has no type information"),
        (kernel(without=".orc_unwind"), "no call frames: the kernel has no unwind tables"),
        (
            kernel(orc_header=Part(RODATA, ALLOC, bytes(20))),
            "no call frames: the kernel's unwind tables have an unknown format",
        ),
        (
            kernel(orc_unwind=Part(RODATA, ALLOC, bytes(6))),
            "no call frames: the kernel's two unwind tables are not of one length",
        ),
        (
            kernel(orc_unwind_ip=Part(RODATA, ALLOC, bytes(4 * len(ROWS)))),
            "no call frames: the kernel's unwind tables are not about its code",
        ),
        (kernel(BTF=Part(RODATA, ALLOC, bytes(24))), "no types: the kernel's type information is"),
        (
            kernel(BTF=Part(RODATA, ALLOC, btf((*TYPES, Type(Kind.PTR, type=99))))),
            "type 18 refers to type 99",
        ),
        (
            kernel(BTF=Part(RODATA, ALLOC, btf((*TYPES, Type(Kind.PTR, type=18))))),
            "type 18 contains itself",
        ),
        (
            kernel(
                BTF=Part(
                    RODATA,
                    ALLOC,
                    btf((*TYPES, Type(Kind.STRUCT, "a", size=4, members=[Member("a", 18)]))),
                )
            ),
            "type 18 contains itself",
        ),
        (
            kernel(
                BTF=Part(
                    RODATA,
                    ALLOC,
                    btf((*TYPES, *(Type(Kind.PTR, type=n) for n in (7, *range(18, 100))))),
                )
            ),
            "nested too deeply",
        ),
        (
            kernel(BTF=Part(RODATA, ALLOC, btf((*TYPES, Type(Kind.PTR, type=11))))),
            "type 18 refers to type 11, which is of the wrong kind",
        ),
    ],
)
def test_missing(data: bytes, missing: str) -> None:
    """The rest is still there, and says so in one line."""
    result = symbol_file(read_image(data))
    (line,) = result.missing
    assert missing in line
    assert "\n" not in line
    file = SymbolReader(result.data)
    assert file.symbol("jiffies")
    assert "jiffies" in file.entries()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "neither a bzImage nor an ELF file"),
        (b"\x7fELF", "ELF header is truncated"),
        (kernel()[:200], "truncated in its section headers"),
        (b"\x7fELF\x01" + kernel()[5:], "not for x86-64"),
        (elf({}), "has no section .text"),
        (kernel(without=".text"), "has no section .text"),
        (kernel(without=".rodata"), "has no section .rodata"),
        (kernel(rodata=Part(RODATA, ALLOC, bytes(4096))), "has no symbol table"),
        (kernel(text=Part(TEXT + 16, ALLOC | EXEC, bytes(16))), "no addresses that fit"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(SymbolsError, match=reason):
        symbol_file(read_image(data))


# -- the program --------------------------------------------------------------------------------


def test_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, target = tmp_path / "vmlinux", tmp_path / "kernel.elf"
    source.write_bytes(kernel())
    text = ["--text", f"{TEXT + 0x20_0000:x}"]
    assert invoke(["symbols", str(source), str(target), *text]) == ExitCode.OK
    file = SymbolReader(target.read_bytes())
    assert file.symbol("_text")["st_value"] == TEXT + 0x20_0000

    (tmp_path / "kallsyms").write_text(proc_kallsyms(0))
    running = ["--kallsyms", str(tmp_path / "kallsyms")]
    assert invoke(["symbols", str(source), *running]) == ExitCode.OK
    assert capsys.readouterr() == ("", "")
    file = SymbolReader((tmp_path / "vmlinux.symbols").read_bytes())
    assert file.symbol("_text")["st_value"] == TEXT
    assert invoke(["symbols", str(source), str(target), *text, *running]) == ExitCode.USAGE
    assert capsys.readouterr().err == "svsmd: --text and --kallsyms exclude each other\n"

    source.write_bytes(kernel(without=".BTF"))
    assert invoke(["symbols", str(source), str(target)]) == ExitCode.OK
    assert capsys.readouterr().err.startswith("svsmd: no types: ")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["junk", "out"], "the kernel is neither a bzImage nor an ELF file"),
        (["nothing", "out"], "No such file or directory"),
        (["vmlinux", "nowhere/out"], "nowhere/out: No such file or directory"),
        (["vmlinux", "out", "--text", "everywhere"], "'everywhere' is not a hexadecimal address"),
        ([], "Missing argument 'KERNEL'"),
    ],
)
def test_program_refuses(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("junk").write_bytes(b"junk")
    Path("vmlinux").write_bytes(kernel())
    assert invoke(["symbols", *arguments]) == ExitCode.USAGE
    assert reason in capsys.readouterr().err
    assert not Path("out").exists()


def test_pipe() -> None:
    """As the debugger stub has a file made, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "svsmd", "symbols", "-", "-"], input=kernel(),
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == b""
    assert SymbolReader(done.stdout).symbol("_text")["st_value"] == TEXT


def test_file_that_may_be_moved() -> None:
    """Debuggers move it by its entry point, and by its one segment, which has all sections."""
    file = SymbolReader(symbol_file(read_image(kernel())).data)
    assert file.header["e_type"] == "ET_DYN"
    assert file.header["e_entry"] == TEXT
    (segment,) = file.segments()
    assert segment["p_type"] == "PT_LOAD"
    assert segment["p_vaddr"] == TEXT
    ends = [s["sh_addr"] + s["sh_size"] for s in file.sections() if s["sh_addr"]]
    assert segment["p_vaddr"] + segment["p_memsz"] == max(ends)


def test_find_symbol() -> None:
    data = symbol_file(read_image(kernel())).data
    assert find_symbol(data, "do_open") == TEXT + 0x10
    assert find_symbol(data, "_text") == TEXT
    assert find_symbol(data, "open") is None
    assert find_symbol(data, "do_open_") is None


def test_bzimage() -> None:
    """The kernel inside is what counts."""
    payload = lzma.compress(kernel(), format=lzma.FORMAT_XZ) + bytes(4)
    setup = bytearray(1024)
    struct.pack_into("<B", setup, 0x1F1, 1)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    struct.pack_into("<BB4sH", setup, 0x200, 0xEB, 0x6A, b"HdrS", 0x020F)
    struct.pack_into("<H", setup, 0x236, 1)
    struct.pack_into("<II", setup, 0x248, 0, len(payload))
    data = bytes(setup) + payload
    assert is_bzimage(data)
    assert read_kallsyms(read_image(data)) == list(SYMBOLS)
    with pytest.raises(SymbolsError, match="XZ payload is corrupt"):
        read_image(data[:1100] + bytes(len(data) - 1100))
