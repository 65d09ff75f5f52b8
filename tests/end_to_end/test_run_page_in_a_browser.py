"""The page of a run in a real browser: its script runs without an error, figures are drawn, in both colour schemes."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from PIL import Image

from helpers.run_pages import write_run
from megatron_v2pe.train.page.build import write_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: apt-get install chromium")
WIDTH, HEIGHT = 1280, 1700


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page(write_run(tmp_path_factory.mktemp("made") / "run"))[0]


def browse(page, profile, *flags):
    """Open a page without a network or a profile of its own; return what the browser prints."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        f"--window-size={WIDTH},{HEIGHT}",
        "--enable-logging=stderr",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)


def script_errors(said):
    return [line for line in said.stderr.splitlines() if "CONSOLE" in line]


def shown(page, folder, *flags):
    """Return a picture of the page as it is seen."""
    said = browse(page, folder / "profile", f"--screenshot={folder / 'page.png'}", "--virtual-time-budget=2000", *flags)
    assert script_errors(said) == []
    with Image.open(folder / "page.png") as image:
        return image.convert("RGB")


def near(colour, other):
    return all(abs(one - two) < 24 for one, two in zip(colour, other, strict=True))


def drawn(image, colour):
    """Return how many pixels have about a colour."""
    return sum(count for count, found in image.getcolors(1 << 24) if near(found, colour))


def test_the_script_runs_and_reaches_every_chart(page, tmp_path):
    said = browse(page, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=2000")
    assert script_errors(said) == []
    charts = said.stdout.count("data-points=")
    assert charts >= 8 and said.stdout.count("<line ") == charts, "the script adds a line to each"
    assert all(f'href="#s{number}"' in said.stdout and f'id="s{number}"' in said.stdout for number in range(1, 9))


def test_long_words_do_not_make_the_page_wider_than_the_window(page, tmp_path):
    long, text = tmp_path / "long.html", page.read_text()
    for begin in ('<p class="quiet">', "<dt>", "<dd>", "<figcaption>", "<li>", '<p class="passage">'):
        assert begin in text
        text = text.replace(begin, begin + "x" * 400, 1)
    measure = "<script>document.title = `${document.documentElement.scrollWidth - innerWidth} beyond`</script>"
    long.write_text(text.replace("</body>", f"{measure}</body>"))
    assert "<title>0 beyond</title>" in browse(long, tmp_path / "profile", "--dump-dom").stdout


def test_an_error_of_a_script_is_seen(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace('querySelectorAll("figure', 'querySelectorMany("figure'))
    assert script_errors(browse(broken, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=2000"))


@pytest.mark.parametrize(
    ("scheme", "paper", "line"), [(1, (255, 255, 255), (37, 99, 201)), (0, (20, 23, 27), (118, 169, 255))]
)
def test_figures_are_drawn_in_both_colour_schemes(page, tmp_path, scheme, paper, line):
    image = shown(page, tmp_path, f"--blink-settings=preferredColorScheme={scheme}")
    assert image.size == (WIDTH, HEIGHT) and near(image.getpixel((3, 3)), paper)
    # Lines take some thousand pixels: measured 5,400 on light and 5,100 on dark, without them 2,750 and 2,500.
    assert drawn(image, line) > 2000
    without = tmp_path / "without.html"
    without.write_text(page.read_text().replace("<polyline", "<g"))
    (tmp_path / "second").mkdir()
    empty = shown(without, tmp_path / "second", f"--blink-settings=preferredColorScheme={scheme}")
    assert drawn(empty, line) < 0.6 * drawn(image, line), "without lines, titles and marks alone are left"
