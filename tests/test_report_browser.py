"""The report in a browser: every page at the width of a desk and of a phone, and what can be clicked."""

import json
from typing import Any

import pytest
from browser import browser, faults, visit
from sealing import write_lines
from test_report import BY_KD, DEEP, DIRECT, THROUGH, full_site, make, run

from takd.experiment.lineage import of_chain
from takd.pages.environment import TEMPLATES
from takd.report.generations import differing
from takd.report.pages import NAV

PAGES = [file for file in NAV if "#" not in file]
WIDTHS = {"desk": 1280, "phone": 390}
CHAINS = [DIRECT, BY_KD, THROUGH, DEEP]
TEACHER, STUDENT, VIA = "teacher-sft", of_chain(*DIRECT[1:]), of_chain(*THROUGH[1:])
LATE = "word " * 500 + "a zebra far behind"
MARKUP = "2 < 3 && <b>bold</b> zebras (or [so])"


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return full_site(tmp_path_factory).report


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Generations of which it is known what is found in them, and how far the models lie apart."""
    root = tmp_path_factory.mktemp("answers")
    spec = make(root, CHAINS, (1,), ("heldout", "other"), samples=6)
    # lineage, row -> text and ROUGE-L of both decoding seeds; all else says nothing and scores 50
    said = {(TEACHER, 7): (MARKUP, 60.0), (STUDENT, 7): ("Zebra crossing", 20.0)}
    said |= {(VIA, 21): (LATE, 90.0), (TEACHER, 28): ("a horse", 55.0)}
    for folder in sorted((root / "evaluations").glob("*/seed1/*")):
        file, lineage = folder / "generations.jsonl", folder.parts[-3]
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            known = said if folder.name == "heldout" else {}
            text, score = known.get((lineage, row["id"]), ("nothing", 50.0))
            for output in row["outputs"]:
                output |= {"text": text, "rougeL": score, "exact_match": 0.0}
        write_lines(file, rows)
    return run(root, spec) / "generations.html"


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_quiet_and_readable(chromium, report, name, width):
    found: list[str] = []
    seen = visit(chromium, report / name, lambda page: found.extend(faults(page)), width)
    assert (seen.external, seen.complaints, found) == ([], [], [])
    assert seen.text.strip()


def test_what_a_page_is_held_to_is_noticed(chromium, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<!DOCTYPE html><meta name="viewport" content="width=device-width"><p id="a" style="width: 500px">wide</p>'
        '<p id="a" style="font-size: 9px">tiny</p><button></button><p hidden style="font-size: 8px">unseen</p>'
        '<svg width="50" height="50" viewBox="0 0 100 100"><text y="20" font-size="16">drawn</text></svg>'
        '<img src="https://example.org/image.png"><script>undefined.x</script>'
    )
    found: list[str] = []
    seen = visit(chromium, page, lambda page: found.extend(faults(page)), width=390)
    assert [fault[:20] for fault in found] == [
        "scrolls sideways: 50",
        "9.0 px: tiny",
        "8.0 px: drawn",
        "has no name: <button",
        "id a twice",
    ]
    assert seen.external == ["https://example.org/image.png"]
    assert any("undefined" in complaint for complaint in seen.complaints)


# Rows of a table as a reader sees them: a column's values, hidden rows left out.
COLUMN = """([table, column]) =>
    [...document.querySelectorAll("table.sortable")[table].querySelectorAll("tbody tr:not(.group)")].map(
        (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim())"""
ORDERS = ["descending", "ascending", None]


@pytest.mark.parametrize("name", PAGES)
def test_every_column_sorts_down_and_up_and_back(chromium, report, name):
    def act(page: Any) -> None:
        page.eval_on_selector_all("details", "all => all.forEach((each) => { each.open = true; })")
        for table in range(page.locator("table.sortable").count()):
            heads = page.locator("table.sortable").nth(table).locator("thead th")
            for column in range(heads.count()):
                at = [table, column]
                came = page.evaluate(COLUMN, at)
                filled = sum(value != "" for value in came)
                for order in ORDERS:
                    heads.nth(column).locator("button").click()
                    assert heads.nth(column).get_attribute("aria-sort") == order
                    values = page.evaluate(COLUMN, at)
                    assert values[filled:] == [""] * (len(came) - filled) or order is None
                    if order is None:
                        assert values == came
                    elif all(map(is_number, values[:filled])):
                        numbers = [float(value) for value in values[:filled]]
                        assert numbers == sorted(numbers, reverse=order == "descending")
                    else:
                        assert sorted(values) == sorted(came)

    assert visit(chromium, report / name, act).complaints == []


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


TABLE = """<!DOCTYPE html><title>t</title><table class="sortable"><thead><tr>
<th><button>Name</button></th><th><button>Score</button></th><th>Fixed</th></tr></thead>
<tbody><tr class="group"><th colspan="3">One</th></tr>
<tr><td>m10</td><td data-value="9">9.0</td><td></td></tr>
<tr><td>m9</td><td data-value="10">10.0</td><td></td></tr>
<tr><td>b</td><td></td><td></td></tr></tbody>
<tbody><tr class="group"><th colspan="3">Two</th></tr>
<tr><td>m2</td><td>−1 000.5</td><td></td></tr>
<tr><td>a</td><td data-value="9">9.0</td><td></td></tr>
<tr><td>A</td><td>none</td><td></td></tr></tbody></table><script>SCRIPT</script>"""


def test_sorting_is_stable_by_keys_and_knows_numbers_empty_cells_and_groups(chromium, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(TABLE.replace("SCRIPT", (TEMPLATES / "sort.js").read_text()))

    def names(page: Any) -> list[str]:
        return page.evaluate(COLUMN, [0, 0])

    def act(page: Any) -> None:
        home = names(page)
        groups = page.locator(".group").all_inner_texts()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        # a word is less than any number, what is equal (m10 and a) stays in order, and what is empty (b) is last
        assert names(page) == ["m9", "m10", "a", "m2", "A", "b"]
        page.keyboard.press("Space")
        assert names(page) == ["A", "m2", "m10", "a", "m9", "b"]
        assert page.evaluate("document.querySelector('table').className") == "sortable sorted"
        assert page.evaluate("document.activeElement.textContent") == "Score"
        # another column starts anew, and takes the mark from the first
        page.click("text=Name")
        assert page.eval_on_selector_all("th", "all => all.map(h => h.ariaSort)")[:2] == [
            "descending",
            None,
        ]
        assert names(page)[:3] == ["m10", "m9", "m2"]
        page.click("text=Name")
        assert names(page)[-3:] == ["m2", "m9", "m10"]
        page.click("text=Name")
        assert names(page) == home and page.locator(".group").all_inner_texts() == groups
        assert page.evaluate("[...document.querySelectorAll('tr')].map(r => r.rowIndex)") == list(
            range(9)
        )

    assert visit(chromium, page, act).complaints == []


def shown(page: Any) -> list[str]:
    """The prompts that are shown, in their order."""
    return page.eval_on_selector_all(
        ".prompt", "all => all.filter(p => p.checkVisibility()).map(p => p.id)"
    )


def found(page: Any) -> list[str]:
    """The highlighted texts."""
    return page.evaluate("[...CSS.highlights.get('found')].map(String)")


def search(page: Any, words: str, count: int) -> None:
    # it may be the same as before
    page.evaluate("document.getElementById('count').textContent = ''")
    page.fill("#query", words)
    page.wait_for_function(
        "text => document.getElementById('count').textContent.endsWith(text)",
        arg=f"{count} of 12 prompts",
    )


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_searching_generations(chromium, answers, width):
    def act(page: Any) -> None:
        page.select_option("#size", "")
        whole = page.inner_text(".prompt >> nth=1")
        assert page.inner_text("#count") == "12 of 12 prompts"
        search(page, "ZEBRA", 2)
        assert shown(page) == ["heldout-7", "heldout-21"]
        assert found(page) == ["zebra", "Zebra", "zebra"]
        # all of a text with a match is shown, however long it is
        assert (
            page.evaluate("getComputedStyle(document.querySelector('#heldout-21 .hit')).maxHeight")
            == "none"
        )
        # all of the words, in any text of the prompt: here instruction, reference and two responses
        search(page, "crossing bold do answer", 1)
        assert shown(page) == ["heldout-7"]
        search(page, "crossing horse", 0)
        assert not page.is_visible("h2")
        # what means something elsewhere is text here
        search(page, "<b>bold</b> && (or [so])", 1)
        assert page.locator(".answer .text b").count() == 0 and "&&" in found(page)
        search(page, ".*", 0)
        search(page, "with input", 6)
        assert page.inner_text("#heldout-0 .what >> nth=1").lower() == "input"
        search(page, "  ", 12)
        assert found(page) == [] and page.inner_text(".prompt >> nth=1") == whole
        assert faults(page) == []

    seen = visit(chromium, answers, act, width)
    assert (seen.external, seen.complaints) == ([], [])


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_choosing_models_set_and_order(chromium, answers, width):
    def apart(page: Any) -> str:
        return page.inner_text("#heldout-7 .spread")

    def act(page: Any) -> None:
        everyone = page.locator("#choice input").count()
        assert page.locator("#heldout-7 .answer").count() == everyone == 11 and apart(page) == "40"
        assert page.inner_text("#count") == "1–10 of 12 prompts" and len(shown(page)) == 10
        page.click("#next")
        assert shown(page) == ["other-28", "other-35"] and page.is_disabled("#next")
        page.select_option("#size", "50")
        assert len(shown(page)) == 12 and not page.is_visible("#next")
        # by keys alone
        page.focus("#choice summary")
        for key in ("Enter", "Tab", "Tab", "Enter"):
            page.keyboard.press(key)
        assert page.inner_text("#chosen") == f"0 of {everyone}"
        assert not page.is_visible("#heldout-7 .answer")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.inner_text("#chosen") == f"1 of {everyone}" and apart(page) == "–"
        (only,) = page.locator("#heldout-7 .answer:visible").all_inner_texts()
        assert only.startswith("SFT: teacher") and "bold" in only
        # only what is shown is searched
        search(page, "zebra", 1)
        page.locator("#choice label", has_text="3.B").locator("input").check()
        assert page.inner_text("#count") == "2 of 12 prompts" and apart(page) == "10"
        search(page, "", 12)
        assert faults(page) == []
        # of these two: 40 apart on row 21, 10 on row 7, 5 on row 28, and 0 on all others, which stay in order
        page.select_option("#order", "spread")
        assert shown(page)[:6] == [f"heldout-{row}" for row in (21, 7, 28, 0, 14, 35)]
        page.click("text=Show all")
        assert page.inner_text("#chosen") == "all 11"
        # 90 against 50 of the SFT baseline on row 21, 20 against 50 on row 7
        page.select_option("#order", "gain")
        assert shown(page)[0] == "heldout-21"
        page.select_option("#order", "loss")
        assert shown(page)[0] == "heldout-7"
        page.select_option("#set", "other")
        assert shown(page) == [f"other-{row}" for row in (0, 7, 14, 21, 28, 35)]
        # a link shows its prompt, whatever is chosen
        page.evaluate("location.hash = 'heldout-28'")
        page.wait_for_function(
            "document.getElementById('count').textContent === '12 of 12 prompts'"
        )
        assert page.input_value("#set") == ""
        page.select_option("#order", "data")
        assert shown(page)[:6] == [f"heldout-{row}" for row in (0, 7, 14, 21, 28, 35)]

    seen = visit(chromium, answers, act, width)
    assert (seen.external, seen.complaints) == ([], [])


def test_responses_that_became_right_or_wrong_and_training_seeds(chromium, tmp_path):
    """With the second seed, the student is right where its baseline is not, on the first row; strata are a filter."""
    spec = make(tmp_path, [DIRECT], (1, 2), samples=6)
    for folder in sorted((tmp_path / "evaluations").glob("*/seed*/heldout")):
        file, node = folder / "generations.jsonl", folder.parts[-3:-1]
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for place, row in enumerate(rows):
            row["stratum"] = "facts" if place < 2 else "lists"
            right = (node, place) in (((STUDENT, "seed2"), 0), (("student-sft", "seed1"), 1))
            for output in row["outputs"]:
                output |= {"text": f"of {node[1]}", "exact_match": 100.0 * right}
        write_lines(file, rows)
    page_file = run(tmp_path, spec) / "generations.html"

    def texts(page: Any) -> list[str]:
        return page.locator("#heldout-0 .answer:visible .text").all_inner_texts()

    def act(page: Any) -> None:
        assert texts(page) == ["of seed1"] * 3
        page.select_option("#change", "wrong")
        assert shown(page) == ["heldout-7"]
        assert "wrong (SFT right)" in page.inner_text("#heldout-7")
        page.select_option("#change", "right")
        assert shown(page) == []
        page.select_option("#seed", "2")
        assert shown(page) == ["heldout-0"] and "right (SFT wrong)" in page.inner_text("#heldout-0")
        # the top teacher has the first seed alone
        assert texts(page) == ["of seed1", "of seed2", "of seed2"]
        page.select_option("#change", "")
        page.select_option("#seed", "all")
        assert len(texts(page)) == 5
        page.select_option("#stratum", "facts")
        assert shown(page) == ["heldout-0", "heldout-7"]

    seen = visit(chromium, page_file, act)
    assert (seen.external, seen.complaints) == ([], [])


def test_a_link_goes_to_its_prompt(chromium, answers):
    page = chromium.new_page(viewport={"width": 1280, "height": 700})
    page.goto(f"{answers.as_uri()}#other-28")
    # on the second page of prompts, below the tools
    page.wait_for_function("""() => {
        const [tools, prompt] = ["tools", "other-28"].map((id) => document.getElementById(id).getBoundingClientRect());
        return prompt.top >= tools.bottom && prompt.top < 700;
    }""")
    assert page.get_attribute("#other-28 h3 a", "href") == "#other-28"
    page.close()


def test_generations_without_scripts(chromium, answers):
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto(answers.as_uri())
    assert not page.is_visible("#tools")
    assert page.locator(".prompt:visible").count() == 12
    assert page.locator(".answer:visible").count() == 12 * 11
    page.context.close()


def parts(text: str, *references: str) -> list[str]:
    """The parts of a text that differ are in brackets."""
    found = list(differing(text, references))
    assert "".join(part for part, _ in found) == text
    return [f"[{part}]" if differs else part for part, differs in found]


def test_words_that_differ_from_the_nearest_reference_are_marked():
    assert parts("The Cat sat.", "the cat sat.") == ["The Cat sat."]
    assert parts("the dog sat down", "the cat sat") == ["the ", "[dog]", " sat ", "[down]"]
    assert parts("a b c", "x y z", "a b d") == ["a b ", "[c]"]
    assert parts("nothing", "else") == ["[nothing]"] and parts("", "a") == []
    assert parts("猫が好き", "犬が好き") == ["[猫]", "が好き"]
    assert parts("القط هنا", "الكلب هنا") == ["[القط]", " هنا"]
    long = "word " * 3000
    assert parts(long, long) == [long]


def test_a_link_to_a_model_shows_it_alone(chromium, report):
    page = chromium.new_page()
    page.goto((report / f"models/{VIA}.html").as_uri())
    page.click("a[href*='#model=']")
    page.wait_for_url("**/generations.html#*")
    assert page.inner_text("#chosen") == "1 of 11"
    page.go_back()
    page.click("text=learning curves")
    page.wait_for_url("**/learning.html#*")
    assert page.eval_on_selector_all("[name=line]:checked", "all => all.map(b => b.value)") == [VIA]
    page.go_back()
    page.click("text=scores on other")
    page.wait_for_url("**/results.html#*")
    assert page.evaluate("document.querySelector(':target').dataset.lineage") == VIA
    page.close()


def test_a_table_is_copied_and_unfolds_without_scripts(chromium, report):
    page = chromium.new_page()
    page.goto((report / "index.html").as_uri())
    page.click("text=Copy as Markdown")
    page.click("details[open] >> text=copy >> nth=-1")
    assert page.evaluate("getSelection().toString() || document.activeElement.value").startswith(
        "| Model |"
    )
    page.close()
