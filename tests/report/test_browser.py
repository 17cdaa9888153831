"""The pages in a real browser: nothing on its console, and nothing wider than a telephone."""

import functools
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmpl.report import write_comparison, write_report
from tests.report.sample import FEW, NOISY, write_sample

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="install chromium to look at the pages in a browser")
PAGES = ("report.html", "comparison.html")
FRAME = """<!doctype html><title>measuring</title>
<iframe src="{page}" width="{width}" height="900" style="border: 0"></iframe>
<script>addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1
    && !e.closest(".wide, pre, svg"));
  const broken = [...page.images].filter(e => !e.naturalWidth);
  document.title = `width ${{root.scrollWidth}} of ${{root.clientWidth}}; wide ${{wide.map(e => e.tagName)}};`
    + ` images ${{page.images.length}}; broken ${{broken.length}};`;
}})</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without writing a line for each."""

    def log_message(self, format: str, *values: object) -> None:
        return


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    shutil.move(write_report(write_sample(root / "run")), root / "report.html")
    write_comparison(root / "comparison.html", "Two tables", [FEW, NOISY])
    return root


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of a server of the folder: a page and its frame then have one origin, which a script may look into."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )  # fmt: skip
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


def browse(address: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """The page's DOM on stdout, and the browser's log, with its console, on stderr."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=5000"]
    command = [CHROMIUM, *options, f"--user-data-dir={profile}", "--dump-dom", "--window-size=1280,1000", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def console_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_nothing_on_the_console_and_fits_a_telephone(
    page: str, folder: Path, address: str, tmp_path: Path
) -> None:
    (folder / "frame.html").write_text(FRAME.format(page=page, width=400))
    seen = browse(f"{address}/frame.html", tmp_path)
    assert console_lines(seen.stderr) == []
    found = re.search(r"<title>width (\d+) of (\d+); wide (.*?); images (\d+); broken (\d+);", seen.stdout)
    assert found, seen.stdout[:500] + seen.stderr[-2000:]
    width, room, wide, images, broken = found.groups()
    assert (int(width), wide) == (int(room), "")
    assert int(room) == 400
    assert (int(images) > 20) == (page == "report.html")
    assert broken == "0"


def test_a_planted_fault_is_found(folder: Path, address: str, tmp_path: Path) -> None:
    page = (folder / "report.html").read_text()
    faults = '<img src="http://127.0.0.1:9/x.png" alt=""><p style="width: 900px">wide</p></main>'
    (folder / "planted.html").write_text(page.replace("</main>", faults))
    (folder / "frame.html").write_text(FRAME.format(page="planted.html", width=400))
    seen = browse(f"{address}/frame.html", tmp_path)
    assert any("Content Security Policy" in line for line in console_lines(seen.stderr))
    assert re.search(r"<title>width (?!400 )\d+ of 400; wide .*P.*; images \d+; broken 1;", seen.stdout)
