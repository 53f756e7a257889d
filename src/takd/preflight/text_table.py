"""Tables for a terminal."""

from collections.abc import Callable, Sequence


def aligned(
    rows: Sequence[Sequence[str]], justify: Callable[[str, int], str] = str.rjust
) -> list[str]:
    """Lay out rows as lines of columns: the first one to the left, the others as `justify` does.

    The first row has all columns; others may be shorter, such as a heading of one cell.
    """
    widths = [max(len(row[at]) for row in rows if at < len(row)) for at in range(len(rows[0]))]
    padded = ([row[0].ljust(widths[0]), *map(justify, row[1:], widths[1:])] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]
