"""What a notebook shows: a result as a card of HTML. Nothing outside a notebook imports this.

Names in a card come from files that anyone may have made: every text is made visible, and escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lorabake.visible import visible

MOST_ROWS = 100
"""Most rows of a table; a notebook keeps what it shows in its file."""

MOST_LETTERS = 300
"""Most letters in a cell of a table."""

LEFT = Markup('style="text-align: left; vertical-align: top"')


@dataclass(frozen=True, slots=True)
class Table:
    """Hold one table of a card; `is_folded` shows its caption only, until it is clicked."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    is_folded: bool = False


def card(title: str, meaning: str, tables: Iterable[Table] = ()) -> str:
    """Write a title, what it means, and tables as HTML; tables without rows are left out."""
    shown = Markup("").join(_table(table) for table in tables if table.rows)
    return str(Markup("<div><p><strong>{}</strong> {}</p>{}</div>").format(_text(title), _text(meaning), shown))


def _table(table: Table) -> Markup:
    heads = Markup("").join(Markup('<th scope="col" {}>{}</th>').format(LEFT, _text(head)) for head in table.heads)
    rows = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(Markup("<td {}>{}</td>").format(LEFT, _text(cell)) for cell in row)
        )
        for row in table.rows[:MOST_ROWS]
    )
    left = len(table.rows) - MOST_ROWS
    more = Markup("<p>… and {} more</p>").format(left) if left > 0 else ""
    body = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>{}").format(heads, rows, more)
    form = "<details><summary>{}</summary>{}</details>" if table.is_folded else "<p>{}</p>{}"
    return Markup(form).format(_text(table.caption), body)


def _text(value: object) -> str:
    text = visible(str(value))
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
