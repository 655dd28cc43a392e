# SPDX-License-Identifier: MIT
"""Atheris, a fuzzer that coverage leads, makes up debuggers that talk to a fake machine.

    python -m tests.fuzz.session CORPUS [libFuzzer's options]

It begins with what real debuggers say (tests/data/rsp) and what is in the directory CORPUS, where
it puts what leads it further.

An input is a dialogue (tests/debugger_input.py). Nothing may escape but what ends a connection;
what is sent is well-formed, and the machine is released. libFuzzer's -timeout finds what hangs and
-rss_limit_mb what takes memory.

Spec: libFuzzer documentation, "Options".
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["svsmd.gdbstub"]):
    from svsmd.gdbstub.rsp import MAX_NOISE
    from tests.debugger_input import DIALOGUES, converse, events_of, pieces_of
    from tests.fake_target import FakeMachine
    from tests.unit.test_gdb_processes import Worlds


KINDS = b"\0\1\2\3"
"""First bytes of an input, see `one_input`."""


def one_input(data: bytes) -> None:
    """Bit 0 of the first byte: the machine has processes; bit 1: it ran when the client came."""
    pieces = pieces_of(data[1:])
    stream = b"".join(pieces)
    if len(stream) < MAX_NOISE:
        whole, split = [stream] if stream else [], [stream[i : i + 1] for i in range(len(stream))]
        assert events_of(whole) == events_of(split)
    kind = data[0] if data else 0
    converse(pieces, Worlds() if kind & 1 else FakeMachine(), was_running=bool(kind & 2))


def add_seeds(corpus: Path) -> None:
    """Put the dialogues into a corpus, for each kind of machine."""
    corpus.mkdir(parents=True, exist_ok=True)
    for path in DIALOGUES.glob("*.txt"):
        for kind in KINDS:
            (corpus / f"{path.stem}-{kind}").write_bytes(bytes([kind]) + path.read_bytes())


if __name__ == "__main__":
    add_seeds(Path(sys.argv[1]))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
