"""A condition on the rows of a partition, such as `tail_number = 'N14228'`: checked before anything runs it.

It comes from a person and may be personal data: it is parsed, never executed as text, and no message repeats any of
it. What may stand in it is listed here; whatever else DuckDB's grammar knows is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retrace.errors import RetraceError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, Expression

_ALLOWED = frozenset(
    {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"}
    | {"OPERATOR", "TYPE"}
)
_NAMED = {
    "SUBQUERY": "a sub-select",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter",
    "STAR": "COLUMNS or *",
    "LAMBDA": "a lambda",
}
_SHOWN_COLUMNS = 40


class ConditionRefused(RetraceError):
    """Not one boolean expression over the columns of a dataset; the message repeats nothing of the condition."""


@dataclass(frozen=True)
class Condition:
    """A checked condition: `columns` are the names it uses, in lower case (DuckDB's names know no case)."""

    expression: Expression
    columns: frozenset[str]

    def missing(self, present: Sequence[str]) -> frozenset[str]:
        """The columns of the condition that are not among those of a partition."""
        return self.columns - {name.lower() for name in present}


def parse_condition(connection: DuckDBPyConnection, text: str) -> Condition:
    """Check a condition; nothing of it is run. Raises `ConditionRefused`."""
    import duckdb

    try:
        answer = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {text}"]).fetchone()
        tree = json.loads(answer[0] if answer else "")
        if tree["error"] or len(tree["statements"]) != 1:
            raise ConditionRefused(f"the condition is not one expression{_position(tree)}; {_EXAMPLE}")
        expression = duckdb.SQLExpression(text)
    except (duckdb.Error, RecursionError):
        raise ConditionRefused(f"the condition is not one expression; {_EXAMPLE}") from None
    nodes = list(_nodes(tree))
    # The outer SELECT is ours, and is no expression: every node with a class is the condition's.
    for kind in (str(node["class"]) for node in nodes if "class" in node):
        if kind not in _ALLOWED:
            raise ConditionRefused(
                f"the condition holds {_NAMED.get(kind, 'something else than comparisons of columns')}; {_EXAMPLE}"
            )
    _check_functions(connection, {str(node["function_name"]) for node in nodes if node.get("class") == "FUNCTION"})
    columns = frozenset(str(node["column_names"][0]).lower() for node in nodes if node.get("class") == "COLUMN_REF")
    if not columns:
        raise ConditionRefused(f"the condition names no column; {_EXAMPLE}")
    return Condition(expression, columns)


def refuse_columns(columns: Sequence[str]) -> ConditionRefused:
    """What is said of a condition with a column that no partition has: the columns there are."""
    more = ", …" if len(columns) > _SHOWN_COLUMNS else ""
    return ConditionRefused(
        "no partition has all the columns of the condition; the columns are "
        f"{', '.join(columns[:_SHOWN_COLUMNS])}{more}; text stands in single quotes"
    )


def refuse_values(columns: Sequence[str]) -> ConditionRefused:
    """What is said of a condition that cannot be computed on any partition: the types there are."""
    more = ", …" if len(columns) > _SHOWN_COLUMNS else ""
    return ConditionRefused(
        "the condition cannot be computed: it must be true or false for each row, and compare each column with values "
        f"of its type ({', '.join(columns[:_SHOWN_COLUMNS])}{more}); TRY_CAST skips values that are no number or date"
    )


_EXAMPLE = "write one comparison or several with AND, OR and NOT, such as: tail_number = 'N14228' AND origin = 'JFK'"


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    """Every mapping in the parsed text, without recursion: people's conditions may be deep."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def _check_functions(connection: DuckDBPyConnection, names: set[str]) -> None:
    """Refuse what does not depend on the row alone: aggregates, and functions that act, wait, or roll dice."""
    known = connection.execute(
        "SELECT function_name, function_type, stability FROM duckdb_functions() WHERE list_contains(?, function_name)",
        [sorted(names)],
    ).fetchall()
    scalar = {name for name, kind, _ in known if kind in ("scalar", "macro")}
    refused = {name for name, kind, stability in known if kind == "aggregate" or stability == "VOLATILE"}
    if names - scalar or names & refused:
        raise ConditionRefused(
            f"the condition calls a function that is unknown, or is not one of a row's values alone; {_EXAMPLE}"
        )


def _position(tree: dict[str, Any]) -> str:
    """Where the parser stopped; its own message would repeat words of the condition."""
    position = tree.get("position")
    return f" (see its character {max(1, int(position) - len('SELECT ') + 1)})" if position else ""
