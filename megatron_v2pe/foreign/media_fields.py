"""Which fields of a line name its images and its video, however people spell them; what is not understood is refused.

If a field is overlooked, a question is trained, asked or scored without its picture, and nothing shows it. So every
reader of lines (annotations, questions of `generate.py --input`, own questions of the evaluation) asks here.
`media_of` knows

- images: `image` and `images`, also as `img`, `picture`, `photo`, `pic`, in any capitals, with `_path`, `_file`,
  `_list`, `_url` and their plurals behind (`image_path`, `images_list`, `imageFile`): a path, or a list of paths;
- a video: `video` and `videos`, spelt likewise: a path; under another name than `video` also a list of one.

`null`, `""` and `[]` are no media. Two fields may name the same files; where they differ the line is refused, but an
address beside a path is where the file came from. Everything else that looks like media is refused: a further field
with such a name (`image2`, `audio`, `frames`), and in a line that names no media also any value, however deep, that is
a path ending like a picture, film or sound, or holds one as text (`data:`, base64). Numbers are never media
(`image_num`, `width_list`), nor is what describes them (`image_id`, `video_caption`), nor `id`, nor a sentence, and in
a line with media neither what its other fields hold (`meta`) nor what its media were made of (`original_image`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import is_unicode

SPOKEN_OF = frozenset(
    "id ids index idx uid uuid key question_id sample_id data_id image_id image_ids video_id width height width_list "
    "height_list image_num num_image num_images image_size meta metadata token_ids placement length source dataset "
    "dataset_name data_source type data_type task category split language lang model license url".split()
)
"""Fields that published data sets carry beside a conversation; they are not read, and no warning names them."""
_IMAGE_STEMS = ("image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos")
_VIDEO_STEMS = ("video", "videos", "movie", "movies")
_TAILS = ("path paths file files filepath filepaths filename filenames list url urls uri").split()
_IMAGE_NAMES = frozenset(stem + tail for stem in _IMAGE_STEMS for tail in ("", *_TAILS))
_VIDEO_NAMES = frozenset(stem + tail for stem in _VIDEO_STEMS for tail in ("", *_TAILS))
_MEDIA_WORDS = frozenset(
    (*_IMAGE_STEMS, *_VIDEO_STEMS)
    + tuple("frame frames clip clips audio audios vid vids mp3 mp4 jpg jpeg png gif screenshot screenshots".split())
)
_WORDS_OF_FILES = frozenset((*_TAILS, *"name names dir folder".split()))
_WORDS_OF_REFERENCES = _WORDS_OF_FILES | frozenset("data content bytes base64 b64 src ref input".split())
"""A name of media that ends in one of these still names media; in another word, it describes them."""
_ORIGINS = frozenset(
    "id ids source sources origin original caption captions description title hash info infos meta metadata mask masks "
    "annotation annotations attributes type format".split()
)
"""Words behind a name of media that say what it is or where it is from, be it in the name of a file."""
_MADE_OF = frozenset("original originals orig origin raw old parent".split())
"""Words in the name of a field that say: the line's own media were made from what this field names."""
_FILMS = frozenset("video videos movie movies clip clips".split())
_IDENTITIES = frozenset("id question_id sample_id data_id uid uuid key __key__ idx index".split())
"""Fields that distinguish lines, for example by the name of a file."""
_NOTHING = frozenset("none null nan n/a na no false - 0".split())
_SUFFIX = re.compile(
    r"(?<=[^\s/\\.])\.(?:png|jpe?g|jpe|jfif|gif|bmp|dib|webp|tiff?|ppm|pgm|jp2|avif|heic|heif|tga|ico|svg|"
    r"mp4|m4v|mov|mkv|webm|avi|mpe?g|flv|wmv|3gp|ogv|mp3|wav|flac|ogg|m4a|aac|opus)(?:[?#]\S*)?$",
    re.IGNORECASE,
)
_HELD = re.compile(r"\s*(?:data:[\w.+-]+/[\w.+-]+[;,]|iVBORw0KGgo|/9j/[\w+/]{40}|R0lGOD[\w+/]{40}|UklGR[\w+/]{40})")
"""The beginning of a `data:` address, or of a PNG, JPEG, GIF or WebP file in base64."""
_LONGEST_REFERENCE, _MOST_WORDS, _MOST_NAMED = 4096, 6, 10
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
_NAMED = re.compile(rb"(?i)ima?g|pic|photo|video|movie|\\u")


_Found = tuple[str, tuple[str, ...]]
"""A field, and what it names."""


def may_name_media(line: bytes) -> bool:
    """Tell whether a line of JSON may have a field of media, without reading it: False is certain."""
    return _NAMED.search(line) is not None  # a key can be spelt with escapes


@dataclass(frozen=True)
class Media:
    """What a line shows, and which of its fields are not read."""

    images: tuple[str, ...] = ()
    """Paths or addresses as they are written, in order."""
    listed: bool = False
    """Whether the images are a list, which then may hold one: its text says itself where each belongs."""
    video: str | None = None
    """A path as it is written."""
    unknown: tuple[str, ...] = ()
    """Names of fields that are neither read nor usual beside a conversation (`SPOKEN_OF`); to be counted and named."""


def media_of(row: Mapping[str, Any], known: Collection[str], error: Kind, where: str = "", video: bool = True) -> Media:
    """Return the images and the video a JSON object names.

    Args:
        row: the object of a line.
        known: the fields the reader reads besides; they are not looked at.
        error: class of the error to raise.
        where: put before a message, `file:line: ` for example.
        video: whether the reader can show a video; where it cannot, a line that names one is refused.

    Raises:
        V2PEError: of class `error`: a field of media holds something else, two disagree, images and a video stand in
            one line, or something looks like media and is not read; names the field and what to write.
    """
    images, videos, others = list[_Found](), list[_Found](), list[str]()
    for name, value in row.items():
        kind = _kind(name)
        if kind == "image":
            images.append((name, _paths(name, value, error, where)))
        elif kind == "video":
            videos.append((name, _film(name, value, error, where)))
        elif name not in known:
            others.append(name)
    shown = _agreed(images, error, where) if images else None
    seen = _agreed(videos, error, where) if videos else None
    if shown and seen:
        raise error(
            f"{where}{printable(shown[0])} and {printable(seen[0])} stand in one line: it can show images or a video; "
            "leave one out"
        )
    if seen and not video:
        raise error(
            f"{where}{printable(seen[0])}: no video is shown here; give frames of it as a list of images (the field "
            "'image'), with an <image> for each"
        )
    media = Media(
        images=shown[1] if shown else (),
        listed=bool(shown) and isinstance(row[shown[0]], list),
        video=seen[1][0] if seen else None,
        unknown=tuple([name for name in others if name not in SPOKEN_OF]),
    )
    if spoken := {name: row[name] for name in others if name not in _IDENTITIES}:
        _refuse_hidden(spoken, (*media.images, media.video or ""), error, where)
    return media


def refuse_hidden_media(content: Mapping[str, Any], error: Kind, where: str = "") -> None:
    """Refuse an object that is not read, such as the further fields of a turn, if something in it looks like media.

    Raises:
        V2PEError: of class `error`: names the field and what to write.
    """
    _refuse_hidden(content, ("",), error, where)


def named(unknown: Mapping[str, int]) -> str:
    """Return the names of fields that are not read, with how many lines have each, for a message; the first ten."""
    shown = [f"{printable(name)[:40]!r} ({count:,})" for name, count in [*unknown.items()][:_MOST_NAMED]]
    return ", ".join(shown) + (f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else "")


def _paths(name: str, value: Any, error: Kind, where: str) -> tuple[str, ...]:
    paths: list[Any] = value if isinstance(value, list) else [] if value is None or value == "" else [value]
    for path in paths:
        if isinstance(path, str) and _HELD.match(path):
            raise error(
                f"{where}{printable(name)}: holds a picture itself ({ascii(path[:20])}...): write it to a file, and "
                "give the path"
            )
        if not is_path(path):
            inside = ": of an object give the path alone" if isinstance(path, dict) else ""
            found = ascii(value)[:80]
            raise error(f"{where}{printable(name)}: expected a path or a list of paths, found {found}{inside}")
    return tuple(paths)


def _film(name: str, value: Any, error: Kind, where: str) -> tuple[str, ...]:
    if name != "video" and isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    if value is None or value == "":
        return ()
    if isinstance(value, str) and is_path(value):
        return (value,)
    listed = ": one video a line, as text; of its frames, their folder" if isinstance(value, list) and value else ""
    raise error(f"{where}{printable(name)}: expected a path, found {ascii(value)[:80]}{listed}")


def _agreed(found: list[_Found], error: Kind, where: str) -> _Found | None:
    """Return one field of those that name something, `image` or `video` itself where it does."""
    if len(found) < 2:
        return found[0] if found and found[0][1] else None
    named = sorted((one for one in found if one[1]), key=lambda one: one[0] not in ("image", "video"))
    named = [one for one in named if not all(map(_is_address, one[1]))] or named
    for other in named[1:]:
        first = named[0]
        if first[1] != other[1] and (
            first[0] not in ("image", "video") or [*map(_base, first[1])] != [*map(_base, other[1])]
        ):
            raise error(
                f"{where}{printable(first[0])} and {printable(other[0])} name different files, "
                f"{ascii(first[1])[:60]} and {ascii(other[1])[:60]}; leave one of the fields out"
            )
    return named[0] if named else None


def _refuse_hidden(content: Mapping[str, Any], named: tuple[str, ...], error: Kind, where: str) -> None:
    bases = {_base(name) for name in named if name}
    for name, value in content.items():
        if isinstance(value, int | float) or not value or name in _IDENTITIES:
            continue
        found = _named_besides(name, value) if bases else next(_hidden(name, value), None)
        if found is not None and _base(found) not in bases:
            raise error(
                f"{where}the field {printable(name)[:60]!r} looks like media ({ascii(found)[:60]}) and is not read: "
                "give the paths of images as 'image', that of a video, or of a folder of its frames, as 'video', or "
                "leave the field out"
            )


def _named_besides(name: str, value: Any) -> str | None:
    """Return a file that a further field of a line with media names, if the field's name says that it is media."""
    if not _speaks_of_media(name) or _is_origin(name):
        return None
    return next((text for text in _texts(value) if _is_reference(name, text) and not _is_address(text)), None)


def _hidden(name: str, value: Any) -> Iterator[str]:
    """Yield what looks like media in a field of a line that names none."""
    if isinstance(value, Mapping):
        for inner, content in value.items():
            yield from _hidden(str(inner), content)
        # {"picture": {"path": "x"}}: what it holds goes by the outer name.
        if _speaks_of_media(name) and _names_files(name):
            yield from (text for text in _texts(value) if _is_reference(name, text) or _is_word(text))
    elif isinstance(value, list):
        if value and not isinstance(value[0], int | float):
            for content in value:
                yield from _hidden(name, content)
    elif isinstance(value, str) and value:
        if _HELD.match(value):
            yield value[:40]
        elif _SUFFIX.search(value) and _is_reference(name, value):
            yield value
        elif _speaks_of_media(name) and _names_files(name) and (_is_word(value) or _is_address(value)):
            yield value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list) and value and not isinstance(value[0], int | float):
        for inner in value:
            yield from _texts(inner)


@lru_cache(maxsize=4096)
def _kind(name: str) -> str | None:
    """Return whether a field of this name holds the images of a line or its video."""
    plain = re.sub(r"[-_ .]", "", name).lower()
    return "image" if plain in _IMAGE_NAMES else "video" if plain in _VIDEO_NAMES else None


@lru_cache(maxsize=4096)
def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name)) or ("",)


@lru_cache(maxsize=4096)
def _speaks_of_media(name: str) -> bool:
    return any(word in _MEDIA_WORDS for word in _words(name))


@lru_cache(maxsize=4096)
def _names_files(name: str) -> bool:
    """Return whether a name that speaks of media names them, `left_image` or `image_2`, and does not describe them."""
    last = _words(name)[-1]
    return last in _MEDIA_WORDS or last in _WORDS_OF_REFERENCES or last.isdecimal() or len(last) == 1


@lru_cache(maxsize=4096)
def _speaks_of_files(name: str) -> bool:
    return _speaks_of_media(name) or _words(name)[-1] in _WORDS_OF_FILES


@lru_cache(maxsize=4096)
def _is_origin(name: str) -> bool:
    """Return whether a name of media means what the line's own come from, or describes them."""
    words = _words(name)
    return (
        words[-1] in _ORIGINS or any(word in _MADE_OF for word in words) or ("source" in words and _tells_film(words))
    )


def _tells_film(words: tuple[str, ...]) -> bool:
    return any(word in _FILMS for word in words)


def _is_reference(name: str, text: str) -> bool:
    """Return whether a text names a file of media and is no prose: of several words, one has folders."""
    if _HELD.match(text):
        return True
    if len(text) > _LONGEST_REFERENCE or "\n" in text or _SUFFIX.search(text) is None:
        return False
    words = len(text.split())
    return words == 1 or (words <= _MOST_WORDS and (_speaks_of_files(name) or "/" in text or "\\" in text))


def _is_word(text: str) -> bool:
    return len(text) <= _LONGEST_REFERENCE and len(text.split()) == 1 and text.strip().lower() not in _NOTHING


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _base(path: str) -> str:
    return path.rstrip("/").replace("\\", "/").rpartition("/")[2]


def is_path(name: Any) -> bool:
    """Tell whether a value can be the path of a file: text, not empty, without NUL and halves of surrogate pairs."""
    return isinstance(name, str) and name != "" and "\0" not in name and is_unicode(name)
