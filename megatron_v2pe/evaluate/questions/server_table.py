"""Tables servers take: xlsx, every cell as it stands in the file the questions come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_v2pe.errors import DataError, how_to_install


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Path:
    """Write a table; a column of whole numbers named `index` as numbers, empty cells empty, all else as text.

    Text that begins with `=` stays text, and characters a sheet cannot hold are left out.

    Raises:
        DataError: openpyxl is not installed.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise DataError(f"{path}: xlsx files need openpyxl: {how_to_install('eval')}") from None
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(list(columns))
    for row in rows:
        cells = []
        for column in columns:
            text = ILLEGAL_CHARACTERS_RE.sub("", row[column])
            cell = WriteOnlyCell(sheet, value=int(text) if column == "index" else text or None)
            if isinstance(cell.value, str):
                cell.data_type = "s"
            cells.append(cell)
        sheet.append(cells)
    book.save(path)
    return path
