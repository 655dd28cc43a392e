# SPDX-License-Identifier: MIT
"""Events of an SEV-SNP machine that a debugger can wait for: what there is, conditions, catches."""

from svsmd.snp.events.classes import CLASSES, EventClass, EventSpec, Field, SnpEvent
from svsmd.snp.events.condition import Condition, ConditionError, parse_condition
from svsmd.snp.events.hub import Catch, SnpEvents, TooManyCatches

__all__ = [
    "CLASSES",
    "Catch",
    "Condition",
    "ConditionError",
    "EventClass",
    "EventSpec",
    "Field",
    "SnpEvent",
    "SnpEvents",
    "TooManyCatches",
    "parse_condition",
]
