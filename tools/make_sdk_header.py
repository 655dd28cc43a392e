# SPDX-License-Identifier: MIT
"""Write the headers of the module SDK that follow from the table of system calls.

    python tools/make_sdk_header.py [--check]

With --check nothing is written; exit code 1 if a header is not what the table says.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from svsmd.core.syscalls.table import SYSTEM_CALLS, SyscallClass, SystemCallInfo  # noqa: E402
from svsmd.core.tasks.errno import Errno  # noqa: E402

INCLUDE: Final = ROOT / "svsmd" / "modules" / "sdk" / "include" / "svsm"
_LICENCE: Final = (
    "/* SPDX-License-Identifier: MIT */\n/* Made by tools/make_sdk_header.py: do not edit. */\n"
)
_NO_RETURN: Final = frozenset({"exit", "exit_group"})


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, 90)
    if len(lines) == 1:
        return f"/* {lines[0]} */\n"
    return "/*\n" + "".join(f" * {line}\n" for line in lines) + " */\n"


def _cast(parameter: str) -> str:
    name = parameter.rpartition(" ")[2].lstrip("*")
    return f"(long)({name})"


def _wrapper(info: SystemCallInfo) -> str:
    text = info.doc
    if info.errors:
        text += f" Fails with {', '.join(f'-{e.name}' for e in info.errors)}."
    arguments = ", ".join(info.arguments) or "void"
    values = ", ".join([f"SVSM_SYS_{info.name.removeprefix('svsm_')}", *map(_cast, info.arguments)])
    call = f"svsm_syscall{len(info.arguments)}({values})"
    if info.name in _NO_RETURN:
        return (
            f"{_comment(text)}static inline _Noreturn void {info.name}({arguments})\n"
            f"{{\n\t{call};\n\t__builtin_unreachable();\n}}\n"
        )
    return (
        f"{_comment(text)}static inline long {info.name}({arguments})\n{{\n\treturn {call};\n}}\n"
    )


def numbers_header() -> str:
    """svsm/numbers.h: numbers of calls, and error codes."""
    parts = [_LICENCE, "#ifndef SVSM_NUMBERS_H\n#define SVSM_NUMBERS_H\n\n"]
    for cls in SyscallClass:
        calls = [info for info in SYSTEM_CALLS if info.cls is cls]
        if not calls:
            continue
        parts.append(f"/* Class {cls.value}: {cls.name.lower()} */\n")
        parts += [
            f"#define SVSM_SYS_{info.name.removeprefix('svsm_')} {info.number:#x}\n"
            for info in sorted(calls, key=lambda info: info.index)
        ]
        parts.append("\n")
    parts.append("/* A call that fails returns one of these, negative. */\n#ifndef EPERM\n")
    parts += [f"#define {errno.name} {errno.value}\n" for errno in Errno]
    parts.append("#endif\n\n#endif\n")
    return "".join(parts)


def _kinds(info: SystemCallInfo) -> str:
    """For each argument: p for a pointer, i for a number."""
    return "".join("p" if "*" in argument else "i" for argument in info.arguments)


def table_header() -> str:
    """svsm/table.h: all calls as a macro, for programs that go through them."""
    lines = [f'\tX({info.name}, {info.number:#x}, "{_kinds(info)}")' for info in SYSTEM_CALLS]
    text = "X(name, number, arguments) for each call; of the arguments, p is a pointer, i a number."
    return (
        f"{_LICENCE}#ifndef SVSM_TABLE_H\n#define SVSM_TABLE_H\n\n{_comment(text)}"
        + " \\\n".join(["#define SVSM_SYSTEM_CALLS(X)", *lines])
        + "\n\n#endif\n"
    )


def calls_header(guard: str, includes: str, posix: bool) -> str:
    """svsm/posix.h or svsm/calls.h: the calls as functions."""
    chosen = [i for i in SYSTEM_CALLS if (i.cls is SyscallClass.POSIX) == posix]
    body = "\n".join(map(_wrapper, sorted(chosen, key=lambda info: info.number)))
    return f"{_LICENCE}#ifndef {guard}\n#define {guard}\n\n{includes}\n{body}\n#endif\n"


def headers() -> dict[str, str]:
    """All of them, by name."""
    return {
        "numbers.h": numbers_header(),
        "table.h": table_header(),
        "calls.h": calls_header(
            "SVSM_CALLS_H",
            '#include <stddef.h>\n\n#include "structures.h"\n#include "syscall.h"\n',
            posix=False,
        ),
        "posix.h": calls_header(
            "SVSM_POSIX_H",
            '#include <stddef.h>\n\n#include "structures.h"\n#include "syscall.h"\n',
            posix=True,
        ),
    }


def main(arguments: list[str]) -> int:
    """Exit code of the program."""
    stale = 0
    for name, text in headers().items():
        path = INCLUDE / name
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in arguments:
            print(f"{path} is not what the table says: run tools/make_sdk_header.py")
            stale = 1
        else:
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
