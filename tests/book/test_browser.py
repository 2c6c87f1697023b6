"""The built book in a real browser, over a local server: nothing fails, everything can be used and read."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright
from rules import built_pages, parsed

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build/html"
PAGES = built_pages(SITE)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

# What the theme itself does wrong, by rule and element; anything else that is serious is a fault of ours.
OF_THE_THEME = {("aria-required-children", "citation-list")}

# What a text's contrast hangs on; where all that is the same, axe looks at one text. On whole pages it took minutes.
MARK_ONE_OF_EACH_LOOK = """
document.querySelectorAll("[data-look]").forEach(element => element.removeAttribute("data-look"));
const seen = new Set();
for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
    if (!says || !element.checkVisibility({visibilityProperty: true}) || !element.getClientRects().length) continue;
    const {color, fontSize, fontWeight, textShadow} = getComputedStyle(element);
    const look = [color, fontSize, fontWeight, textShadow];
    for (let ground = element; ground; ground = ground.parentElement) {
        const {backgroundColor, backgroundImage, opacity} = getComputedStyle(ground);
        look.push(backgroundColor, backgroundImage, opacity);
        if (opacity === "1" && backgroundImage === "none" && backgroundColor.startsWith("rgb(")) break;
    }
    if (!seen.has(look.join()) && seen.add(look.join())) element.setAttribute("data-look", "");
}
"""
ALL_BUT_CONTRAST = {"rules": {"color-contrast": {"enabled": False}}}
# Code is coloured word by word, which takes axe most of its time: one word of each kind is enough, the rest plain text.
ONE_WORD_OF_EACH_KIND = """
const seen = new Set();
for (const code of document.querySelectorAll(".highlight pre")) {
    const words = [...code.querySelectorAll("span")].filter(word => !word.childElementCount);
    const first = words.filter(word => !seen.has(word.className) && seen.add(word.className));
    code.replaceChildren(...first, code.textContent);
}
"""

pytestmark = [
    pytest.mark.skipif(not (ROOT / "_build/.complete").exists(), reason="the book is not built: make book"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(SITE / "chapters")))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    """The site's address, at a port that is free."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=SITE)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://localhost:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server):
    """A function that opens a page of the book, waits for its formulas, and collects what went wrong."""
    contexts = []

    def opened(path, *, viewport=DESKTOP):
        context = browser.new_context(viewport=viewport, permissions=["clipboard-read", "clipboard-write"])
        contexts.append(context)
        context.add_init_script("localStorage.setItem('mode', 'light'); localStorage.setItem('theme', 'light')")
        page = context.new_page()
        page.faults = []
        page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("request", lambda asked: page.faults.append(asked.url) if _elsewhere(asked.url, server) else None)
        page.goto(f"{server}/{path}", wait_until="load")
        if page.locator(".math").count():
            page.wait_for_selector("mjx-container")
            page.evaluate("MathJax.startup.promise")
        return page

    yield opened
    for context in contexts:
        context.close()


def _elsewhere(url, server):
    return not url.startswith((server, "data:", "blob:"))


def _serious(page, options, context=None):
    """What axe finds serious or worse: the rule, and the elements that break it."""
    options = {"resultTypes": ["violations"], "preload": False, **options}
    return [
        (rule["id"], node["html"][:120])
        for rule in Axe().run(page, context, options).response["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
        if not any(rule["id"] == known and part in node["html"] for known, part in OF_THE_THEME)
    ]


def _too_pale(page):
    """The texts of too little contrast, one of each look."""
    page.evaluate(MARK_ONE_OF_EACH_LOOK)
    return _serious(page, {"runOnly": ["color-contrast"]}, {"include": [["[data-look]"]]})


def _darken(page):
    page.add_style_tag(content="* { transition: none !important }")  # colours half-way would be measured
    page.evaluate("document.documentElement.dataset.theme = 'dark'")


@every_page
def test_page_works_on_a_phone_and_is_accessible(open_page, path):
    page = open_page(path.relative_to(SITE), viewport=PHONE)
    assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)") == []
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.set_viewport_size(DESKTOP)
    page.evaluate(ONE_WORD_OF_EACH_KIND)
    assert _serious(page, ALL_BUT_CONTRAST) == []
    assert _too_pale(page) == []
    _darken(page)
    assert _too_pale(page) == []
    assert page.faults == []


def test_axe_finds_what_it_is_asked_for(open_page):
    page = open_page("chapters/index.html")
    page.evaluate("document.querySelector('article').insertAdjacentHTML('beforeend', '<img src=\"data:,\">')")
    assert [rule for rule, _ in _serious(page, ALL_BUT_CONTRAST)] == ["image-alt"]
    page.evaluate("document.querySelector('article').insertAdjacentHTML('beforeend', '<p style=\"color: #333\">dark')")
    assert _too_pale(page) == []
    _darken(page)
    assert [rule for rule, _ in _too_pale(page)] == ["color-contrast"]


def test_solutions_and_folded_code_open(open_page):
    page = open_page("chapters/01_memorization.html")
    for fold in (page.locator(".solution.dropdown, .solution .toggle").first, page.locator("details.hide").first):
        button = fold.locator("summary, .toggle-button").first
        inside = fold.locator("p, pre").last
        expect(inside).to_be_hidden()
        button.click()
        expect(inside).to_be_visible()


def test_search_finds_a_chapter(open_page):
    page = open_page("search.html?q=wavelet")
    expect(page.locator("#search-results a[href*='01_memorization']").first).to_be_visible()
    assert page.faults == []


def test_theme_switches(open_page):
    page = open_page("chapters/index.html")
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    for _ in range(2):  # light, dark, or what the system says
        page.locator("button.theme-switch-button").first.click()
        if page.evaluate(background) != before:
            break
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate(background) != before


def test_copy_button_copies_the_code(open_page):
    page = open_page("chapters/index.html")
    block = page.locator("div.highlight").first
    block.hover()
    block.locator("button.copybtn").click()
    expect(block.locator("button.copybtn")).to_have_class("copybtn o-tooltip--left success")
    assert page.evaluate("navigator.clipboard.readText()").strip() == block.locator("pre").inner_text().strip()


@every_page
def test_page_is_light(path):
    page = parsed(path)
    players = page.select("[aria-label=Animation]")  # an animation may weigh more: it holds its own limit
    sources = {image["src"] for image in page.find_all("img", src=True) if not image["src"].startswith("data:")}
    held = sum((path.parent / source).stat().st_size for source in sources)
    assert path.stat().st_size - sum(len(str(player).encode()) for player in players) + held < 3_000_000
