"""The campaign's own counting."""

import re

from tests.torture.conftest import END, PAGE, START, Tally, table_of


def test_a_broken_promise_is_counted() -> None:
    tally = Tally("kills", "old or new")
    tally.hold(True, "")
    tally.hold(False, "at rename 3")
    assert (tally.kept, tally.broken) == (1, ["at rename 3"])
    assert table_of({"kills": ("old or new", 1, 1)}).endswith("| kills | 2 | 1 | 1 | old or new |")


def test_the_page_has_room_for_the_table() -> None:
    assert re.search(f"{START}.*{END}", PAGE.read_text(encoding="utf-8"), re.DOTALL)
