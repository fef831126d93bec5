"""The page in a real Chromium, by keyboard and mouse, against a server with keys."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import mplus
from mplus_integrations.server.keys import KeyRing
from mplus_integrations.server.memories import Item
from mplus_integrations.server.service import Service
from mplus_integrations.server.settings import ServeSettings
from mplus_integrations.server.wire import ChatRequest
from tests.integrations.server.conftest import MODEL, Served, running
from tests.integrations.server.test_serving import Steps

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
sync_api.expect.set_options(timeout=30_000)  # as of clicks: the machine may be busy

BROWSER = os.environ.get("MPLUS_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if BROWSER is None:
    pytest.skip("needs a Chromium: Debian's package chromium, or MPLUS_CHROMIUM", allow_module_level=True)

MARKUP = "<img src=x onerror=\"window.broken='text'\">"
NOTES = {
    "contract": "The contract with Nordwind ends on 30 June. Notice has to be given in March.",
    "dog": "My dog is called Biscuit. He is afraid of thunder.",
    MARKUP: f"A note that holds {MARKUP} and <script>window.broken = 'script'</script>.",
}
MEMORY = "anna"


@dataclass
class Seen:
    """A page, and all that it asked for and complained about."""

    page: Any
    served: Served
    complaints: list[str] = field(default_factory=list)
    addresses: set[str] = field(default_factory=set)

    def view(self, name: str) -> None:
        self.page.click(f"nav a[href='#{name}']")
        self.page.locator(f"#view-{name}").wait_for()

    def told(self, text: str) -> None:
        sync_api.expect(self.page.locator("#status")).to_contain_text(text)

    def confirm(self) -> None:
        self.page.click("#confirm-yes")


Opening = Callable[..., Seen]


@pytest.fixture(scope="module")
def key_of(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return file, KeyRing(file).add(MEMORY, opens=["other"])[1]


@pytest.fixture(scope="module")
def site(tiny: mplus.MPlus, key_of: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("memories")
    settings = ServeSettings(model=MODEL, memories=folder, max_tokens=8, keys=key_of[0])
    with running(Service(settings, model=tiny)) as one:
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def opening(browser: Any, site: Served, key_of: tuple[Path, str]) -> Iterator[Opening]:
    """Opens the page with three notes in memory, and checks at the end that it asked for nothing of elsewhere."""
    store = site.service.memories.store
    for memory in store.list():
        store.delete(memory.name)
        site.service.activity.drop(memory.name)
    with site.client(key_of[1]) as http:
        for name, text in NOTES.items():
            http.post(f"/v1/memories/{MEMORY}/write", json={"text": text, "source": name}).raise_for_status()
    opened: list[Seen] = []

    def open_page(key: str | None = key_of[1], **options: Any) -> Seen:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        context.set_default_timeout(30_000)
        seen = Seen(context.new_page(), site)
        opened.append(seen)
        seen.page.on("console", lambda message: seen.complaints.append(message.text))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("request", lambda request: seen.addresses.add(request.url))
        seen.page.goto(site.url)
        if key is not None:
            seen.page.fill("#key", key)
            seen.page.keyboard.press("Enter")
            seen.page.locator(f"#memory-name option[value={MEMORY}]").wait_for(state="attached")
        return seen

    yield open_page
    for seen in opened:
        assert all(address.startswith(site.url) for address in seen.addresses), seen.addresses
        assert [text for text in seen.complaints if "401" not in text] == []
        assert seen.page.evaluate("window.broken") is None
        seen.page.context.close()


def test_the_key_is_typed_and_stays_in_its_tab(opening: Opening, key_of: tuple[Path, str]) -> None:
    seen = opening(None)
    page = seen.page
    sync_api.expect(page.locator("#key-hint")).to_contain_text("needs an API key")
    page.fill("#key", "mplus-guess")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#key-hint")).to_contain_text("not known")
    page.fill("#key", key_of[1])
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#memory-name")).to_have_value(MEMORY)
    assert page.locator("#memory-name option").all_text_contents() == [MEMORY, "other"]
    assert page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
    assert key_of[1] not in page.content() and page.input_value("#key") == ""
    assert all(key_of[1] not in address for address in seen.addresses)
    page.reload()
    sync_api.expect(page.locator("#memory-name")).to_have_value(MEMORY)
    sync_api.expect(opening(None).page.locator("#key-dialog")).to_be_visible()


def test_chat_shows_sources_and_sentences_while_it_answers(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    from mplus_integrations.server import openai_api

    steps = Steps(0.05)
    monkeypatch.setattr(openai_api, "_penalties", lambda _: [steps])
    whole = ChatRequest.settings
    monkeypatch.setattr(ChatRequest, "settings", lambda self: whole(self) | {"max_tokens": 400})
    page = opening().page
    page.fill("#question", "When does the contract with Nordwind end?")
    page.keyboard.press("Enter")
    answer = page.locator("#turns li.answered")
    page.locator("#reads blockquote").first.wait_for()
    assert answer.get_attribute("aria-busy") == "true" and steps.count < 400, "it is still answering"
    assert page.locator("#turns").get_attribute("aria-live") == "polite"
    read = page.locator("#reads .read", has=page.get_by_role("heading", name="contract"))
    assert "The contract with Nordwind ends on 30 June." in read.locator("blockquote p").all_text_contents()
    assert "%" in read.locator("header .number").inner_text()
    assert any("onerror" in text for text in page.locator("#reads").all_text_contents()), "shown as text"
    page.click("#stop")
    sync_api.expect(answer).to_have_attribute("aria-busy", "false")
    sync_api.expect(answer).to_contain_text("stopped")


def test_a_whole_answer_says_what_it_read_and_goes_on(opening: Opening) -> None:
    page = opening().page
    for number, question in enumerate(("Who is Biscuit?", "And who is afraid?"), start=1):
        page.fill("#question", question)
        page.click("#ask button.main")
        sync_api.expect(page.locator("#turns li.answered[aria-busy=false]")).to_have_count(number)
    assert "confidence" in page.locator("#turns li.answered").last.inner_text()
    page.locator("#turns li.answered").first.get_by_role("button").click()
    sync_api.expect(page.locator("#reads h4", has_text="dog")).to_be_visible()
    page.click("#anew")
    sync_api.expect(page.locator("#turns li")).to_have_count(0)


def test_memory_shows_pools_ages_and_bytes_and_texts_as_text(opening: Opening) -> None:
    seen = opening()
    page = seen.page
    seen.view("memory")
    facts = page.locator("#overview")
    sync_api.expect(facts).to_contain_text("Short-term")
    stats = seen.served.service.memories.describe(MEMORY)
    assert f"{stats['long_term']['tokens']:,} tokens" in facts.inner_text() and "KiB" in facts.inner_text()
    rows = page.locator("#sources tbody tr")
    assert [row.split("\t")[0].strip() for row in rows.all_inner_texts()] == [MARKUP, "dog", "contract"]
    page.get_by_role("button", name=f"Show the text of {MARKUP}").click()
    sync_api.expect(page.locator("td.texts")).to_contain_text(NOTES[MARKUP])
    assert page.locator("main img, main script").count() == 0
    page.fill("#filter", "DOG")
    assert page.locator("#sources tbody tr").count() == 1
    page.fill("#query", "Biscuit")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#found .found").first).to_be_visible()
    assert NOTES["dog"] in page.locator("#found").inner_text()


def test_writing_pinning_and_forgetting_by_keyboard(opening: Opening) -> None:
    seen = opening()
    page = seen.page
    seen.view("memory")
    page.fill("#text", "Pears are green.")
    page.fill("#source-name", "pears")
    page.click("#write button.main")
    seen.told("Remembered pears.")
    page.set_input_files("#upload", [{"name": "plums.txt", "mimeType": "text/plain", "buffer": b"Plums are blue."}])
    page.click("#write button.main")
    seen.told("Remembered plums.txt.")
    page.get_by_role("button", name="Pin dog").focus()
    page.keyboard.press("Enter")
    seen.told("Pinned dog.")
    sync_api.expect(page.get_by_role("button", name="Unpin dog")).to_be_focused()
    page.get_by_role("button", name="Forget dog").focus()
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#confirm")).to_be_visible()
    page.keyboard.press("Escape")
    sync_api.expect(page.get_by_role("button", name="Forget dog")).to_be_focused()
    page.keyboard.press("Enter")
    seen.confirm()
    seen.told("Forgot dog")
    held = {source["name"]: source for source in seen.served.service.memories.sources(MEMORY)}
    assert held.keys() == {"contract", MARKUP, "pears", "plums.txt"}


def test_snapshots_are_taken_compared_rolled_back_undone_and_discarded(opening: Opening) -> None:
    seen = opening()
    page, memories = seen.page, seen.served.service.memories
    seen.view("snapshots")
    page.fill("#label", "three <b>notes</b>")
    page.click("#take button")
    seen.told("Took the snapshot three <b>notes</b>.")
    memories.write(MEMORY, [Item("Pears are green.", "pears", {})])
    page.get_by_role("button", name="Compare with three").click()
    sync_api.expect(page.locator("#difference")).to_contain_text("Added (1)")
    page.get_by_role("button", name="Roll back to three").click()
    seen.confirm()
    sync_api.expect(page.locator("#difference")).to_contain_text("Removed (1)")
    assert len(memories.sources(MEMORY)) == len(NOTES)
    page.get_by_role("button", name="Undo").click()
    seen.told("The rollback was undone.")
    assert len(memories.sources(MEMORY)) == len(NOTES) + 1
    before = len(memories.snapshots(MEMORY))
    page.get_by_role("button", name="Discard three").click()
    seen.confirm()
    seen.told("Discarded")
    assert len(memories.snapshots(MEMORY)) == before - 1


def test_the_timeline_and_usage_tell_what_was_done_and_how_long_it_took(opening: Opening) -> None:
    seen = opening()
    page = seen.page
    memories = seen.served.service.memories
    memories.snapshot(MEMORY, "today")
    memories.write(MEMORY, [Item("Anna moved to Graz.", "old mail", {"time": "2024-03-05T10:00:00+00:00"})])
    seen.view("timeline")
    sync_api.expect(page.locator("#days li")).to_have_count(len(NOTES) + 2)
    sync_api.expect(page.locator(".day").last).to_contain_text("5 March 2024")
    assert "old mail" in page.locator(".day").last.inner_text()
    assert "snapshot" in page.locator("#days li").first.inner_text()
    seen.view("usage")
    sync_api.expect(page.locator("svg.chart")).to_have_count(2)
    assert page.locator("#bytes-chart path.line").count() == 1
    written = [row for row in page.locator("#acts tbody tr").all_inner_texts() if "write" in row]
    assert len(written) == len(NOTES) and all("KiB" in row for row in written)


def test_times_are_chosen_for_what_is_remembered_searched_and_shown(opening: Opening) -> None:
    seen = opening(timezone_id="America/New_York")
    page, memories = seen.page, seen.served.service.memories
    seen.view("memory")
    page.fill("#text", "Anna lives in Oslo.")
    page.fill("#source-name", "letter")
    page.get_by_label("When it was said, if not now").fill("2023-05-01")
    page.get_by_label("Let the reader see that date").check()
    page.set_input_files("#upload", [{"name": "mail.txt", "mimeType": "text/plain", "buffer": b"Anna likes Oslo."}])
    page.click("#write button.main")
    seen.told("Remembered letter, mail.txt.")
    held = {one["name"]: one for one in memories.sources(MEMORY)}
    midnight = 1682913600.0  # of New York
    assert {held[name]["earliest"] for name in ("letter", "mail.txt")} == {midnight}
    assert page.locator("#said-on").input_value() == "" and not page.locator("#dated").is_checked()

    search = page.get_by_role("group", name="Only what was said")
    search.get_by_label("As it was on").fill("2023-05-01")
    page.fill("#query", "Anna")
    page.click("#search button.main")
    sync_api.expect(page.locator("#found .found")).to_have_count(2)
    search.get_by_label("Said up to").fill("2023-04-30")
    page.click("#search button.main")
    sync_api.expect(page.locator("#found")).to_contain_text("Nothing was found.")
    search.get_by_role("button", name="Any time").click()
    page.click("#search button.main")
    sync_api.expect(page.locator("#found .found").nth(2)).to_be_visible()

    seen.view("timeline")
    days = page.locator("#days")
    sync_api.expect(days.locator("li")).to_have_count(len(NOTES) + 2)
    sync_api.expect(days.locator(".day").last).to_contain_text("1 May 2023")
    shown = page.get_by_role("group", name="Only what was said")
    shown.get_by_label("As it was on").fill("2023-12-31")
    sync_api.expect(days.locator("li")).to_have_count(2)
    shown.get_by_label("Said from").fill("2023-06-01")
    sync_api.expect(days).to_contain_text("Nothing was said in that time.")
    shown.get_by_label("Said up to").fill("2023-05-01")
    sync_api.expect(page.locator("#alert")).not_to_be_empty()
    seen.complaints[:] = [text for text in seen.complaints if "400" not in text]  # the browser notes the refusal
    shown.get_by_role("button", name="Any time").click()
    sync_api.expect(days.locator("li")).to_have_count(len(NOTES) + 2)
    sync_api.expect(page.locator("#alert")).to_be_empty()


CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = numbers(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const one of document.querySelectorAll("body *")) {
    const said = [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!said || !one.checkVisibility() || one.disabled) continue;
    const [a, b] = [light(numbers(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${one.tagName}.${one.className}: ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return poor;
}"""
UNNAMED = """() => [...document.querySelectorAll("button, input, textarea, select, a")].filter((one) => one.checkVisibility()
  && !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length)).map((one) => one.outerHTML)"""

SHOWN = {
    "chat": ".read h4",
    "memory": "#sources time",
    "timeline": "#days li",
    "snapshots": "#snapshots td",
    "usage": "circle",
}
"""What is there when a view is complete."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_is_readable_named_and_fits(opening: Opening, scheme: str) -> None:
    width = 1200 if scheme == "light" else 360
    seen = opening(color_scheme=scheme, reduced_motion="reduce", viewport={"width": width, "height": 800})
    page = seen.page
    page.fill("#question", "Who is Biscuit?")
    page.keyboard.press("Enter")
    page.locator("#turns li[aria-busy=false]").wait_for()
    for name in ("chat", "memory", "timeline", "snapshots", "usage"):
        seen.view(name)
        page.locator(SHOWN[name]).first.wait_for()
        assert page.evaluate(CONTRAST) == [] and page.evaluate(UNNAMED) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if folder := os.environ.get("MPLUS_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{name}-{scheme}.png", full_page=True)
        assert page.locator("nav a[aria-current=page]").get_attribute("href") == f"#{name}"
        assert page.evaluate("document.activeElement.id") in (f"{name}-title", "question")
    moving = (
        "[...document.querySelectorAll('*')].filter((one) => getComputedStyle(one).animationName !== 'none').length"
    )
    assert page.evaluate(moving) == 0
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.click("#theme-button")
    assert page.evaluate(background) != before and page.evaluate(CONTRAST) == []


def test_on_a_narrow_screen_what_can_be_done_with_a_row_stays_in_sight(opening: Opening) -> None:
    seen = opening(viewport={"width": 360, "height": 800})
    page = seen.page
    seen.view("memory")
    for button in ("Show the text of dog", "Pin dog", "Forget dog"):
        box = page.get_by_role("button", name=button).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, button
    seen.view("snapshots")
    edges = "(at) => [...document.querySelectorAll(at)].map((one) => getComputedStyle(one).paddingLeft)"
    sync_api.expect(page.locator("#snapshots td.empty")).to_be_visible()
    assert set(page.evaluate(edges, "#snapshots td.empty, #snapshots th")) == {page.evaluate(edges, "#snapshots th")[0]}


def test_the_key_of_a_chart_has_the_colours_of_its_marks(opening: Opening) -> None:
    seen = opening()
    page = seen.page
    page.fill("#question", "Who is Biscuit?")
    page.keyboard.press("Enter")
    page.locator("#turns li[aria-busy=false]").wait_for()
    seen.view("usage")
    page.locator("#latency-chart circle.first").first.wait_for()
    colour = "([at, name]) => getComputedStyle(document.querySelector(`#latency-chart ${at}`))[name]"
    for kind, drawn in (("first", "fill"), ("whole", "stroke")):
        assert page.evaluate(colour, [f".key .{kind}", "color"]) == page.evaluate(colour, [f"circle.{kind}", drawn])


def test_a_server_that_is_gone_and_a_refused_request_are_told(opening: Opening) -> None:
    seen = opening()
    seen.view("memory")
    seen.page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('gone')); }")
    seen.page.fill("#query", "x")
    seen.page.keyboard.press("Enter")
    sync_api.expect(seen.page.locator("#alert")).to_contain_text("cannot be reached")
