"""The report page: whole, safe, in both languages, and it opens in a browser that has no network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import async_playwright

from tests.chromium import ARGUMENTS, PROGRAM, needs_chromium
from tests.gate_rows import translated
from training.gates.gate import Doubt, Finding, Reject
from training.gates.page import HTML, JSON, write_report
from training.gates.page_words import CHINESE, both
from training.gates.tally import Tally

PICTURE = Path("checkpoints/ziya-tiny/examples/badger.webp")
EVIL = '<img src=x onerror="document.title=\'evil\'"></script><script>document.title="evil"</script>'
ACCOUNT = {"requests": 12, "prompt_tokens": 3000, "completion_tokens": 456, "dollars": 1.25}
MANIFEST: dict[str, Any] = {
    "name": "birds & <b>bees</b>",
    "dataset": "ab" * 32,
    "inputs": [{"path": EVIL}],
    "empty": {},
}


def counted() -> Tally:
    tally = Tally()
    findings: dict[int, list[Finding]] = {
        1: [Reject("language", "English where Chinese is due", "the cat")],
        2: [Reject("near duplicate", "a similar text", EVIL)],
        3: [Doubt("names", "a name is missing", "Paris")],
    }
    for number in range(1200):
        row = translated(f"A badger, {EVIL}", "一只獾。", key=f"row {number}", image=PICTURE.read_bytes)
        tally.looked["language"] += 1
        tally.measure("agreement", 0.2 + number / 3000)
        tally.measure("tokens", number)
        tally.verdict(row, findings.get(number % 40, []))
    return tally


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(counted(), MANIFEST, folder, account=ACCOUNT)
    return folder


def test_the_json_says_what_the_page_says(report: Path) -> None:
    said = json.loads((report / JSON).read_text("utf-8"))
    assert said["tally"]["rows"] == 1200
    assert said["tally"]["rejects"] == {
        "language": {"English where Chinese is due": 30},
        "near duplicate": {"a similar text": 30},
    }
    assert (said["manifest"], said["account"]) == (MANIFEST, ACCOUNT)


def test_equal_runs_have_equal_reports(report: Path, tmp_path: Path) -> None:
    write_report(counted(), MANIFEST, tmp_path, account=ACCOUNT)
    for name in (HTML, JSON):
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [HTML, JSON]


def test_the_page_names_no_other_place(report: Path) -> None:
    page = (report / HTML).read_text("utf-8")
    assert set(re.findall(r'(?:src|href)="([a-z]*):', page)) == {"data"}
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<script") == page.count("</script>") == 1


def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    write_report(Tally(), {}, tmp_path)
    assert both("No row was rejected.") in (tmp_path / HTML).read_text("utf-8")


def test_every_kind_of_finding_has_chinese_words() -> None:
    source = "".join(path.read_text("utf-8") for path in Path("training/gates").glob("*.py"))
    kinds = set(re.findall(r'(?:Reject|Doubt)\(\s*self\.name,\s*"([^"]+)"', source))
    assert len(kinds) > 15
    assert kinds <= set(CHINESE)


@needs_chromium
@pytest.mark.parametrize(
    ("locale", "heading", "rejected"), [("en-US", "Quality report", "rejected"), ("zh-CN", "质量报告", "拒绝")]
)
async def test_the_page_opens_and_shows_its_numbers(report: Path, locale: str, heading: str, rejected: str) -> None:
    asked: list[str] = []
    said: list[str] = []
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=PROGRAM, args=ARGUMENTS)
        page = await browser.new_page(locale=locale, viewport={"width": 375, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        await page.goto((report / HTML).as_uri())
        tiles = await page.inner_text(".tiles")
        assert (await page.inner_text("h1")).startswith(heading)
        assert [number in tiles for number in ("1,200", "1,140", "60", "30", "3,456", "1.25")] == [True] * 6
        assert rejected in tiles
        bars = await page.inner_text(".bars >> nth=0")
        assert bars.count("30 2.5 %") == 2
        widths = await page.eval_on_selector_all(".track i", "all => all.map(one => one.style.width)")
        assert widths == ["100%"] * 3
        assert await page.locator("svg rect").count() > 10
        # Nothing to scroll sideways on a telephone.
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        seen = "all => all.filter(one => one.offsetWidth && one.naturalWidth > 50).length"
        assert await page.locator(".samples >> nth=0").locator("img").evaluate_all(seen) == 12
        assert EVIL in await page.inner_text(".samples >> nth=0")
        assert "evil" not in await page.title()
        before = await page.inner_text("h1")
        await page.click("#language")
        assert await page.inner_text("h1") != before
        await browser.close()
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
