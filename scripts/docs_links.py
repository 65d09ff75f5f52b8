"""Shows links of documentation pages that leave `docs/` as the file's name; a hook of `mkdocs.yml`.

On GitHub `[examples](../examples/evaluation/README.md)` is a link. The site holds pages of `docs/` alone, so that there
it becomes the words with the file's path behind them. A path that is not in the checkout is a warning, which
`mkdocs build --strict` makes an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[(?P<words>[^\]]+)\]\((?P<target>[^)\s]+)\)")
_log = logging.getLogger("mkdocs.plugins.docs_links")


def on_page_markdown(markdown: str, /, *, page: Any, config: Any, files: Any) -> str:
    """Return a page's text with links to files outside of the documentation folder replaced by their paths."""
    folder = Path(config["docs_dir"]).name
    root = Path(config["docs_dir"]).parent

    def replaced(link: re.Match[str]) -> str:
        target = link["target"].partition("#")[0]
        if re.match(r"[a-z]+:", target) or not target:
            return link[0]
        place = posixpath.normpath(posixpath.join(folder, posixpath.dirname(page.file.src_uri), target))
        if place.startswith(f"{folder}/"):
            return link[0]
        if not (root / place).exists():
            _log.warning("%s: link to %s, which is not in the checkout", page.file.src_uri, place)
        words = link["words"].strip("`")
        return f"`{place}`" if words == place else f"{link['words']} (`{place}`)"

    return _LINK.sub(replaced, markdown)
