# SPDX-License-Identifier: MIT
"""Whatever a client sends about events, it gets an answer, and leaves nothing armed behind."""

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.gdbstub.catchpoints import SIGNALS
from svsmd.gdbstub.session import State
from svsmd.snp.events import CLASSES
from tests.event_machine import EventMachine
from tests.unit.test_gdb_events import Client

_fields = sorted({name for spec in CLASSES.values() for name in spec.field_names})
_words = st.one_of(
    st.sampled_from([spec.name for spec in CLASSES.values()]),
    st.sampled_from(_fields),
    st.sampled_from(["all", "and", "or", "not", "==", "<", "(", ")", "0", "0x1000", "1", "-1"]),
    st.text(max_size=6),
)
_lines = st.builds(
    lambda command, words: " ".join([command, *words]),
    st.sampled_from(["catch", "catch", "catch pvalidate", "catch vmgexit", "uncatch", "event"]),
    st.lists(_words, max_size=6),
)
_signals = st.one_of(
    st.lists(st.sampled_from(sorted(SIGNALS.values())).map(lambda n: b"%x" % n)).map(b";".join),
    st.binary(max_size=10).map(lambda data: data.translate(None, b"$#}*\x03")),
)
_packets = st.one_of(
    _lines.map(lambda line: b"qRcmd," + line.encode("utf-8", "replace").hex().encode()),
    _signals.map(lambda text: b"QPassSignals:" + text),
    st.sampled_from([b"vCont;c", b"vCont;C34:1;c", b"vCont;s:1", b"C36", b"s", b"?"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_packets, max_size=30))
def test_any_input_is_answered_and_nothing_stays_armed(packets: list[bytes]) -> None:
    client = Client(EventMachine())
    for packet in packets:
        replies = client.packets(packet)
        assert replies
        assert all(each.startswith(b"O") for each in replies[:-1]), "only words precede an answer"
    client.packets(b"D")
    assert client.session.state is State.DISCONNECTED
    events = client.machine.machine.events
    assert (events.armed, events.catches, len(events.pending), events.last) == (0, (), 0, None)
