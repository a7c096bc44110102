"""The campaign's own counting."""

import re

from tests.torture.conftest import END, PAGE, START, Tally, rows_in, table_of, with_rows


def test_a_broken_promise_is_counted() -> None:
    tally = Tally("kills", "old or new")
    tally.hold(True, "")
    tally.hold(False, "at rename 3")
    assert (tally.kept, tally.broken) == (1, ["at rename 3"])
    assert table_of({"kills": ("old or new", 1, 1)}).endswith("| kills | 2 | 1 | 1 | old or new |")


def test_the_page_has_room_for_the_table() -> None:
    assert re.search(f"{START}.*{END}", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_a_run_of_some_files_renews_their_rows_alone() -> None:
    kills, disks = ("old or new", 9, 1), ("told", 5, 0)
    page = f"# Title\n{START}\n\n{table_of({'kills': kills, 'disks': disks})}\n\n{END}\nend\n"
    assert rows_in(page) == {"kills": kills, "disks": disks}
    renewed = with_rows(page, {"kills": ("old or new", 10, 0)}, whole=False)
    assert rows_in(renewed) == {"kills": ("old or new", 10, 0), "disks": disks}
    assert rows_in(with_rows(page, {"kills": kills}, whole=True)) == {"kills": kills}
    assert renewed.endswith(f"{END}\nend\n")
