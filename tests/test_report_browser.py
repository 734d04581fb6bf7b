"""The pages in a real headless Chromium: nothing in the console, no request, readable on a phone and in the dark."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from browser import Page, find_chromium
from pages import ATTACK, alarm, corrected, diagnosis_of, scores_of, write

from cellnorm.report import write_evaluation

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

DESKTOP, PHONE = 1200, 390

# Contrast of every visible text with what lies behind it (WCAG 2.2, 1.4.3): the worst, as [ratio, text].
CONTRAST = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const seen = c => c.length < 4 || c[3] > 0, white = [255, 255, 255];
  const behind = e => {
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (seen(c)) return c; }
    return white;
  };
  let worst = [99, ''];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !e.getClientRects().length || e.closest('.unseen, .skip')) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst[0]) worst = [ratio, text.slice(0, 40)];
  }
  return worst;
})()"""
# Blocks that stick out of the window, other than in a box that scrolls.
STICKING_OUT = """[...document.querySelectorAll('p, h1, h2, h3, li, dd, dt, figcaption, pre, .scroll, .canvas, nav')]
  .filter(e => !e.closest('.scroll') || e.classList.contains('scroll')).filter(e => !e.closest('.unseen, .skip'))
  .filter(e => { const r = e.getBoundingClientRect(); return r.width && (r.right > innerWidth + .5 || r.left < -.5); })
  .map(e => e.tagName + ' ' + e.textContent.slice(0, 30))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(str(CHROMIUM), tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def attacked(simulated_once: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about a file, a column, batches, types and an embedding that are all named like a script."""
    adata = simulated_once.copy()
    for column in ("batch", "cell_type"):
        adata.obs[column] = [f"{ATTACK} {v}" for v in adata.obs[column].astype(str)]
    adata.obs[ATTACK] = adata.obs.pop("batch")
    corrected(adata, batch_key=ATTACK)
    adata.uns["cellnorm"]["alarm"] = {**alarm(adata.obs[ATTACK], "over-corrected"), "reason": f"Because of {ATTACK}."}
    adata.obsm["X_umap_cellnorm"] = adata.obsm["X_cellnorm"][:, :2].copy()
    path = tmp_path_factory.mktemp("page") / "report.html"
    scores = scores_of(*(f"X_{i}{ATTACK}" for i in range(7)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cellnorm.report._content.layout", lambda x, seed: (np.asarray(x)[:, :2], "UMAP"))
        return write(
            path, adata, batch_key=ATTACK, scores=scores, diagnosis=diagnosis_of(ATTACK, f"{ATTACK} 2"),
            command=f"cellnorm correct '{ATTACK}.h5ad' --report " + "x" * 300, name=f"{ATTACK}.h5ad",
        )  # fmt: skip


def asked_for(tab: Page) -> list[str]:
    """Requests beyond the page itself and the pictures in it."""
    return [url for url in tab.requests() if not url.startswith(("data:", "file:"))]


@pytest.fixture
def page(tab: Page, attacked: Path) -> Page:
    tab.size(DESKTOP)
    tab.scheme("light")
    tab.open(attacked.as_uri())
    return tab


def test_the_console_stays_empty_and_nothing_is_asked_for(page: Page) -> None:
    assert page.complaints() == []
    assert asked_for(page) == []
    assert [url for url in page.requests() if url.startswith("file:")] == [page.value("location.href")]


def test_names_like_scripts_are_shown_as_text(page: Page) -> None:
    assert page.value("document.scripts.length") == 0
    text = page.value("document.body.innerText")
    assert f"{ATTACK}.h5ad" in text
    assert f"Because of {ATTACK}." in text
    assert text.count(ATTACK) > 20
    assert ATTACK in page.value("document.title")
    assert page.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize("width", [320, PHONE, 768, DESKTOP])
def test_no_width_needs_sideways_scrolling(page: Page, width: int) -> None:
    page.size(width, 844, phone=width < 700)
    page.open(page.value("location.href"))
    assert page.value("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert page.value(STICKING_OUT) == []
    # seven embeddings do not fit on a phone: their table scrolls within its box, and the keyboard gets there
    scrolls = page.value("[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)")
    assert scrolls or width == DESKTOP
    assert page.value("[...document.querySelectorAll('.scroll')].every(e => e.tabIndex == 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(page: Page, scheme: str) -> None:
    page.scheme(scheme)
    ratio, text = page.value(CONTRAST)
    assert ratio >= 4.5, text
    paper = page.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(paper) < 60) == (scheme == "dark")


def test_the_first_tab_skips_to_the_content(page: Page) -> None:
    page.press("Tab")
    assert page.value("document.activeElement.className") == "skip"
    assert page.value("(r => r.left >= 0 && r.top >= 0)(document.activeElement.getBoundingClientRect())")
    page.press("Tab")
    focused = "getComputedStyle(document.activeElement)"
    assert page.value("document.activeElement.closest('nav') !== null")
    assert page.value(f"{focused}.outlineStyle") == "solid"
    assert page.value(f"parseFloat({focused}.outlineWidth)") >= 2


def test_paper_is_white_and_has_no_navigation(page: Page) -> None:
    page.scheme("dark", "print")
    try:
        assert page.value("getComputedStyle(document.querySelector('nav')).display") == "none"
        ink = page.value("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
        assert max(ink) < 60
    finally:
        page.scheme("light")


def test_one_click_selects_the_methods(page: Page) -> None:
    box = page.value("(r => [r.x + 40, r.y + 10])((e => (e.scrollIntoView({behavior: 'instant', block: 'center'}), "
                     "e.getBoundingClientRect()))(document.querySelector('#methods .copy')))")  # fmt: skip
    for kind in ("mousePressed", "mouseReleased"):
        page.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
    selected = page.value("getSelection().toString()")
    assert selected.startswith("300 cells from 3 batches")
    assert "The seed was 0." in selected


def test_a_hundred_thousand_cells_open_within_a_second(tab: Page, tmp_path: Path) -> None:
    n = 100_000
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((n, 1), np.float32))
    adata.obs["batch"] = rng.integers(0, 12, n).astype(str)
    adata.obs["type"] = rng.integers(0, 12, n).astype(str)
    for i in range(5):
        adata.obsm[f"X_umap{i}"] = rng.normal(size=(n, 2))
    path = write_evaluation(
        tmp_path / "e.html", adata, batch_key="batch", label_key="type", command="x", scores=scores_of("X_pca")
    )
    assert path.stat().st_size < 5e6
    tab.open(path.as_uri())  # the first time the machine may be busy with what it just wrote
    assert min(tab.open(path.as_uri()) for _ in range(2)) < 1
    assert tab.complaints() == []
    assert tab.value("document.images.length") == 6  # three layouts, by batch and by type


class Counting(BaseHTTPRequestHandler):
    """A server that counts what it is asked for."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def test_the_browser_would_notice(tab: Page, tmp_path: Path) -> None:
    """What the tests above look for is seen when it is there, and the page's policy keeps it away."""
    server = HTTPServer(("127.0.0.1", 0), Counting)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        bad = (
            f'<body><script>console.error("x"); window.ran = 1</script>'
            f'<img src="http://127.0.0.1:{server.server_port}/pixel"><p style="color:#999">pale</p>'
            '<p style="width:2000px">wide</p></body>'
        )
        open_page, closed_page = tmp_path / "open.html", tmp_path / "closed.html"
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        open_page.write_text(bad)
        closed_page.write_text(f'<meta http-equiv="Content-Security-Policy" content="{policy}">{bad}')
        tab.open(open_page.as_uri())
        assert any("console" in c or "error" in c for c in tab.complaints())
        assert any("/pixel" in url for url in asked_for(tab))
        assert tab.value("window.ran") == 1
        assert tab.value(CONTRAST)[0] < 4.5
        assert tab.value(STICKING_OUT)
        assert server.asked == ["/pixel"]  # type: ignore[attr-defined]
        tab.open(closed_page.as_uri())
        assert tab.value("window.ran") is None
        assert tab.complaints()
        assert server.asked == ["/pixel"]  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
