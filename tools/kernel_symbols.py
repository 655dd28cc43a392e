# SPDX-License-Identifier: MIT
"""Make a file with which gdb knows a stock Linux kernel: symbols, call frames, types.

    python tools/kernel_symbols.py KERNEL OUTPUT [--text ADDRESS | --kallsyms FILE]

All of it comes out of the kernel (bzImage or ELF) itself; no debug package is needed. Load it with
`gdb OUTPUT`. A kernel that has moved itself (KASLR) is told by the address of its symbol _text, or
by the line of its /proc/kallsyms that has it; those of its modules bring their symbols as well. See
docs/gdb.md.

Spec: tools/symbols/.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

# Run as a program, this file has nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.symbols.image import SymbolsError, read_image
from tools.symbols.kallsyms import Symbol, parse_proc_kallsyms
from tools.symbols.kernel import symbol_file


def _address(text: str) -> int:
    return int(text, 16)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kernel_symbols.py",
        description="Symbols, call frames and types of a Linux kernel, for gdb.",
    )
    parser.add_argument("kernel", type=Path, metavar="KERNEL", help="bzImage or ELF")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="file to write")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--text", type=_address, metavar="ADDRESS", help="where _text is, hexadecimal"
    )
    where.add_argument(
        "--kallsyms",
        type=Path,
        metavar="FILE",
        help="lines of the running kernel's /proc/kallsyms: that of _text, and those of modules",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Command line; 0 = done, 1 = one line on stderr says why not, 2 = usage."""
    options = _parser().parse_args(arguments)
    # Half a million objects are made, none of which refers to itself.
    gc.disable()
    try:
        sections = read_image(options.kernel.read_bytes())
        running: list[Symbol] = []
        if options.kallsyms is not None:
            running = parse_proc_kallsyms(options.kallsyms.read_text(errors="backslashreplace"))
        made = symbol_file(sections, text=options.text, running=running)
        options.output.write_bytes(made.data)
    except (SymbolsError, OSError) as error:
        print(f"kernel_symbols: {error}", file=sys.stderr)
        return 1
    for line in made.missing:
        print(f"kernel_symbols: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
