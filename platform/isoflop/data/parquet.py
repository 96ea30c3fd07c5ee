"""How is a parquet file read, a few row groups at a time?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.data.documents import Damage, Document, Part, Undecodable, kept, text_of

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SLICE = 2**27  # bytes of row groups, as they lie on disk, that one part holds, at most about


@dataclass(frozen=True, kw_only=True)
class ParquetPart(Part):
    """The row groups [start, end) of a file; its first row has the number `row`."""

    name: str
    bytes: int
    path: Path
    file: str  # posix path below the source; documents are named after it, and their row
    column: str
    undecodable: Undecodable
    start: int
    end: int
    row: int

    def documents(self, log: Damage) -> Iterator[Document]:
        import pyarrow as pa  # heavy, and only needed for parquet

        row = self.row
        with opened(self.path) as table:
            check_column(table, self.path, self.column)
            groups = list(range(self.start, self.end))
            try:
                for batch in table.iter_batches(1024, row_groups=groups, columns=[self.column]):
                    for content in _bytes_of(batch.column(0)):
                        if content is not None:
                            name = f"{self.file}:{row}"
                            yield from kept(
                                name, text_of(content, name, self.undecodable, log), log
                            )
                        row += 1
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{self.path}: damaged near row {row} ({error})") from error


def cut(path: Path, file: str, column: str, undecodable: Undecodable) -> Iterator[ParquetPart]:
    """The parts of a file in their order: one, or several where it is huge.

    Raises ValueError naming the file if it is not parquet, or has no such column of text.
    """
    with opened(path) as table:
        check_column(table, path, column)
        sizes = [_size(table, group) for group in range(table.num_row_groups)]
        rows = [table.metadata.row_group(group).num_rows for group in range(len(sizes))]
    groups = _grouped(sizes)
    for k, (start, end) in enumerate(groups):
        yield ParquetPart(
            name=file if len(groups) == 1 else f"{file}#{k}",
            bytes=sum(sizes[start:end]),
            path=path,
            file=file,
            column=column,
            undecodable=undecodable,
            start=start,
            end=end,
            row=sum(rows[:start]),
        )


def opened(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file ({error})") from None


def check_column(table: pq.ParquetFile, path: Path, column: str) -> None:
    import pyarrow as pa

    kinds = {field.name: field.type for field in table.schema_arrow}
    if column not in kinds:
        raise ValueError(f'{path}: no column "{column}"; it has {", ".join(kinds) or "none"}')
    kind = kinds[column]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in (pa.string(), pa.large_string(), pa.string_view()):
        raise ValueError(f'{path}: column "{column}" is {kind}, not a string')


def _bytes_of(column: Any) -> list[bytes | None]:
    """Of each row, undecoded: a writer need not have checked that strings are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    found: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return found


def _size(table: pq.ParquetFile, group: int) -> int:
    columns = table.metadata.row_group(group)
    return sum(columns.column(k).total_compressed_size for k in range(columns.num_columns))


def _grouped(sizes: list[int]) -> list[tuple[int, int]]:
    """Consecutive row groups up to a slice each, and never none."""
    groups, start, held = [], 0, 0
    for group, size in enumerate(sizes):
        if group > start and held + size > SLICE:
            groups.append((start, group))
            start, held = group, 0
        held += size
    return [*groups, (start, len(sizes))]
