"""The page as a whole: it stands alone, parses, escapes what comes from the log, and says what is missing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recgpt.cli import main
from recgpt.errors import ConfigError, RecGPTError
from recgpt.report import page, report, validation
from recgpt.report.charts import LOOKS
from tests.recgpt.report.conftest import HOSTILE, OUTCOME

VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """Tags that close what they open, ids, addresses, and the text of it all."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.used: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, attrs)

    def _take(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name == "id":
                self.ids[str(value)] += 1
            if name in ("src", "href", "data", "action", "srcset"):
                self.addresses.append(str(value))
            if name == "clip-path":
                self.used.append(str(value).removeprefix("url(").removesuffix(")"))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    return Page(text)


@pytest.fixture(scope="module", params=["first", "heads"])
def written(request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("page") / request.param
    shutil.copytree(trained / request.param, run)
    return report(run)


def test_page_parses_and_stands_alone(written: Path) -> None:
    found = read(written)
    assert written.name == "report.html"
    assert found.open == []
    assert {tag: found.tags[tag] for tag in ("script", "img", "link", "iframe", "object")} == dict.fromkeys(
        ("script", "img", "link", "iframe", "object"), 0
    )
    assert found.addresses
    assert all(address.startswith("#") for address in found.addresses)
    text = written.read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(http" not in text


def test_ids_are_unique_and_every_reference_has_one(written: Path) -> None:
    found = read(written)
    assert found.tags["svg"] > 5
    assert max(found.ids.values()) == 1
    assert {*found.addresses, *found.used} <= {f"#{name}" for name in found.ids}


def test_what_comes_from_the_log_is_escaped(written: Path) -> None:
    text, found = written.read_text(encoding="utf-8"), read(written)
    for title in HOSTILE[:2]:
        assert title not in text
    shown = [title for title in HOSTILE if title and " ".join(title.split()) in found.text]
    assert len(shown) >= 5  # as text they are there
    assert "<i>category 1</i>" in found.text
    assert "User <u>" in found.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "49" not in found.text.split("{{ 7 * 7 }}")[1][:4]


def test_every_chart_is_described_and_told_how_to_read(written: Path) -> None:
    text, found = written.read_text(encoding="utf-8"), read(written)
    charts = text.count('role="img"')
    assert charts == found.tags["figure"] == text.count('aria-label="') - text.count('role="region"') - 1
    assert text.count("<figcaption><b>") == charts
    assert "<span></span>" not in text


def test_the_same_files_give_the_same_page(heads: Path) -> None:
    first = report(heads).read_bytes()
    assert report(heads).read_bytes() == first


def test_a_pretrained_run_shows_what_evaluate_saved(first: Path) -> None:
    saved = json.loads((first / "eval" / "test.json").read_text())
    text = read(report(first)).text
    for system in ("model", "popularity", "item_knn", "markov"):
        for metric in ("ndcg@10", "recall@50", "mrr", "coverage@10"):
            assert f"{saved[system][metric]:.4f}" in text
    gap = saved["paired"]["markov"]["ndcg@10"]
    assert f"{gap['difference']:+.4f} {gap['low']:+.4f} to {gap['high']:+.4f}".replace("-", "\N{MINUS SIGN}") in text
    assert "recgpt report of a pretrained run" in text
    assert "not been evaluated" not in text
    assert "has been evaluated once" in text


def test_a_finetuned_run_shows_its_outcomes(heads: Path) -> None:
    saved = json.loads((heads / "eval" / "test.json").read_text())
    run = heads.rename(heads.parent / "ranking")
    text = read(report(run)).text
    assert f"{run.parent.name}/ranking recgpt report of a fine-tuned run" in text  # quickstart's name says little
    assert "Item popularity: the item's own rate in training, smoothed." in text
    assert "Best possible" not in text  # no simulator here
    assert f"p({OUTCOME})" in text
    for name in ("click", OUTCOME):
        for metric in ("auc", "logloss", "ne", "ece"):
            assert f"{saved['outcomes'][name][metric]:.4f}" in text
            assert f"{saved['item_popularity'][name][metric]:.4f}" in text


def test_missing_evaluation_is_told_and_the_test_part_is_not_read(
    first: Path, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = validation.split_users
    monkeypatch.setattr(validation, "split_users", lambda prepared, split: asked.append(split) or real(prepared, split))
    for run in (first, heads):
        shutil.rmtree(run / "eval")
        (run / "test_reads.jsonl").unlink()
        text = read(report(run)).text
        assert f"recgpt evaluate {run}" in text
        assert "has not been evaluated" in text
        assert "Recall@k" in text  # of the validation part, computed for the page
        assert not (run / "eval").exists()
        assert not (run / "test_reads.jsonl").exists()
    assert set(asked) == {"valid"}


def test_a_saved_validation_stands_in_for_a_missing_test(first: Path) -> None:
    from recgpt.evaluation import evaluate

    saved = evaluate(first, "valid")
    (first / "eval" / "test.json").unlink()
    text = read(report(first)).text
    assert "Shown is the validation part." in text
    assert f"{saved['model']['ndcg@50']:.4f}" in text


def test_ranks_of_another_log_are_refused(first: Path) -> None:
    import pyarrow.parquet as pq

    path = first / "eval" / "test.users.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ConfigError, match="not those of the run's log"):
        report(first)


def test_a_moved_log_gives_one_line(trained: Path, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = first / "config.yaml"
    config.write_text(config.read_text().replace(str(trained / "log" / "prepared"), str(trained / "gone")))
    assert main(["report", str(first)]) == 2
    message = capsys.readouterr().err
    assert "no prepared log" in message
    assert message.count("\n") == 1
    assert not (first / "report.html").exists()


def test_a_place_that_cannot_be_written_gives_one_line(first: Path) -> None:
    (first / "report.html").mkdir()
    (first / "report.html" / "keep").touch()
    with pytest.raises(RecGPTError, match=r"report\.html: cannot be written"):
        report(first)
    assert (first / "report.html" / "keep").exists()


def test_gone_item_table_is_told(trained: Path, first: Path) -> None:
    items = trained / "log" / "items.parquet"
    items.rename(items.with_suffix(".away"))
    try:
        text = read(report(first)).text
    finally:
        items.with_suffix(".away").rename(items)
    assert "Categories are not shown" in text
    assert "<i>category" not in text


def test_verb_prints_the_file(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(first), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"report": str(first / "report.html"), "bytes": (first / "report.html").stat().st_size}


def test_every_look_has_a_colour_in_both_schemes_and_a_dash() -> None:
    template = (Path(page.__file__).parent / page.TEMPLATE).read_text(encoding="utf-8")
    for look in (*LOOKS, "ink", "faint"):
        assert template.count(f"--{look}: #") == 2
    for look in LOOKS:
        assert f'"{look}": "' in template
