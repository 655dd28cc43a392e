# SPDX-License-Identifier: MIT
"""Frames of the core's handlers: generators that are suspended, that run, or that have raised.

Function, file and line, and nothing of what they work on.

Spec: none.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

from svsmd.core.backtrace.frames import MAX_FRAMES, Backtrace, Frame, FrameKind

_PACKAGE: Final = __file__.removesuffix("core/backtrace/handler_frames.py")
"""Where the package lies: files in it are named from there, others by their names alone."""


def of_generator(handler: Any) -> Backtrace:
    """Where a suspended handler, and what it delegates to, has yielded; empty if it has ended."""
    frames: list[Frame] = []
    while handler is not None and len(frames) < MAX_FRAMES:
        frame = getattr(handler, "gi_frame", None)
        if frame is None:
            break
        frames.append(_frame(frame.f_code, frame.f_lineno))
        handler = handler.gi_yieldfrom
    return Backtrace(tuple(reversed(frames)))


def of_traceback(traceback: TracebackType | None) -> Backtrace:
    """The way of an exception from where it was raised to where it was caught."""
    frames: list[Frame] = []
    while traceback is not None:
        frames.append(_frame(traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    kept = frames[-MAX_FRAMES:]
    return Backtrace(tuple(reversed(kept)), _too_many(len(frames)))


def of_caller(last: Any = None) -> Backtrace:
    """Who has delegated to the generator that calls this, up to `last` or the outermost one."""
    frames = list(_callers(sys._getframe(2), getattr(last, "gi_frame", None)))
    return Backtrace(tuple(frames[:MAX_FRAMES]), _too_many(len(frames)))


def _callers(frame: FrameType | None, last: FrameType | None) -> Iterator[Frame]:
    while frame is not None and frame.f_code.co_flags & inspect.CO_GENERATOR:
        yield _frame(frame.f_code, frame.f_lineno)
        frame = None if frame is last else frame.f_back


def _too_many(count: int) -> str:
    return f"more than {MAX_FRAMES} frames" if count > MAX_FRAMES else ""


def _frame(code: CodeType, line: int | None) -> Frame:
    path = code.co_filename
    inside = path.startswith(_PACKAGE)
    file = path.removeprefix(_PACKAGE) if inside else path.rpartition("/")[2]
    return Frame(FrameKind.HANDLER, code.co_name, file=file, line=line or 0)
