"""The page of a review in a real browser: Chromium, where it is installed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from expunge.review.answer_log import AnswerLog
from expunge.review.answers import latest
from oracles_review import TOKEN, planted, running, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("uvicorn", reason="needs the extra 'review'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: install the package 'chromium'"
)
CLASSES = ("cat", "<b>dog</b>", "deer", "frog")
PROGRESS = "document.getElementById('progress')"
LONG = "A document with <script>alert(1)</script> in it. " * 30


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def planted_run():
    return planted(n=300)


def open_page(browser, client, *, width=1280, reviewer="ann", **options):
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.problems = problems
    page.goto(client.address)
    page.wait_for_selector("#card:not([hidden])")
    if reviewer:
        page.fill("#reviewer", reviewer)
        page.press("#reviewer", "Tab")
        wait(page, "document.activeElement.id === 'question'")
    return page


def wait(page, condition, arg=None):
    """Wait until an expression holds; the page's policy forbids what `wait_for_function` does."""
    until = time.monotonic() + 30
    while not page.evaluate(condition, arg):
        assert time.monotonic() < until, condition
        page.wait_for_timeout(20)


def press(page, key):
    """Press a key and wait for the next question."""
    before = page.inner_text("#identity")
    page.keyboard.press(key)
    wait(
        page,
        "before => document.getElementById('identity').innerText !== before "
        "|| !document.getElementById('done').hidden",
        before,
    )


def answers_in(folder):
    return latest(AnswerLog(folder, CLASSES).read())


def test_twenty_cards_by_keyboard_undo_reload_and_go_on(browser, planted_run, tmp_path):
    partition, _ = planted_run
    folder = write_run(tmp_path / "run", partition)
    keys = ["Enter", "1", "b", "x", "r", "s", "2", "Enter", "Enter", "Enter"] * 2
    with running(folder, partition, classes=CLASSES, budget=60) as client:
        page = open_page(browser, client)
        for key in keys:
            assert not page.is_visible("#suggestions, #why, #near, #badge")
            if key in "12":
                page.keyboard.press({"1": "n", "2": "5"}[key])  # a digit shows them as well
                assert page.is_visible("#suggestions .suggestion")
                assert page.is_visible("#why")
            press(page, key)
        found = answers_in(folder)
        assert len(found) == 20
        assert {a.reviewer for a in found} == {"ann"}
        verdicts = [a.verdict for a in found]
        assert verdicts[:6] == ["right", "wrong", "bad-input", "cannot-tell", "right", "skip"]
        shown = page.inner_text("#identity")
        press(page, "u")
        assert len(answers_in(folder)) == 19
        press(page, "Enter")
        assert page.inner_text("#identity") == shown
        page.reload()
        page.wait_for_selector("#card:not([hidden])")
        assert page.inner_text("#identity") == shown
        wait(page, f"{PROGRESS}.innerText.startsWith('18 of 60: noise rate 0.')")
        assert page.problems == []
        page.close()
    # The server is gone: the page says so, and nothing that was saved is lost.
    with running(folder, partition, classes=CLASSES, budget=60) as client:
        page = open_page(browser, client)
        assert page.inner_text("#identity") == shown
        press(page, "Enter")
        assert len(answers_in(folder)) == 21
        page.close()


def test_a_dead_server_is_named(browser, planted_run, tmp_path):
    partition, _ = planted_run
    folder = write_run(tmp_path / "run", partition)
    with running(folder, partition, classes=CLASSES) as client:
        page = open_page(browser, client)
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:not([hidden])")
    assert "The server does not answer" in page.inner_text("#error")
    page.close()


def test_another_class_is_found_by_typing(browser, planted_run, tmp_path):
    partition, _ = planted_run
    folder = write_run(tmp_path / "run", partition)
    with running(folder, partition, classes=CLASSES) as client:
        page = open_page(browser, client)
        given = page.inner_text("#right-text").removeprefix("Yes: ")
        wanted = next(name for name in ("frog", "deer") if name != given)
        page.keyboard.press("c")
        page.keyboard.type(wanted[:3])
        page.wait_for_selector("#found li[aria-selected=true]")
        press(page, "Enter")
        answer = answers_in(folder)[0]
        assert (answer.verdict, CLASSES[answer.label]) == ("wrong", wanted)
        page.close()


def test_two_reviewers_and_the_filters_of_the_grid(browser, planted_run, tmp_path):
    partition, _ = planted_run
    folder = write_run(tmp_path / "run", partition)
    with running(folder, partition, classes=CLASSES) as client:
        pages = [open_page(browser, client, reviewer=name) for name in ("ann", "bob")]
        assert pages[0].inner_text("#identity") != pages[1].inner_text("#identity")
        for page in pages:
            press(page, "Enter")
        assert {a.reviewer for a in answers_in(folder)} == {"ann", "bob"}
        page = pages[0]
        page.keyboard.press("g")
        page.wait_for_selector("#tiles li")
        page.fill("#f-class", "<b>dog</b>")
        page.select_option("#f-flagged", "1")
        page.click("#filters button")
        flagged = client.session.progress().review.partition
        total = int((flagged.flagged & (flagged.labels == 1)).sum())
        wait(page, f"document.getElementById('count').innerText.includes('of {total},')")
        assert page.locator("#tiles b").count() == 0
        names = page.locator("#tiles li button > span:first-of-type").all_inner_texts()
        assert set(names) == {"<b>dog</b>"}
        page.locator("#tiles button").first.click()
        page.wait_for_selector("#card:not([hidden])")
        assert "chosen from the grid" in page.inner_text("#badge")
        page.keyboard.press("b")
        page.wait_for_selector("#grid:not([hidden])")
        chosen = answers_in(folder)[-1]
        assert chosen.verdict == "bad-input"
        for page in pages:
            assert page.problems == []
            page.close()


@pytest.mark.parametrize("kind", ["sound", "text", "table"])
def test_other_kinds_of_input(browser, planted_run, tmp_path, kind):
    partition, _ = planted_run
    folder = write_run(tmp_path / "run", partition)
    texts = {str(i): f"{i}: {LONG}" for i in partition.ids} if kind == "text" else None
    with running(folder, partition, kind, CLASSES, texts) as client:
        page = open_page(browser, client)
        selector = {"sound": "audio", "text": "p.document", "table": "table tr.unusual"}[kind]
        assert page.locator(f"#media {selector}").count() or kind == "table"
        if kind == "text":
            assert "<script>" in page.inner_text("#media")
            assert page.locator("#media details").count() == 1
        if kind == "table":
            assert page.locator("#media tbody tr").count() == 12
        press(page, "Enter")
        assert len(answers_in(folder)) == 1
        assert page.problems == []
        page.close()


@pytest.mark.parametrize("width", [360, 1600])
def test_the_page_fits_the_window_and_has_landmarks(browser, planted_run, tmp_path, width):
    partition, _ = planted_run
    names = tuple(f"{name}-with-a-very-long-name-without-a-space-in-it" for name in CLASSES)
    folder = write_run(tmp_path / "run", partition)
    with running(folder, partition, classes=names) as client:
        page = open_page(browser, client, width=width, color_scheme="dark")
        for view in ("card", "grid"):
            if view == "grid":
                page.keyboard.press("g")
                page.wait_for_selector("#tiles li")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        for role in ("main", "banner", "navigation"):
            assert page.get_by_role(role).count() == 1
        assert page.locator("button:visible").count() == len(
            [b for b in page.locator("button:visible").all() if b.inner_text().strip()]
        )
        page.close()


def test_without_javascript_the_page_says_what_to_do(browser, planted_run, tmp_path):
    partition, _ = planted_run
    folder = write_run(tmp_path / "run", partition)
    with running(folder, partition, classes=CLASSES) as client:
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(client.address)
        assert "needs JavaScript" in page.inner_text("noscript")
        context.close()


def test_only_what_is_shown_is_loaded(browser, planted_run, tmp_path):
    partition, _ = planted_run
    folder = write_run(tmp_path / "run", partition)
    with running(folder, partition, classes=CLASSES) as client:
        page = browser.new_page()
        requested = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(client.address)
        page.wait_for_selector("#card:not([hidden])")
        page.wait_for_load_state("networkidle")
        assert all(url.startswith(client.address.split(TOKEN)[0]) for url in requested)
        images = [url for url in requested if url.endswith("image.png")]
        assert 1 <= len(images) <= 9  # the sample and its neighbours
        page.close()
