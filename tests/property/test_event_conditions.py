# SPDX-License-Identifier: MIT
"""Conditions mean what a plain evaluation says, and other text is an error and nothing worse."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.snp.events import CLASSES, ConditionError, EventClass, SnpEvent, parse_condition
from svsmd.snp.events.condition import MAX_CONDITION

KIND = EventClass.RMPADJUST
FIELDS = CLASSES[KIND].field_names
U64 = (1 << 64) - 1

# A tree is a number, a field's name, or (operator, operand, ...).
Tree = int | str | tuple[str, "Tree", "Tree"]
_leaves = st.one_of(st.integers(0, 20), st.integers(0, U64), st.sampled_from(FIELDS))
_operators = st.sampled_from(["and", "or", "not", "&", "==", "!=", "<", "<=", ">", ">="])
_trees: st.SearchStrategy[Tree] = st.recursive(
    _leaves, lambda inner: st.tuples(_operators, inner, inner), max_leaves=12
)
_values = st.fixed_dictionaries(
    dict.fromkeys(FIELDS, st.one_of(st.integers(0, 20), st.integers(0, U64)))
)


def render(tree: Tree, *, hexadecimal: bool) -> str:
    """Everything in parentheses, so that no rule about what binds tighter is needed here."""
    match tree:
        case int():
            return hex(tree) if hexadecimal else str(tree)
        case str():
            return tree
        case ("not", operand, _):
            return f"(not {render(operand, hexadecimal=hexadecimal)})"
        case (name, left, right):
            parts = [render(each, hexadecimal=hexadecimal) for each in (left, right)]
            return f"({parts[0]} {name} {parts[1]})"


def evaluate(tree: Tree, values: Mapping[str, int]) -> int:
    match tree:
        case int():
            return tree
        case str():
            return values[tree]
        case (name, left_tree, right_tree):
            left, right = evaluate(left_tree, values), evaluate(right_tree, values)
            results = {
                "and": bool(left and right), "or": bool(left or right), "not": not left,
                "&": left & right, "==": left == right, "!=": left != right,
                "<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right,
            }  # fmt: skip
            return int(results[name])


def event(values: Mapping[str, int]) -> SnpEvent:
    return SnpEvent(KIND, values["vcpu"], values["vmpl"], values["rip"], values)


@settings(max_examples=300, deadline=None)
@given(_trees, _values, st.booleans())
def test_conditions_against_a_plain_evaluation(
    tree: Tree, values: dict[str, int], hexadecimal: bool
) -> None:
    text = render(tree, hexadecimal=hexadecimal)
    if len(text) > MAX_CONDITION or text.count("(") > 20:
        return
    assert parse_condition(KIND, text).holds(event(values)) == evaluate(tree, values)


_relations = st.builds(
    lambda field, operator, number: f"{field} {operator} {number}",
    st.sampled_from(FIELDS),
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    st.integers(0, 20),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), _relations, st.sampled_from(["and", "or"])), min_size=1,
             max_size=8),
    _values,
)  # fmt: skip
def test_precedence_is_that_of_python(
    parts: list[tuple[bool, str, str]], values: dict[str, int]
) -> None:
    words = []
    for negated, relation, joint in parts:
        words += ["not " * negated + relation, joint]
    text = " ".join(words[:-1])
    assert bool(parse_condition(KIND, text).holds(event(values))) is bool(eval(text, dict(values)))


_pieces = st.one_of(
    st.sampled_from(
        ["and", "or", "not", "(", ")", "==", "!=", "<", ">", "=", "&", "0x", "0", "gpa", "code",
         "vcpu", " ", "\n", "\0", "__class__", "'", ".", "-", "1e5", "0b1", "ſ", "٣"]
    ),
    st.text(max_size=5),
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(_pieces, max_size=40).map("".join) | st.text(max_size=3000))
def test_any_text_is_a_condition_or_an_error_of_one_line(text: str) -> None:
    for kind in EventClass:
        try:
            condition = parse_condition(kind, text)
        except ConditionError as error:
            complaint = str(error)
        else:
            value = condition.holds(SnpEvent(kind, 0, 0, 0, {}))
            assert isinstance(value, int)
            assert 0 <= value <= U64
            continue
        assert 0 < len(complaint) < 1000
        assert "\n" not in complaint
