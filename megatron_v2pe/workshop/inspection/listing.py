"""A view of a pack as text to be read: a header per document, a line per run of tokens, totals at the end."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_v2pe.workshop.inspection.views import (
    DocumentView,
    ImageView,
    PackTotals,
    PackView,
    RunView,
    as_position,
    as_tiling,
)

LEGEND = "lines marked > are learned; an index counts tokens of the document, positions are exact"
_GREEN, _CYAN, _BOLD, _PLAIN = "\033[32m", "\033[36m", "\033[1m", "\033[0m"
_MARK = "> "


def as_text(view: PackView, colour: bool = False, shorten: int | None = None) -> str:
    """Return a pack as lines of text.

    Args:
        view: the pack.
        colour: with the codes of a terminal: learned text green, images cyan.
        shorten: how many characters of a run's text are printed; None: all.
    """
    lines = [_painted(_printable(view.title), _BOLD, colour), LEGEND]
    for number, document in enumerate(view.documents, 1):
        lines += ["", _painted(_header(view, document, number), _BOLD, colour)]
        lines += _table(view, document, colour, shorten)
    lines += ["", *_totals(view.totals)]
    lines += [f"left out: {_printable(text)}" for text in view.left_out]
    return "\n".join(lines) + "\n"


def _header(view: PackView, document: DocumentView, number: int) -> str:
    last = as_position(document.last_ticks, view.denominator)
    return (
        f"document {number} of {len(view.documents)}: {_printable(document.file)}:{document.line} "
        f"({_printable(document.dataset)}), sample {document.number} of epoch {document.epoch}\n"
        f"{_count(document.tokens, 'token')}, {_count(document.tiles, 'tile')} of "
        f"{_count(len(document.images), 'image')}, {_count(document.learned, 'token')} learned (weight "
        f"{document.weight:.4g} each), positions up to {last}"
    )


def _table(view: PackView, document: DocumentView, colour: bool, shorten: int | None) -> Iterator[str]:
    """Yield the lines of a document's runs: mark, indices, positions, text."""
    indices = [_span(str(run.start), str(run.end - 1)) for run in document.runs]
    positions = [_positions(run, view.denominator) for run in document.runs]
    widths = [max(map(len, column)) for column in (["index", *indices], ["position", *positions])]
    yield f"{'':{len(_MARK)}}{'index':{widths[0]}}  {'position':{widths[1]}}  text"
    for run, index, position in zip(document.runs, indices, positions, strict=True):
        first, *others = _lines_of(run, view.denominator, shorten)
        mark = _MARK if run.learned else " " * len(_MARK)
        code = _GREEN if run.learned else _CYAN if run.image else ""
        yield _painted(f"{mark}{index:{widths[0]}}  {position:{widths[1]}}  {first}", code, colour)
        for line in others:
            yield _painted(f"{mark}{'':{widths[0]}}  {'':{widths[1]}}  {line}", code, colour)


def _lines_of(run: RunView, denominator: int, shorten: int | None) -> list[str]:
    if run.image is not None:
        return [_image(run.image, denominator)]
    text = run.text
    if shorten is not None and len(text) > shorten:
        text = f"{text[:shorten]}... ({len(text) - shorten:,} characters more)"
    parts = text.split("\n")
    whole = [_printable(part) + "\\n" for part in parts[:-1]]
    return whole + ([_printable(parts[-1])] if parts[-1] or not whole else [])


def _image(image: ImageView, denominator: int) -> str:
    positions = _span(as_position(image.first_ticks, denominator), as_position(image.last_ticks, denominator))
    frame = "" if image.frame is None else f", frame {image.frame}"
    jpeg = ", through JPEG" if image.augment else ""
    return (
        f"<img> {as_tiling(image)}, {_count(image.tiles, 'tile')}, {_count(image.tokens, 'token')}, stride "
        f"{image.stride}, positions {positions}, file {_printable(image.path)}{frame}{jpeg}"
    )


def _totals(totals: PackTotals) -> Iterator[str]:
    learned = f"{_count(totals.learned, 'token')} learned ({_share(totals.learned, totals.tokens)} of them)"
    yield (
        f"total: {_count(totals.documents, 'document')}, {totals.tokens:,} of {totals.max_tokens:,} tokens "
        f"({_share(totals.tokens, totals.max_tokens)}), {totals.tiles:,} of {totals.max_tiles:,} tiles "
        f"({_share(totals.tiles, totals.max_tiles)}), {learned}"
    )
    whole = totals.max_tokens**2
    yield (
        f"attention: {totals.attention_cost:,} pairs (squares of the lengths summed), "
        f"{_share(totals.attention_cost, whole)} of one document of {totals.max_tokens:,} tokens"
    )
    yield (
        f"padding: {_count(totals.padding, 'token')} ({_share(totals.padding, totals.tokens)}) added by the "
        f"parallel layout, {sum(totals.padded_lengths):,} in all"
    )


def _positions(run: RunView, denominator: int) -> str:
    return _span(as_position(run.first_ticks, denominator), as_position(run.last_ticks, denominator))


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} .. {last}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


def _printable(text: str) -> str:
    """Return text that cannot steer a terminal: what is not printable as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _painted(text: str, code: str, colour: bool) -> str:
    return f"{code}{text}{_PLAIN}" if colour and code else text
