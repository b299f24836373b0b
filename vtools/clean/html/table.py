"""The columns of a table that is being read: what wide and tall cells cover, and how each column is aligned."""

_WIDEST, _TALLEST = 100, 1000
_SIDES = {"left": "l", "center": "c", "right": "r"}


def span(attributes: dict[str, str]) -> tuple[int, int]:
    """How many columns and rows a cell takes."""
    wide, tall = attributes.get("colspan", ""), attributes.get("rowspan", "")
    return _number(wide, _WIDEST), _number(tall, _TALLEST)


def _number(text: str, most: int) -> int:
    return max(min(int(text), most), 1) if text.isdecimal() and len(text) < 6 else 1


def alignment(attributes: dict[str, str]) -> str:
    """The first letter of a cell's side; empty if the page names none."""
    _, styled, style = attributes.get("style", "").lower().partition("text-align")
    side = style.partition(";")[0].strip(" :") if styled else attributes.get("align", "").lower()
    return _SIDES.get(side, "")


class Table:
    """The rows so far, and the state of the open one."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []  # for each, index of its </tr> in the document, number of cells
        self.column = 0  # cells in the open row
        self.wide = 1  # columns that the open cell takes
        self.alignments: dict[int, str] = {}  # by column
        self._covered: dict[int, int] = {}  # by column, how many more rows a cell above covers

    def begin_row(self) -> None:
        """The cells that follow are of a new row."""
        self.column = 0

    def is_covered(self) -> bool:
        """Whether a cell above covers the next column of this row; it does so for one row less after this."""
        left = self._covered.get(self.column, 0)
        self._covered[self.column] = left - 1
        return left > 0

    def begin_cell(self, wide: int, tall: int, side: str) -> None:
        """The next cell takes these columns and rows; the first row decides how columns are aligned."""
        self.wide = wide
        for column in range(self.column, self.column + wide):
            self._covered[column] = tall - 1
            if side and not self.rows:
                self.alignments[column] = side

    def end_row(self) -> None:
        """Cells above go on covering the columns after the last cell, for one row less."""
        for column in self._covered:
            if column >= self.column:
                self._covered[column] -= 1

    def finish(self, out: list[str]) -> None:
        """Fill up short rows, and note the columns' sides in the first."""
        columns = max((count for _, count in self.rows), default=0)
        for place, count in self.rows:
            out[place] = "<td></td>" * (columns - count) + "</tr>"
        if self.rows and self.alignments:
            end = self.rows[0][0] - 1
            sides = "".join(self.alignments.get(column, "-") for column in range(columns))
            out[end] = f"\x0e{sides}\x0f{out[end]}"
