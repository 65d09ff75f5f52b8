"""Do the pages say what is there? Links, files, modules, messages, numbers and printed examples are looked up.

`mkdocs build --strict` checks what the site shows; this test needs no documentation tools and looks at README,
CONTRIBUTING and the examples' pages as well.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import types
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from helpers.documented_commands import pages

ROOT = Path(__file__).parents[2]
PAGES = [*pages(ROOT), *sorted((ROOT / "docs" / "api").glob("*.md"))]
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|sh|md)\b|(?:docs|examples|tests|tools)/[\w./-]+\.(?:json|toml|png)")
_FOLDER = re.compile(r"(?:megatron_v2pe|docs|tests|tools|scripts|examples)/(?:[\w.-]+/)*(?=$|[ `])")
_PART = re.compile(r"([\w-]+(?:/[\w-]+)+)\.([A-Za-z_]\w*)")
"""A function or class by its file: `train/step.conclude`."""
_MODULE = re.compile(r"(?:megatron_v2pe\.)?[a-z]\w*(?:\.\w+)+")
_PLACES = ("", "megatron_v2pe", "docs", "tests", "tools", "scripts", "examples", "tests/unit", "megatron_v2pe/evaluate")
"""Folders a path of a page may be relative to."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """The anchor that GitHub and mkdocs give a heading."""
    bare = re.sub(r"\[([^\]]+)\]\([^)]*\)|[`*]", r"\1", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", bare)).strip("-")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    """Files of the checkout and headings in them; addresses of the web are not asked."""
    wrong: list[str] = []
    for target in _LINK.findall(text_of(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            wrong.append(target)
        elif anchor and slug_missing(file, anchor):
            wrong.append(f"{target}: no such heading")
    assert not wrong


def slug_missing(file: Path, anchor: str) -> bool:
    headings = re.findall(r"^#+ (.+)$", text_of(file), re.MULTILINE)
    return anchor not in {slug(heading) for heading in headings}


def exists(path: str, page: Path) -> bool:
    bare = path.removeprefix("./")
    return any((ROOT / place / bare).exists() for place in _PLACES) or (page.parent / bare).exists()


def ours(path: str) -> bool:
    """Whether a path begins in a folder of this checkout; pages on plug-ins show the reader's own."""
    first = path.partition("/")[0]
    return any((ROOT / place / first).exists() for place in _PLACES)


def spans(page: Path) -> list[str]:
    text = text_of(page)
    if name(page) == "docs/upgrading.md":  # | old | new |: what was is not there
        text = re.sub(r"^\|[^|\n]*\|", "|", text, flags=re.MULTILINE)
    return _SPAN.findall(text)


STANDS_FOR = re.compile(r"CHECKPOINT|NAME|TASK|[*]")
"""In a path that stands for others."""
MADE = re.compile(r"(dataset|data|work_dirs|pretrained|OUT|own|logs|image|shell|hf)/.*(?<!\.py)$")
"""A path that a user has or a program writes; code is ours."""
ENDINGS = set("py sh md json jsonl yaml txt csv toml png jpg html pt bin log tsv zip safetensors".split())
"""What stands behind the dot of a file's name, and not of a module's."""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_that_is_named_is_there(page):
    wrong: list[str] = []
    for span in spans(page):
        if STANDS_FOR.search(span) or (page.name.startswith("add_a_") and not ours(span)):
            continue
        wrong += [path for path in _PATH.findall(span) if not MADE.match(path) and not exists(path, page)]
        wrong += [folder for folder in _FOLDER.findall(span) if not (ROOT / folder).is_dir()]
        part = _PART.fullmatch(span)
        if part is not None and part[2] not in ENDINGS and not resolves(span.replace("/", ".")):
            wrong.append(span)
    assert not wrong


@cache
def tops() -> set[str]:
    """Folders and files right in the package: how a dotted name of a page begins."""
    return {entry.stem for entry in (ROOT / "megatron_v2pe").iterdir() if not entry.name.startswith("_")}


def settings() -> set[str]:
    """Sections of a run's settings, whose dotted names are no modules."""
    from megatron_v2pe.train.config import ExperimentConfig

    return set(ExperimentConfig.__dataclass_fields__)


def is_setting(dotted: str) -> bool:
    from megatron_v2pe.train.config import ExperimentConfig

    section, _, rest = dotted.partition(".")
    field = ExperimentConfig.__dataclass_fields__.get(section)
    if field is None or "." in rest:
        return False
    return hasattr(getattr(ExperimentConfig(), section), rest)


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module of the package, or something one defines; nothing is imported."""
    parts = dotted.removeprefix("megatron_v2pe.").split(".")
    for count in range(len(parts), 0, -1):
        base = ROOT / "megatron_v2pe" / "/".join(parts[:count])
        rest = parts[count:]
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if not file.is_file():
            if base.is_dir() and not rest:
                return True
            continue
        return not rest or (len(rest) <= 2 and re.search(rf"\b{re.escape(rest[0])}\b", file.read_text()) is not None)
    return False


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_module_that_is_named_is_there(page):
    wrong: list[str] = []
    for span in spans(page):
        if not _MODULE.fullmatch(span) or span.rsplit(".", 1)[1] in ENDINGS:
            continue
        if (
            span.split(".")[0] in tops() | settings() | {"megatron_v2pe"}
            and not resolves(span)
            and not is_setting(span)
        ):
            wrong.append(span)
    assert not wrong


def test_what_is_not_there_would_be_noticed():
    page = ROOT / "docs" / "data.md"
    assert resolves("data.encode.encode") and not resolves("data.no_such") and not resolves("data.encode.no_such")
    assert exists("data/encode.py", page) and not exists("data/no_such.py", page)
    assert not slug_missing(page, "the-data-list") and slug_missing(page, "no-such-heading")
    assert is_setting("data.meta_path") and not is_setting("data.no_such")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_examples_in_python_import_is_there(page):
    wrong: list[str] = []
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megatron_v2pe."):
                wrong += [alias.name for alias in node.names if not resolves(f"{node.module}.{alias.name}")]
    assert not wrong


def test_the_drawing_of_the_house_is_the_tree():
    """Every folder of the drawing is there, and every folder of the package stands in it."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = re.search(r"```text\nmegatron_v2pe/\n(.*?)```", page, re.DOTALL)[1]
    above, drawn = ["megatron_v2pe"], set[str]()
    for line in drawing.splitlines():
        indent, folder = re.match(r"( *)(\w+)/", line).groups()
        above[len(indent) // 2 :] = [folder]
        drawn.add("/".join(above))
    folders = {path.parent.name for path in (ROOT / "megatron_v2pe").glob("*/__init__.py")}
    assert {path.split("/")[1] for path in drawn if path.startswith("megatron_v2pe/")} == folders
    assert [path for path in drawn if not (ROOT / path).is_dir()] == []


def test_links_out_of_the_pages_become_paths_on_the_site(caplog):
    specification = importlib.util.spec_from_file_location("docs_links", ROOT / "scripts" / "docs_links.py")
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="api/index.md"))

    def shown(text: str) -> str:
        return hook.on_page_markdown(text, page=page, config={"docs_dir": str(ROOT / "docs")}, files=None)

    for kept in ("[data](../data.md#samples)", "[a](https://example.org)", "[here](#samples)", "![x](../images/a.png)"):
        assert shown(kept) == kept
    assert shown("[a tour](../../CONTRIBUTING.md)") == "a tour (`CONTRIBUTING.md`)"
    assert shown("[`scripts/test.sh`](../../scripts/test.sh)") == "`scripts/test.sh`"
    assert not caplog.records
    shown("[gone](../../no_such_file.md)")
    assert "no_such_file.md, which is not in the checkout" in caplog.text


def test_the_api_pages_show_the_whole_package():
    shown: set[str] = set()
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for module in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert resolves(module), f"{name(page)}: {module}"
            shown.add(module.split(".")[1])
    assert shown == tops() - {"version", "py"}


def test_every_page_stands_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"^ +- .*?([\w/]+\.md)$", navigation, re.MULTILINE))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed == there


@cache
def literals() -> str:
    """Every text of the code, values in it as one character that no text holds."""
    found: list[str] = []
    for folder in ("megatron_v2pe", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    found += [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").glob("*.sh")]
    return "\n".join(found)


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code():
    rows = re.findall(r"^\| (.+?) \| .+ \|$", text_of(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    quoted = [row for row in rows if row.startswith("`") and "(of " not in row and "beside a score" not in row]
    assert len(quoted) > 30
    wrong: list[str] = []
    for row in quoted:
        for part in re.match(r"`([^`]+)`", row)[1].split("..."):
            bare = part.strip(" :;,().")
            if bare and bare not in literals():
                wrong.append(f"{row}: {bare!r}")
    assert not wrong, "\n".join(wrong)


def test_v2pe_by_hand_prints_what_the_page_shows():
    page = (ROOT / "docs" / "v2pe_by_hand.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    known: dict[str, object] = {"Fraction": Fraction}
    for code, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, known)
        assert printed.getvalue() == shown


def test_transformers_does_what_the_page_on_exports_says(tmp_path):
    """5.23 has no class for this layout, and models that do not ask for it have no `generate`."""
    from transformers import AutoConfig, PreTrainedModel

    assert not hasattr(PreTrainedModel, "generate")
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat"}')
    for options in ({}, {"trust_remote_code": True}):
        with pytest.raises(ValueError, match="does not recognize this architecture"):
            AutoConfig.from_pretrained(tmp_path, **options)
