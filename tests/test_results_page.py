"""The report of results, in a browser, from disk."""

import json
import subprocess
import sys
from base64 import b64decode
from dataclasses import replace
from itertools import product
from time import perf_counter

import pytest
import torch

from ropebridge_conformance.judging.bench import Bench
from ropebridge_conformance.judging.compare import compare
from ropebridge_conformance.judging.heat import COLUMNS, ROWS, heat_map
from ropebridge_conformance.judging.judge import judge, plan
from ropebridge_conformance.judging.verdicts import Outcome, Verdict, read_line
from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME
from ropebridge_conformance.results.files import header, write_results
from ropebridge_conformance.results.page import digest, write_page
from ropebridge_conformance.results.page.gathering import KEPT, PER_CELL
from ropebridge_conformance.stages.context import Expectation
from ropebridge_spec import CLAUSE_BY_ID, HOOKS

pytestmark = pytest.mark.slow

BROKEN = (
    "from ropebridge_conformance.mutants.catalogue import MUTANT_BY_NAME\n\n\ndef Factory():\n"
    "    return MUTANT_BY_NAME['sin_sign'].subject()\n"
)
EVIL = [
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "'; document.title='taken'; //",
    "\u2028{{ 7*7 }}<!--<script>",
    "javascript:document.title='taken'",
    "__proto__",
]
PASS = Verdict(
    *("s", "ROT-1", "c", "hook_rot_q", "llama", "llama", "float32", "cpu", Outcome.PASS),
    scenario="prefill",
)


def file_of(path, verdicts, **run):
    lines = [
        header(["m:F"], ["cpu"], {"names": {"m:F": "s"}, **run}),
        *(verdict.line() for verdict in verdicts),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def open_page(browser, tmp_path):
    """`open_page(results)`: the report of a results file in the browser, with what went wrong in
    `page.errors`."""
    pages = []

    def open_(results, **context):
        write_page(results, tmp_path / "report.html")
        page = browser.new_page(viewport={"width": 1300, "height": 900}, **context)
        page.errors, page.asked = [], []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on(
            "console",
            lambda message: (
                page.errors.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def broken():
    """The verdicts on a subject that turns the wrong way, and on one that does not."""
    asked = [
        q
        for q in plan(["llama", "gemma2_local"], ("float32", "bfloat16"), ("cpu",), ("layer",))
        if q.check == "a_stage_gives_the_value_of_its_clause"
    ]
    return [
        judge(Bench(MUTANT_BY_NAME["sin_sign"].subject()), q)
        for q in asked
        if q.hook in ("hook_q", "hook_rot_q", "hook_attn_scores", "hook_out")
    ]


@pytest.fixture
def page(open_page, broken, tmp_path):
    return open_page(file_of(tmp_path / "r.jsonl", [replace(v, subject="s") for v in broken]))


def test_it_opens_from_disk_asks_for_nothing_else_and_finds_no_fault(page, broken):
    assert page.errors == []
    assert {url.partition(":")[0] for url in page.asked} == {"file"}
    fails = sum(v.outcome == Outcome.FAIL for v in broken)
    assert 0 < fails < len(broken)
    assert (
        page.text_content("#standing")
        == f"{len(broken)} verdicts: {fails} fail, {len(broken) - fails} pass."
    )


def test_the_matrix_says_what_came_of_every_cell(page):
    link = page.get_by_role("link", name="llama, hook_rot_q: 12 fail")
    assert link.text_content() == "\u00d7", "not by colour alone"
    assert page.get_by_role("link", name="llama, hook_q: 12 pass").text_content() == ""
    page.select_option("#dtype", "bfloat16")
    assert page.get_by_role("link", name="llama, hook_rot_q: 6 fail").count() == 1


def test_filters_narrow_the_matrix(page):
    assert page.locator("#grid tbody tr").count() == 2
    page.fill("#family", "gemma")
    assert page.locator("#grid tbody th").all_text_contents() == ["gemma2"]
    page.fill("#family", "nothing")
    assert page.is_visible("#none")
    page.fill("#family", "")
    page.select_option("#outcome", "vacuous")
    assert page.is_visible("#none")


def test_a_failures_page_says_clause_stage_element_and_where(page, broken):
    page.get_by_role("link", name="llama, hook_rot_q").click()
    page.locator("#cell a").first.click()
    shown = page.locator("#verdict")
    worst = next(v for v in broken if v.outcome == Outcome.FAIL)
    assert page.evaluate("document.activeElement.tagName") == "H2"
    for words in (
        "ROT-1",
        CLAUSE_BY_ID["ROT-1"].text,
        CLAUSE_BY_ID["ROT-1"].formula,
        "hook_rot_q is off by",
        f"[{', '.join(map(str, worst.worst))}]",
        f"{worst.bound:.4g}",
    ):
        assert words in shown.inner_text()
    assert page.text_content("#stages li.first") == "hook_rot_q"
    assert page.text_content("#stages li.before") == "hook_q"
    label = page.get_attribute("#heat", "aria-label")
    assert label.startswith("Error over bound: ")
    data = "[...document.querySelector('#heat').getContext('2d').getImageData(0, 0, 999, 999).data]"
    red = f"{data}.filter((v, i, a) => i % 4 === 0 && a[i] > a[i + 2] + 20).length"
    broken_cells = sum(byte > 128 for byte in b64decode(worst.heat.cells))
    assert page.evaluate(red) == broken_cells > 10
    assert page.errors == []


def test_a_failure_has_an_address_of_its_own(page):
    page.evaluate("location.hash = '#v/0'")
    page.wait_for_selector("#verdict:not([hidden])")
    assert not page.is_visible("#matrix")
    for nonsense in ("#v/999999", "#v/x", "#cell/9/9/9", "#v/constructor", "#nothing"):
        page.evaluate(f"location.hash = {nonsense!r}")
        page.wait_for_selector("#matrix:not([hidden])")
    assert page.errors == []


@pytest.mark.slow
@pytest.mark.every
def test_what_is_shown_for_reproduction_reproduces(open_page, tmp_path):
    """Both the command and the script, run as they stand on the page, meet the failure again, and
    the script in the same words."""
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    (asked,) = (
        q
        for q in plan(["llama"], ("float32",), ("cpu",))
        if (q.check, q.hook, q.scenario)
        == ("a_stage_gives_the_value_of_its_clause", "hook_rot_q", "prefill")
    )
    failure = judge(Bench(MUTANT_BY_NAME["sin_sign"].subject()), asked)
    lines = [
        header(["broken:Factory"], ["cpu"], {"names": {"broken:Factory": failure.subject}}),
        failure.line(),
    ]
    (tmp_path / "one.jsonl").write_text("\n".join(lines), encoding="utf-8")
    page = open_page(tmp_path / "one.jsonl")
    page.evaluate("location.hash = '#v/0'")
    script, command = page.text_content("#script"), page.text_content("#command")
    assert len(script.splitlines()) < 30
    again = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert again.stdout == f"fail hook_rot_q {failure.reason}\n"
    shell = (
        f"ropebridge() {{ {sys.executable} -c 'from ropebridge_conformance.command import main;"
        f' main()\' "$@"; }}\n{command}'
    )
    judged = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert judged.returncode == 1, judged.stderr
    assert "1 verdicts: 1 fail" in judged.stdout


def test_all_of_it_can_be_done_by_keyboard(page):
    """Tab through the filters into the matrix, arrows, Enter, Tab to the first failure, Escape back
    to the cell it came from."""
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#grid') !== null"):
            break
    page.keyboard.press("ArrowRight")
    assert (
        page.evaluate("document.activeElement.getAttribute('aria-label')")
        == "llama, hook_rot_q: 12 fail"
    )
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert (
        page.evaluate("document.activeElement.getAttribute('aria-label')")
        == "gemma2, hook_rot_q: 12 fail"
    )
    page.keyboard.press("Enter")
    page.wait_for_selector("#cell:not([hidden])")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#verdict:not([hidden])")
    page.keyboard.press("Escape")
    page.wait_for_selector("#matrix:not([hidden])")
    assert (
        page.evaluate("document.activeElement.getAttribute('aria-label')")
        == "gemma2, hook_rot_q: 12 fail"
    )


def test_every_outcome_is_told_apart_and_none_is_merged(open_page, tmp_path):
    verdicts = [
        replace(PASS, outcome=outcome, family=str(outcome), reason="why") for outcome in Outcome
    ]
    page = open_page(file_of(tmp_path / "r.jsonl", verdicts))
    marks = {
        link.get_attribute("aria-label"): (
            link.text_content(),
            link.evaluate("e => getComputedStyle(e).backgroundImage"),
        )
        for link in page.locator("#grid a").all()
    }
    assert list(marks) == [f"{outcome}, hook_rot_q: 1 {outcome}" for outcome in Outcome]
    assert (
        len({glyph for glyph, _ in marks.values()})
        == len({colour for _, colour in marks.values()})
        == len(Outcome)
    )


def test_a_run_that_was_cut_short_is_said_to_be(open_page, tmp_path):
    page = open_page(file_of(tmp_path / "r.jsonl", [PASS], expected=7))
    assert (
        page.text_content("#standing")
        == "1 verdicts: 1 pass. The run was cut short: 7 were expected."
    )


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_results_are_text_and_nothing_else(open_page, tmp_path, evil):
    """Every field a results file has, and the header, hold markup or script: it is shown, and
    nothing of it runs."""
    bad = Verdict(
        *[evil] * 3,
        evil,
        evil,
        evil,
        evil,
        evil,
        Outcome.FAIL,
        2.0,
        1.0,
        evil,
        0,
        evil,
        (0, 1),
        scenario=evil,
        heat=heat_map(torch.ones(2, 3), None),
    )
    bad = replace(bad, heat=replace(bad.heat, axes=(evil, evil)))
    page = open_page(file_of(tmp_path / "r.jsonl", [bad], plan=evil, **{f"key {evil}": evil}))
    assert page.locator("#grid tbody th").all_text_contents() == [evil]
    for place in ("#cell/0/0/0", "#v/0"):
        page.evaluate(f"location.hash = {place!r}")
        page.wait_for_selector("#matrix", state="hidden")
        assert evil in page.text_content("main")
    assert page.title() == "ropebridge: conformance report"
    assert page.locator("img, body script:not(#data)").count() == 1, "its own script"
    assert page.errors == []
    assert page.locator("a[href^='javascript']").count() == 0


def test_the_policy_stops_a_script_that_gets_in_all_the_same(page):
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent:"
        " \"document.title = 'taken'\"}))"
    )
    assert page.title() == "ropebridge: conformance report"
    assert "Content Security Policy" in page.errors[0]


def test_it_is_readable_in_the_light_and_in_the_dark(open_page, broken, tmp_path):
    """Contrast of text to paper, 7 to 1 and more, in both."""
    seen = []
    for scheme in ("light", "dark"):
        page = open_page(file_of(tmp_path / "r.jsonl", broken), color_scheme=scheme)
        ink, paper = (
            luminance(page.evaluate(f"getComputedStyle(document.body).{name}"))
            for name in ("color", "backgroundColor")
        )
        seen.append(paper)
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7
    assert seen[0] > 0.8
    assert seen[1] < 0.05


def luminance(rgb):
    parts = [int(part) / 255 for part in rgb.removeprefix("rgb(").rstrip(")").split(",")]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.slow
@pytest.mark.every
def test_three_hundred_thousand_verdicts_make_a_small_page_and_a_quick_one(open_page, tmp_path):
    """Of 150 families; one in fifty fails. The page stays under 5 MB, and draws a table of the
    families alone: how much it draws does not grow with the verdicts."""
    failure = replace(
        PASS,
        outcome=Outcome.FAIL,
        error=1.0,
        bound=0.5,
        reason="hook_rot_q is off by 2 times its bound",
        heat=heat_map(torch.ones(20, 30), None),
    )
    cells = list(
        product(range(150), HOOKS, ("float32", "bfloat16", "float16", "float64"), range(21))
    )
    with (tmp_path / "many.jsonl").open("w", encoding="utf-8") as file:
        print(header(["m:F"], ["cpu"]), file=file)
        for n, (family, hook, dtype, case) in enumerate(cells):
            text = (failure if n % 50 == 0 else PASS).line()
            print(
                text.replace('"llama"', f'"family{family}"')
                .replace("hook_rot_q", hook.name)
                .replace("float32", dtype)
                .replace("prefill", str(case)),
                file=file,
            )
    assert len(cells) > 300_000
    begin = perf_counter()
    page = open_page(tmp_path / "many.jsonl")
    took = perf_counter() - begin
    drawn = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    size = (tmp_path / "report.html").stat().st_size
    print(
        f"{len(cells)} verdicts: written and opened in {took:.1f} s, drawn in {drawn:.0f} ms,"
        f" {size / 1e6:.1f} MB"
    )
    assert page.locator("#grid tbody tr").count() == 150
    assert size < 5e6
    elements = page.evaluate("document.querySelectorAll('*').length")
    assert elements < 150 * (len(HOOKS) * 5 + 5) + 500


def test_a_bound_of_0_is_kept_and_shown():
    """Stages that only hand on what they are given have no other."""
    bad = replace(PASS, outcome=Outcome.FAIL, error=2.0, bound=0.0)
    kept = digest([bad]).data({})["details"]
    assert [(one["error"], one["bound"]) for one in kept] == [("2", "0")]


def test_every_cell_keeps_something_before_any_keeps_more():
    many = [replace(PASS, outcome=Outcome.FAIL, case=f"a-{n}") for n in range(KEPT * 2)]
    few = [replace(PASS, outcome=Outcome.VACUOUS, family=f"f{n}") for n in range(10)]
    kept = digest([*many, *few]).details
    assert {v.family for v in kept} == {"llama", *(f"f{n}" for n in range(10))}
    assert sum(v.family == "llama" for v in kept) == PER_CELL
    assert (
        len(
            digest(
                [replace(PASS, outcome=Outcome.FAIL, family=str(n)) for n in range(KEPT * 2)]
            ).details
        )
        == KEPT
    )


# ---- where the error is ----


def test_a_failing_verdict_says_where_and_a_passing_one_has_no_more_than_before(broken):
    for verdict in broken:
        fields = json.loads(verdict.line())
        assert ("worst" in fields) == ("heat" in fields) == (verdict.outcome == Outcome.FAIL)
        assert len(verdict.line()) < 1500
        assert read_line(verdict.line()) == verdict


def test_heat_is_where_the_error_is():
    """One wrong element of (batch, pos, head, d_head): one hot cell, in its row, in the column of
    its head."""
    got = torch.zeros(2, 8, 3, 8)
    got[1, 5, 2, 7] = 4.0
    found = compare(got, Expectation(torch.zeros_like(got).double(), torch.ones_like(got)))
    heat = heat_map(found.ratios, "hook_z")
    cells = torch.tensor(list(b64decode(heat.cells))).view(heat.rows, heat.columns)
    assert (heat.axes, heat.sizes, heat.rows, heat.columns) == (
        ("pos", "head d_head_v"),
        (8, 24),
        8,
        24,
    )
    assert cells.nonzero().tolist() == [[5, 23]]
    assert cells[5, 23] == 128 + 8 * 2, "4 is two powers of two above the bound"


def test_heat_is_small_whatever_the_tensor():
    heat = heat_map(torch.full((2, 4, 300, 500), torch.inf), "hook_pattern")
    assert (heat.axes, heat.sizes, heat.rows, heat.columns) == (
        ("head query", "key"),
        (1200, 500),
        ROWS,
        COLUMNS,
    )
    assert set(b64decode(heat.cells)) == {255}


def test_the_command_writes_the_page(ropebridge, tmp_path):
    write_results(tmp_path / "r.jsonl", [PASS], ["s"], ["cpu"])
    done = ropebridge("report", "r.jsonl", "-o", "new/report.html")
    assert done.exit_code == 0, done.stderr
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    refused = ropebridge("report", "nowhere.jsonl")
    assert refused.exit_code == 2
    assert "nowhere.jsonl holds no results" in refused.stderr
