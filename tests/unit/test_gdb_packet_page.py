# SPDX-License-Identifier: MIT
"""docs/gdb-packets.md says what the stub does: names and answers are compared, both ways."""

import re
from pathlib import Path

import pytest

from svsmd.config import MIB, MachineConfig
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.packets.files import _OPERATIONS as OPERATIONS
from svsmd.gdbstub.rsp import Decoder, Packet, encode
from svsmd.gdbstub.session import HANDLERS, Session
from svsmd.gdbstub.target import Signal, Stopped
from svsmd.machine import build_machine
from tests.fake_target import FakeMachine, FakeRunner

PAGE = Path(__file__).parent.parent.parent / "docs" / "gdb-packets.md"
SERVED = {"yes", "part"}


def rows(section: str) -> dict[str, str]:
    """Names in a section's table, each with the second cell of its row."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found: dict[str, str] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or not cells[0].startswith("`"):
            continue
        for name in re.findall(r"`([^`]+)`", cells[0]):
            assert name not in found, name
            assert cells[1] in SERVED | {"no"}, line
            found[name] = cells[1]
    assert found, section
    return found


PACKETS = {
    name: status
    for section in (
        "General packets", "`v` packets", "General queries", "Tracepoints", "QEMU's own",
        "lldb's own",
    )
    for name, status in rows(section).items()
}  # fmt: skip


def handler_of(packet: str) -> bytes:
    """The name by which the session knows it."""
    long = re.match(r"[qQv][A-Za-z]+", packet)
    return (long[0] if long else packet[0]).encode()


class Client:
    """A gdb that talks to a real machine."""

    def __init__(self) -> None:
        target = MachineTarget(build_machine(MachineConfig(seed=b"page", rtc=0, memory=64 * MIB)))
        runner = FakeRunner(FakeMachine())
        self._session = Session(target, runner, Stopped(1, Signal.SIGINT), was_running=False)

    def ask(self, packet: str) -> bytes:
        self._session.receive_data(encode(packet.encode()))
        decoder = Decoder()
        decoder.receive_data(b"".join(iter(self._session.next_reply, None)).lstrip(b"+"))
        reply = decoder.next_event()
        assert isinstance(reply, Packet), reply
        return reply.body


@pytest.fixture(scope="module")
def client() -> Client:
    client = Client()
    client.ask("qSupported:multiprocess+;swbreak+;hwbreak+")
    return client


def test_every_handler_has_its_row() -> None:
    """And every row that says so has a handler; two have one that only listens."""
    served = {handler_of(name) for name, status in PACKETS.items() if status in SERVED}
    assert served <= set(HANDLERS)
    assert set(HANDLERS) - served == {b"qSymbol", b"QThreadSuffixSupported"}
    assert PACKETS["qSymbol"] == PACKETS["QThreadSuffixSupported"] == "no"


@pytest.mark.parametrize("name", [name for name, status in PACKETS.items() if status == "no"])
def test_no_is_the_empty_reply(client: Client, name: str) -> None:
    assert client.ask(name) == b""
    assert client.ask(f"{name}:1,2") == b""


def test_features(client: Client) -> None:
    """`qSupported` announces what the page says, all of it, and nothing else."""
    reply = client.ask("qSupported:multiprocess+;exec-events+").decode()
    announced = {feature.partition("=")[0] for feature in reply.split(";")}
    features = rows("Features")
    assert announced == {name for name, status in features.items() if status in SERVED}
    assert "PacketSize=20000" in reply.split(";")


def test_objects(client: Client) -> None:
    for name, status in rows("Objects").items():
        annex = "target.xml" if name == "features" else ""
        reply = client.ask(f"qXfer:{name}:read:{annex}:0,10")
        assert bool(reply) is (status in SERVED), (name, reply)
        assert reply[:1] != b"E"
        assert client.ask(f"qXfer:{name}:write:{annex}:0:00") == b""


def test_host_io(client: Client) -> None:
    operations = rows("Host I/O")
    served = {name for name, status in operations.items() if status in SERVED}
    assert {f"vFile:{name.decode()}" for name in OPERATIONS} == served
    for name in set(operations) - served:
        assert client.ask(f"{name}:2f,0,0") == b""


def test_actions_of_vcont(client: Client) -> None:
    actions = client.ask("vCont?").decode().removeprefix("vCont;").split(";")
    row = re.search(r"^\| `vCont` \| yes \| ([a-zA-Z ]+);", PAGE.read_text(), re.MULTILINE)
    assert row is not None
    assert row[1].split() == ["c", "C", "s", "S", "t", "r"] == actions
