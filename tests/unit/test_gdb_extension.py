# SPDX-License-Identifier: MIT
"""The script for gdb's Python: what it is made of. tests/e2e/test_gdb_python.py runs it in gdb."""

import ast
import re
import sys
from pathlib import Path

import pytest

from svsmd.config import MIB, MachineConfig
from svsmd.gdbstub import extension
from svsmd.gdbstub.extension import PACKAGE, catalogue, script
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.target import TargetError
from svsmd.machine import build_machine
from svsmd.snp.events import CLASSES
from svsmd.snp.ghcb import Ghcb
from svsmd.snp.vmsa import Vmsa

OLDEST = (3, 9)
"""The Python that the script has to do with."""
DIRECTORY = Path(extension.__file__).with_name(PACKAGE)
MODULES = sorted(DIRECTORY.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_needs_nothing_but_gdb(path: Path) -> None:
    """gdb may run where there is no svsmd."""
    tree = ast.parse(path.read_text(), feature_version=OLDEST)
    absolute = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    assert absolute <= sys.stdlib_module_names | {"gdb"}
    upwards = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level > 1]
    assert not upwards


def test_script_has_every_module() -> None:
    """One text in ASCII that an old Python can parse; its modules are those of the package."""
    text = script()
    assert text.isascii()
    call = ast.parse(text, feature_version=OLDEST).body[-1]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    sources, tables = map(ast.literal_eval, call.value.args)
    names = {path.stem for path in MODULES} - {"_loader", "__init__"}
    assert set(sources) == {PACKAGE} | {f"{PACKAGE}.{name}" for name in names}
    assert tables == catalogue()


def test_tables_are_svsmds_own() -> None:
    tables = catalogue()
    assert tables["structures"]["vmsa"] == [(name, *at) for name, at in Vmsa.FIELDS.items()]
    assert ("sw_exit_code", 0x390, 8) in tables["structures"]["ghcb"]
    assert len(tables["structures"]["ghcb"]) == len(Ghcb.FIELDS)
    assert set(tables["classes"]) == {spec.name for spec in CLASSES.values()}
    kernel = tables["kernel"]
    assert kernel["gate"] < kernel["gate_end"] <= kernel["saved"]


def test_a_command_for_every_class() -> None:
    """And for each a field of the class that its argument is about."""
    source = (DIRECTORY / "catchpoints.py").read_text()
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    (value,) = [a.value for a in assignments if ast.unparse(a.target) == "COMMANDS"]
    assert value is not None
    commands = ast.literal_eval(value)
    assert {name for name, _ in commands.values()} == {spec.name for spec in CLASSES.values()}
    fields = {spec.name: spec.field_names for spec in CLASSES.values()}
    assert all(field in fields[name] for name, field in commands.values())


def test_a_machine_serves_it() -> None:
    """As a file, and as what a monitor command prints."""
    target = MachineTarget(build_machine(MachineConfig(seed=b"extension", rtc=0, memory=64 * MIB)))
    assert target.read_file("/svsmd-gdb.py") == script().encode()
    command = target.monitor_commands["python"]
    assert command.run([]) == script()
    assert re.search(r'python exec\(gdb\.execute\("monitor python"', command.help)
    with pytest.raises(TargetError, match="no arguments"):
        command.run(["x"])
