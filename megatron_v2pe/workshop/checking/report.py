"""What a check found, as text: a table, the first faults by file and line, and what to download to which folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_v2pe.data.published_layout import SOURCE, FolderState, published_folder
from megatron_v2pe.foreign.media_fields import named
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.workshop.checking.check import DatasetCheck, Fault

_SHOWN_FOLDERS = 3


@dataclass(frozen=True)
class Downloads:
    """Where missing files belong: number of files by folder."""

    published: dict[str, int]
    """Folders of V2PE-Data."""
    others: dict[str, int]


def downloads(checks: Sequence[DatasetCheck]) -> Downloads:
    """Return where the missing annotation files and images of all data sets belong."""
    published, others = Counter[str](), Counter[str]()
    for check in checks:
        folders = Counter(check.missing_folders)
        if check.annotation_missing:
            folders[os.path.dirname(check.annotation)] += 1
        for folder, count in folders.items():
            known = published_folder(folder)
            (others if known is None else published)[known or folder] += count
    return Downloads(dict(published), dict(others))


def as_text(path: str, checks: Sequence[DatasetCheck], unseen: Sequence[str] = ()) -> str:
    """Return the findings of a data list.

    Args:
        path: path of the data list.
        checks: what was found in each of its data sets.
        unseen: what was not looked at, and how it would be.
    """
    lines = [f"{path}: {_count(len(checks), 'data set')}", *_table(checks)]
    for check in checks:
        lines += _faults(check)
    lines += _advice(downloads(checks))
    lines += [f"not looked at: {what}" for what in unseen]
    incomplete = sum(not check.complete for check in checks)
    lines.append(
        f"{path}: {incomplete} of {_count(len(checks), 'data set')} incomplete"
        if incomplete
        else f"{path}: nothing is missing"
    )
    return printable("\n".join(lines) + "\n", lines=True)


def folders_as_text(root: str, folders: Sequence[FolderState]) -> str:
    """Return which published folders below `root` are there."""
    there = sum(folder.state == "there" for folder in folders)
    lines = [f"{root}: {there} of {len(folders)} folders of V2PE-Data are there"]
    lines += [
        f"  {folder.state:8}{os.path.join(root, folder.folder)}/" for folder in folders if folder.state != "there"
    ]
    if there < len(folders):
        lines.append(f"to be downloaded from {SOURCE}")
    return printable("\n".join(lines) + "\n", lines=True)


def _table(checks: Sequence[DatasetCheck]) -> Iterator[str]:
    names = ("lines", "images", "files", "num_missing", "num_damaged", "num_bad_lines")
    rows = [["", "lines", "images", "files", "missing", "damaged", "bad lines", ""]]
    for check in checks:
        remark = "no annotation file" if check.annotation_missing else "unusable" if check.problem else ""
        rows.append([check.name, *(_cell([getattr(check, name)]) for name in names), remark])
    rows.append(["all", *(_cell([getattr(check, name) for check in checks]) for name in names), ""])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *numbers, remark in rows:
        cells = (cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True))
        yield "  ".join(["", first.ljust(widths[0]), *cells, remark]).rstrip()


def _cell(numbers: Sequence[int | None]) -> str:
    """Return the sum of the numbers that are known, `-` where none is."""
    known = [number for number in numbers if number is not None]
    return f"{sum(known):,}" if known else "-"


def _faults(check: DatasetCheck) -> Iterator[str]:
    if check.annotation_missing:
        yield f"{check.name}: missing: {printable(check.annotation)} (the annotation file)"
    if check.problem:
        yield f"{check.name}: {check.problem}"
    if check.num_missing:
        folders = sorted(check.missing_folders.items(), key=lambda item: (-item[1], item[0]))
        counts = [f"{count:,} in {printable(folder or '.')}/" for folder, count in folders[:_SHOWN_FOLDERS]]
        more = [f"the others in {_count(len(folders) - _SHOWN_FOLDERS, 'folder')}"] if folders[_SHOWN_FOLDERS:] else []
        yield f"{check.name}: {_count(check.num_missing, 'file')} missing: {', '.join([*counts, *more])}"
        yield from (f"    {_place(check, fault)}: {printable(fault.path)}: {fault.reason}" for fault in check.missing)
    if check.unread:
        yield f"{check.name}: fields that are not read, with how many lines have each: {named(check.unread)}"
    if check.left_out:
        others = _count(check.left_out, "file")
        yield f"{check.name}: {others} in folders of frames left out: hidden, or no image (nothing to mend)"
    for kind, number, faults in (
        ("damaged file", check.num_damaged, check.damaged),
        ("bad line", check.num_bad_lines, check.bad_lines),
    ):
        if number:
            yield f"{check.name}: {_count(number, kind)}"
            yield from (f"    {_place(check, fault)}: {fault.reason}" for fault in faults)


def _place(check: DatasetCheck, fault: Fault) -> str:
    return f"{printable(check.annotation)}:{fault.line}"


def _advice(found: Downloads) -> Iterator[str]:
    if found.published:
        yield f"missing of V2PE-Data, to be downloaded from {SOURCE} into"
        yield from (f"    {folder}/   ({_count(number, 'file')})" for folder, number in found.published.items())
    if found.others:
        yield "missing of folders that are not V2PE-Data's"
        yield from (f"    {folder or '.'}/   ({_count(number, 'file')})" for folder, number in found.others.items())


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
