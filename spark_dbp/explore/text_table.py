"""Tables as text: columns in line, and fewer of them where a terminal is narrow. Imports nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_GAP = "  "


def format_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Collection[str] = (),
    least: Sequence[str] = (),
    width: int | None = None,
    tails: Sequence[str] = (),
) -> list[str]:
    """Lines of a table.

    Parameters
    ----------
    heads : sequence of str
        Names of the columns.
    rows : sequence of sequence of str
        A cell for each column.
    left : collection of str
        Columns whose cells are aligned to the left.
    least : sequence of str
        Columns that are left out where the table is too wide, the first one first.
    width : int, optional
        Columns of the terminal. By default there is no limit, as for a file.
    tails : sequence of str
        What follows each row, without a head.

    Returns
    -------
    list of str
        The heads, then the rows; and a line that names the columns that are left out, if any are.

    Examples
    --------
    >>> print(*format_table(["name", "rows"], [["a", "1,000"], ["bc", "2"]], left=["name"]), sep="\\n")
    name   rows
    a     1,000
    bc        2
    >>> print(*format_table(["id", "rows"], [["1", "1,000"]], least=["rows"], width=8), sep="\\n")
    id
     1
    left out, for the terminal is narrow: rows
    """
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    tail = max((len(text) + len(_GAP) for text in tails if text), default=0)
    shown, gone = list(range(len(heads))), []
    for name in least:
        if width is None or sum(widths[at] + len(_GAP) for at in shown) - len(_GAP) + tail <= width:
            break
        shown.remove(list(heads).index(name))
        gone.append(name)

    def make_line(cells: Sequence[str], tail: str = "") -> str:
        found = [
            cells[at].ljust(widths[at]) if heads[at] in left else cells[at].rjust(widths[at]) for at in shown
        ]
        return _GAP.join([*found, tail]).rstrip()

    ends = tails or [""] * len(rows)
    lines = [make_line(heads), *(make_line(row, end) for row, end in zip(rows, ends, strict=True))]
    if gone:
        lines.append(f"left out, for the terminal is narrow: {', '.join(gone)}")
    return lines
