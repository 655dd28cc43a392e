# SPDX-License-Identifier: MIT
"""Events as a debugger arms, filters and sees them: packets, `monitor`, registers, words."""

import re
from pathlib import Path

import pytest

from svsmd.gdbstub.catchpoints import REGISTER_FIELDS, SIGNALS, event_register, event_stop
from svsmd.gdbstub.rsp import Decoder, Need, Packet, encode
from svsmd.gdbstub.session import Session
from svsmd.gdbstub.target import Signal, StopEvent, SupportsEvents
from svsmd.gdbstub.target_xml import REGISTER_NUMBERS, REGISTERS
from svsmd.slice_end import Stopped as SliceStopped
from svsmd.snp.events import CLASSES, EventClass, SnpEvent
from tests.event_machine import PAGE, ROUNDS, VMSA_PAGE, EventMachine
from tests.fake_target import FakeMachine
from tests.unit.test_gdb_session import Client as FakeClient

SIG42, SIG43, SIG48 = 0x36, 0x37, 0x3C


class Client:
    """A debugger of an `EventMachine`."""

    def __init__(self, machine: EventMachine) -> None:
        self.machine = machine
        stop = machine.attach(self._on_stop)
        assert stop is not None
        self.sent = bytearray()
        self.session = Session(machine.target, machine, stop, was_running=False)
        self.ask(b"QStartNoAckMode")

    def _on_stop(self, event: StopEvent) -> None:
        self.sent += self.session.stopped(event)

    def packets(self, body: bytes) -> list[bytes]:
        """Sends one, lets the machine run if it shall; the bodies of what comes back."""
        self.sent.clear()
        self.session.receive_data(encode(body))
        while (reply := self.session.next_reply()) is not None:
            self.sent += reply
        self.machine.serve()
        decoder = Decoder()
        decoder.receive_data(bytes(self.sent).lstrip(b"+") or b"+")
        bodies = []
        while (event := decoder.next_event()) is not Need.DATA:
            if isinstance(event, Packet):
                bodies.append(event.body)
        return bodies

    def ask(self, body: bytes) -> bytes:
        (reply,) = self.packets(body)
        return reply

    def monitor(self, line: str) -> str:
        reply = self.ask(b"qRcmd," + line.encode().hex().encode())
        return "" if reply == b"OK" else bytes.fromhex(reply.decode()).decode()

    def go(self, body: bytes = b"vCont;c") -> tuple[str, bytes]:
        """Resumes: what the console shows, and the first three letters of the stop reply."""
        *console, stop = self.packets(body)
        assert all(each.startswith(b"O") for each in console)
        words = "".join(bytes.fromhex(each[1:].decode()).decode() for each in console)
        return words, stop[:3]

    def register(self, name: str) -> int:
        return int.from_bytes(
            bytes.fromhex(self.ask(b"p%x" % REGISTER_NUMBERS[name]).decode()), "little"
        )


@pytest.fixture
def client() -> Client:
    return Client(EventMachine())


def test_nothing_stops_a_plain_continue(client: Client) -> None:
    assert client.go() == ("", b"W03")


def test_an_event_is_a_line_and_a_signal(client: Client) -> None:
    assert client.monitor("catch rmpadjust vmsa == 1") == (
        "Catch 1: rmpadjust if vmsa == 1, reported as SIG43\n"
    )
    for name in REGISTER_FIELDS:
        assert client.register(name) == 0
    for hits in range(ROUNDS):
        words, stop = client.go(b"vCont;C37:1;c" if hits else b"vCont;c")
        assert stop == b"T%02x" % SIG43
        assert re.fullmatch(
            rf"RMPADJUST gpa {VMSA_PAGE:#x} 4K VMPL1 permissions 0x0 VMSA -> 0 "
            r"by vCPU 0 at VMPL0, rip 0x[0-9a-f]+\n",
            words,
        )
        assert client.monitor("event") == words
        assert client.monitor("catch") == (
            f"  1 rmpadjust if vmsa == 1  {hits + 1} hit{'s' if hits else ''}\n"
        )
    expected = {
        "snp_event": EventClass.RMPADJUST, "snp_gpa": VMSA_PAGE, "snp_gva": VMSA_PAGE,
        "snp_size": 0x1000, "snp_vmpl_to": 1, "snp_vmpl_from": 0, "snp_info1": 0, "snp_info2": 1,
        "snp_result": 0, "snp_code": 0, "snp_vcpu": 0, "snp_task": 0, "snp_protocol": 0,
    }  # fmt: skip
    assert {name: client.register(name) for name in expected} == expected
    assert client.register("snp_rip") == client.register("rip") - 4
    assert client.go() == ("", b"W03")


def test_the_reason_is_asked_for_without_the_words(client: Client) -> None:
    client.monitor("catch pvalidate")
    _, stop = client.go()
    (again,) = client.packets(b"?")
    assert again[:3] == stop == b"T%02x" % SIG42


def test_a_step_that_makes_an_event_says_so(client: Client) -> None:
    client.monitor("catch pvalidate validate == 1")
    steps = 0
    while (reply := client.go(b"vCont;s:1"))[1] == b"T05":
        assert reply[0] == ""
        steps += 1
    assert reply[1] == b"T%02x" % SIG42
    assert f"PVALIDATE validate gpa {PAGE:#x} 4K -> 0" in reply[0]
    assert steps > 10
    assert client.go(b"vCont;s:1") == ("", b"T05")
    assert client.go(b"vCont;r0,ffffffffffffffff:1")[1] in (b"T05", b"T%02x" % SIG42)


def test_pass_signals_counts_and_goes_on(client: Client) -> None:
    client.monitor("catch pvalidate")
    client.monitor("catch vmsa")
    assert client.ask(b"QPassSignals:e;10;36;4b") == b"OK"
    assert client.go()[1] == b"T%02x" % SIG48
    assert client.monitor("catch") == "  1 pvalidate  2 hits\n  2 vmsa  1 hit\n"
    assert client.ask(b"QPassSignals:") == b"OK"
    assert client.go()[1] == b"T%02x" % SIG42
    assert client.ask(b"QPassSignals:36;3c") == b"OK"
    assert client.go() == ("", b"W03")
    counts = f"  1 pvalidate  {2 * ROUNDS} hits\n  2 vmsa  {ROUNDS} hits\n"
    assert client.monitor("catch") == counts
    assert client.monitor("event").startswith("VMSA created")


@pytest.mark.parametrize("packet", [b"QPassSignals:xx", b"QPassSignals:-1", b"QPassSignals:36,37"])
def test_malformed_lists(client: Client, packet: bytes) -> None:
    assert client.ask(packet) == b"E16"


def test_a_long_list_is_taken(client: Client) -> None:
    numbers = b";".join(b"%x" % n for n in range(20000))
    assert client.ask(b"QPassSignals:" + numbers) == b"OK"
    client.monitor("catch pvalidate")
    assert client.go() == ("", b"W03")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("catch nmi", "catch: there is no class 'nmi'; classes: vmgexit, vc, pvalidate, "),
        ("catch pvalidate gpb == 1",
         "catch: there is no field 'gpb'; fields of pvalidate: gpa, gva, size, "),
        ("catch vmgexit code ==", "catch: the condition ends too early; fields of vmgexit: code, "),
        ("uncatch", "uncatch: usage: uncatch N|all"),
        ("uncatch x", "uncatch: usage: uncatch N|all"),
        ("uncatch -1", "uncatch: usage: uncatch N|all"),
        ("uncatch ٣", "uncatch: usage: uncatch N|all"),
        ("uncatch 99999999999999999999", "uncatch: usage: uncatch N|all"),
        ("uncatch 1", "uncatch: there is no catch 1"),
        ("event now", "event: event takes no arguments"),
        ("event", "no event was caught"),
        ("catch", "nothing is caught; classes, their signals and fields:"),
        ("catch vc " + "(" * 2000, "catch: the condition has more than 1000 characters"),
    ],
)  # fmt: skip
def test_what_the_user_is_told(client: Client, line: str, answer: str) -> None:
    assert client.monitor(line).startswith(answer)


def test_the_list_of_classes_has_all_of_them(client: Client) -> None:
    text = client.monitor("catch")
    for kind, spec in CLASSES.items():
        fields = re.escape(", ".join(spec.field_names))
        assert re.search(rf"^{spec.name} +{SIGNALS[kind].name}  .*: {fields}$", text, re.MULTILINE)


def test_uncatch(client: Client) -> None:
    for name in ("pvalidate", "vmsa", "vc"):
        client.monitor(f"catch {name}")
    assert client.monitor("uncatch 1") == ""
    assert client.go()[1] == b"T%02x" % Signal.SIG41
    assert client.monitor("uncatch all") == ""
    assert client.machine.machine.events.armed == 0
    assert client.go() == ("", b"W03")


@pytest.mark.parametrize("way", ["detach", "kill", "lost"])
def test_whoever_leaves_leaves_nothing_armed(client: Client, way: str) -> None:
    client.monitor("catch pvalidate")
    client.ask(b"QPassSignals:3c")
    client.go()
    events = client.machine.machine.events
    assert events.armed
    match way:
        case "detach":
            client.packets(b"D")
        case "kill":
            client.packets(b"k")
        case "lost":
            client.session.receive_data(b"")
            client.session.next_reply()
    assert (events.armed, events.last) == (0, None)
    machine = client.machine
    machine.running = False
    second = Client(machine)
    assert second.monitor("catch").startswith("nothing is caught")
    assert second.register("snp_event") == 0
    assert second.monitor("catch vmsa") == "Catch 1: vmsa, reported as SIG48\n"


def test_only_machines_with_events_say_so() -> None:
    real = Client(EventMachine())
    assert isinstance(real.machine.target, SupportsEvents)
    assert b"QPassSignals+" in real.ask(b"qSupported:swbreak+").split(b";")
    fake = FakeClient()
    assert not isinstance(FakeMachine(), SupportsEvents)
    assert b"QPassSignals+" not in fake.ask(b"qSupported:swbreak+").split(b";")
    assert fake.ask(b"QPassSignals:36") == b""


def test_each_class_has_its_signal_and_registers() -> None:
    assert sorted(SIGNALS) == sorted(EventClass)
    assert len(set(SIGNALS.values())) == len(SIGNALS)
    for kind, signal in SIGNALS.items():
        # gdb's numbers: real-time signals 33 to 63 are 45 to 75.
        assert signal == int(signal.name.removeprefix("SIG")) + 12
        values = {field.name: 100 + n for n, field in enumerate(CLASSES[kind].fields)}
        event = SnpEvent(kind, 3, 2, 0x1234, values)
        stop = event_stop(event)
        assert (stop.tid, stop.signal) == (4, signal)
        shown = {name: event_register(event, name) for name in REGISTER_FIELDS}
        assert shown["snp_vcpu"] == 3
        assert shown["snp_rip"] == 0x1234
        # All but one of the fields have a register of their own, none hides another.
        hidden = set(values.values()) - set(shown.values())
        names = {name for name, value in values.items() if value in hidden}
        assert names <= {"msr", "arg3", "from"}, kind


def test_registers_are_described() -> None:
    described = {register.name for register in REGISTERS}
    assert {*REGISTER_FIELDS, "snp_event", "ghcb"} <= described


def test_the_documentation_has_the_classes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "gdb.md").read_text()
    for kind, spec in CLASSES.items():
        fields = " ".join(f"`{field.name}`" for field in spec.fields)
        row = f"| `{spec.name}` | {SIGNALS[kind].name} | {spec.doc} | {spec.stop} | {fields} |"
        assert row in text.splitlines()


def test_an_exit_that_stopped_a_machine_is_served_by_a_step(client: Client) -> None:
    client.monitor("catch vmgexit code == HV_FEATURES_REQUEST")
    assert client.go()[1] == b"T%02x" % Signal.SIG40
    here = client.register("rip")
    assert client.register("snp_rip") == here
    msr = client.machine.machine.hypervisor.vcpus[0].worlds[0].vmcb
    assert msr.ghcb_msr == 0x80
    assert client.go(b"vCont;s:1") == ("", b"T05")
    assert msr.ghcb_msr & 0xFFF == 0x81
    assert client.register("rip") > here
    assert client.monitor("catch").endswith("1 hit\n")


def test_catches_outlive_a_reset(client: Client) -> None:
    """The launch that comes with it is no event, though the host assigns all memory there."""
    for name in ("rmpupdate", "pvalidate"):
        client.monitor(f"catch {name}")
    words, _ = client.go()
    assert words.startswith("PVALIDATE")
    machine = client.machine.machine
    assert machine._reset() == SliceStopped()
    assert client.go()[0] == words
    assert client.monitor("catch") == "  1 rmpupdate  0 hits\n  2 pvalidate  2 hits\n"
