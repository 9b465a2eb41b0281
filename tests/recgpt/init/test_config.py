"""`recgpt init` as a whole: the config it writes, and that `prepare` accepts it after the edits that it asks for."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgpt.cli import main
from recgpt.config import parse_yaml, read_config
from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from recgpt.init import init
from recgpt.init.config import init_text, quote
from tests.recgpt.init.logs import visits, write

NAMES = ["user", "item", "time", "click", "device", "price"]


def prepared(config: Path, events: Path | None = None) -> Prepared:
    """What the config makes of its log, or of another one."""
    overrides = [] if events is None else [f"data.events={events}"]
    return prepare(config, config.parent / "prepared", progress=False, overrides=overrides)


def edited(config: Path, result: dict[str, Any], **answers: str) -> None:
    """Make the edits that were asked for; each answer must be among the candidates."""
    text = config.read_text()
    assert {edit["key"] for edit in result["edits"]} == {f"data.{key}" for key in answers}
    for edit in result["edits"]:
        answer = answers[edit["key"].removeprefix("data.")]
        assert answer in edit["candidates"]
        text = re.sub(rf"^  (\w+): {edit['mark']}", rf"  \1: {quote(answer)}", text, flags=re.MULTILINE)
    config.write_text(text)


def uncommented(text: str, *keys: str) -> str:
    """The config with some sections that it holds as comments made real."""
    lines, inside = [], False
    for line in text.splitlines():
        key = re.match(r"  # (\w+):", line)
        inside = key[1] in keys if key else inside and line.startswith("  #   ")
        if not line.startswith("  #") and re.match(r"  (\w+):", line) and line.split(":")[0].strip() in keys:
            continue  # what stands there instead
        lines.append("  " + line[4:] if inside else line)
    return "\n".join(lines) + "\n"


# -- the real logs -----------------------------------------------------------------------------------------------------

REAL = {
    "ml-1m/ml1m_merged.parquet": {
        "user": "user",
        "item": "movie",
        "order": "sas_pos",
        "time": "ts",
        "time_unit": "s",
        "outcomes": {"rating": {"kind": "regression"}},
    },
    "ml-1m/ml-1m_sasrec.txt.gz": {
        "format": {"header": False, "columns": ["c1", "c2"]},
        "user": "c1",
        "item": "c2",
        "order": "row",
    },
    "amazon-beauty/events.parquet": {"user": "user", "item": "item", "order": "pos", "time": "ts", "time_unit": "s"},
    "kuairand-pure/events.parquet": {
        "user": "user_id",
        "item": "video_id",
        "order": "order",
        "time": "time_ms",
        "time_unit": "ms",
        "context": {"tab": {"kind": "categorical"}},
    },
    "kuairand-pure/train.parquet": {
        "user": "user_id",
        "item": "video_id",
        "time": "time_ms",
        "time_unit": "ms",
        "context": {"tab": {"kind": "categorical"}},
    },
}
KUAIRAND = ["is_click", "is_comment", "is_follow", "is_forward", "is_hate", "is_like", "is_profile_enter", "long_view"]


@pytest.mark.parametrize("name", REAL)
def test_the_real_logs(shared_data: Path, tmp_path: Path, name: str) -> None:
    config = tmp_path / "log.yaml"
    result = init(f"$RECGPT_DATA/{name}", config)
    data = read_config(config)["data"]
    assert data["events"] == f"$RECGPT_DATA/{name}"
    assert {key: data.get(key) for key in REAL[name]} == REAL[name]
    assert result["edits"] == []
    if name.startswith("kuairand"):
        assert [outcome for outcome in KUAIRAND if outcome not in data["outcomes"]] == []
        assert {use["kind"] for use in data["outcomes"].values()} == {"binary"}
        assert (result["guesses"]["items"], result["guesses"]["users"]) == (
            "$RECGPT_DATA/kuairand-pure/item_features.parquet",
            "$RECGPT_DATA/kuairand-pure/user_features.parquet",
        )
    head = tmp_path / f"head{''.join(Path(name).suffixes)}"
    if name.endswith(".gz"):
        with gzip.open(shared_data / name) as whole, gzip.open(head, "wb") as part:
            part.writelines(line for line, _ in zip(whole, range(20_000), strict=False))
    else:
        pq.write_table(pq.ParquetFile(shared_data / name).read().slice(0, 20_000), head)
    rows = prepared(config, head).summary["rows"]
    assert rows["in"] == 20_000
    assert rows["kept"] >= 19_900
    if name.endswith(".parquet"):  # nothing is hidden
        text = config.read_text()
        for column in pq.read_schema(shared_data / name).names:
            assert re.search(rf"(?<!\w){re.escape(column)}(?!\w)", text), column


def test_the_side_tables_of_a_real_log(shared_data: Path, tmp_path: Path) -> None:
    """Suggested as comments; made real, `prepare` accepts them, and the impressions with them."""
    config = tmp_path / "log.yaml"
    init(str(shared_data / "kuairand-pure" / "train.parquet"), config)
    text = config.read_text()
    assert "video_duration: {kind: numeric}" in text
    assert re.search(r"# CHECK: .*may count .*: .*show_cnt.*play_cnt", text)
    config.write_text(uncommented(text, "items", "users", "impressions", "target", "split"))
    data = read_config(config)["data"]
    assert {"author_id", "tag", "video_type"} <= set(data["items"]["features"])
    assert not {name for name in data["items"]["features"] if name.endswith("_cnt")}
    assert "user_active_degree" in data["users"]["features"]
    assert data["split"] == {"kind": "time", "valid": "2022-04-29", "test": "2022-04-30"}
    head = tmp_path / "head.parquet"
    pq.write_table(pq.read_table(shared_data / "kuairand-pure" / "train.parquet").slice(60_000, 20_000), head)
    found = prepared(config, head)
    assert found.summary["events"] == 20_000
    assert "author_id" in found.items.features


# -- unlucky logs ------------------------------------------------------------------------------------------------------

UNLUCKY = {
    "plain": (NAMES, {}, {}),
    "letters": (list("abcdef"), {}, {}),
    "no header": (None, {}, {}),
    "spaces and quotes": (["user id", "item: id", '"time" (s)', "did click?", "the\tdevice", "#price"], {}, {}),
    "keywords of YAML": (["yes", "null", "on", "1", "no", "~"], {}, {}),
    "numbers": (["user", "item", "2", "1.5", "3e4", "0x1"], {}, {}),
    "scripts": (["用户", "商品", "时间", "点击", "설비", "цена"], {}, {}),
    "signs of YAML": (["- user", "item #", "time: ", "{click}", "*device", "&price"], {}, {}),
    "twice": (["user", "item", "time", "x", "x", "X"], {}, {}),
    "empty": (["user", "item", "time", "", "", " "], {}, {}),
    "of SQL": (["user", "item", "timestamp", "select", "order", "group"], {}, {}),
    "semicolons": (NAMES, {"delimiter": ";"}, {}),
    "tabs": (NAMES, {"delimiter": "\t"}, {}),
    "bars and a mark": (["UserID", "MovieID", "Timestamp", "Like", "OS", "p"], {"delimiter": "|", "bom": True}, {}),
    "all quoted": (NAMES, {"quoting": csv.QUOTE_ALL}, {}),
    "of the engine": (["user", "item", "time", "__file", "__row", "__user"], {}, {}),
}


@pytest.mark.parametrize("name", UNLUCKY)
def test_unlucky_names(tmp_path: Path, name: str) -> None:
    header, how, answers = UNLUCKY[name]
    rows, config = visits(), tmp_path / "log.yaml"
    log = write(tmp_path / "log.csv", header, rows, **dict(how))
    result = init(str(log), config)
    edited(config, result, **answers)
    found = prepared(config)
    assert found.summary["rows"]["kept"] == len(rows)
    assert (found.summary["users"], found.summary["items"]) == (25, len({row[1] for row in rows}))
    assert found.summary["time_range"][0].startswith("2022-04-1")
    text = config.read_text()
    for column in header or ["c1", "c2", "c3", "c4", "c5", "c6"]:
        assert quote(column) in text or column in ("x", "X", "", " ", "__file", "__row", "__user")


def test_what_cannot_be_guessed_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log sorted by time under names that say nothing: one line each until both edits are made."""
    rows, config = visits(by_time=True), tmp_path / "log.yaml"
    log = write(tmp_path / "log.csv", list("abcdef"), rows)
    result = init(str(log), config)
    assert result["edits"] == [
        {"key": "data.user", "mark": "EDIT_USER", "candidates": ["b", "a"]},
        {"key": "data.item", "mark": "EDIT_ITEM", "candidates": ["b", "a"]},
    ]
    n_items = len({row[1] for row in rows})
    assert f"  user: EDIT_USER  # candidates: b ({n_items} distinct), a (25 distinct)\n" in config.read_text()
    assert main(["prepare", str(config)]) == 2
    told = capsys.readouterr().err
    assert told == "recgpt: data.user: no column 'EDIT_USER' in log.csv; columns: a, b, c, d, e, f\n"
    edited(config, result, user="a", item="b")
    assert prepared(config).summary["users"] == 25


def test_a_candidate_with_holes_says_what_it_needs(tmp_path: Path) -> None:
    rows = [["" if n % 10 == 0 else row[0], *row[1:]] for n, row in enumerate(visits(by_time=True))]
    config = tmp_path / "log.yaml"
    result = init(str(write(tmp_path / "log.csv", list("abcdef"), rows)), config)
    asked = re.search(r"a \(25 distinct, 1\d\.\d% empty: needs where: ('.*?')\)", config.read_text())
    assert asked
    edited(config, result, user="a", item="b")
    config.write_text(config.read_text().replace("  user:", f"  where: {asked[1]}\n  user:"))
    found = prepared(config).summary["rows"]
    assert (found["rejected"], found["filtered"]) == (0, len([row for row in rows if row[0] == ""]))


def test_rows_without_an_id_are_filtered_not_refused(tmp_path: Path) -> None:
    for text in (False, True):
        rows = [["" if n % 10 == 0 else f"u{row[0]}" if text else row[0], *row[1:]] for n, row in enumerate(visits())]
        config = tmp_path / str(text) / "log.yaml"
        init(str(write(tmp_path / str(text) / "log.csv", NAMES, rows)), config)
        found = prepared(config).summary["rows"]
        assert (found["rejected"], found["filtered"]) == (0, len([row for row in rows if row[0] == ""]))


def test_the_parts_of_a_log_become_its_split(tmp_path: Path) -> None:
    rows = [[*row[:3], ["train", "valid", "test"][min(2, max(0, n % 9 - 6))]] for n, row in enumerate(visits())]
    config = tmp_path / "log.yaml"
    init(str(write(tmp_path / "log.csv", ["user", "item", "time", "part"], rows)), config)
    split = read_config(config)["data"]["split"]
    assert split == {"kind": "column", "column": "part", "valid": ["valid"], "test": ["test"]}
    assert prepared(config).summary["split"]["test"]["users"] > 0


def test_times_to_split_at(tmp_path: Path) -> None:
    """The last twentieths of the span, in whole days where it has three; none where the span is not known.

    The log begins on 2022-04-15 at 05:20 and ends 100, 30, 4 or 1 days later, a 400th less.
    """
    spans = {
        100: ("2022-07-16", "2022-07-20"),  # ends 07-23 at 23:20; four days less is 07-19 at 23:20
        30: ("2022-05-13", "2022-05-14"),  # ends 05-15 at 03:32; a day less is 05-14 at 03:32
        4: ("2022-04-17", "2022-04-18"),  # ends 04-19 at 05:05
        1: ("2022-04-16T02:52:46", "2022-04-16T04:04:35"),  # ends 04-16 at 05:16:24; a twentieth is 4,309 s
    }
    for days, (valid, test) in spans.items():
        rows = [[n % 5, n % 7, 1_650_000_000 + n * days * 86_400 // 400] for n in range(400)]
        config = tmp_path / f"{days}.yaml"
        init(str(write(tmp_path / "log.csv", ["user", "item", "time"], rows)), config)
        assert f'# split: {{kind: time, valid: "{valid}", test: "{test}"}}' in config.read_text()
        config.write_text(uncommented(config.read_text(), "split"))
        assert prepared(config).summary["split"]["test"]["users"] == 5
    rows = [[n % 5, n % 7, 1_650_000_000 + n] for n in range(400)]
    for name in ("a", "b"):
        write(tmp_path / "two" / f"{name}.csv", ["user", "item", "time"], rows)
    init(str(tmp_path / "two" / "*.csv"), tmp_path / "two.yaml")
    assert "kind: time" not in (tmp_path / "two.yaml").read_text()


def test_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = visits()
    write(tmp_path / "logs" / "1.csv", NAMES, rows[:200])
    write(tmp_path / "logs" / "2.csv", NAMES, rows[200:])
    monkeypatch.chdir(tmp_path)
    result = init("logs/*.csv")
    assert result["config"] == "logs.yaml"
    data = read_config(Path("logs.yaml"))["data"]
    assert data["events"] == "logs/*.csv"
    assert prepared(tmp_path / "logs.yaml").summary["rows"]["kept"] == len(rows)
    write(tmp_path / "logs" / "3.csv", [*NAMES, "more"], [[*row, 1] for row in rows])
    result = init("logs/*.csv", "again.yaml")
    assert "3.csv has other columns than 1.csv" in result["checks"]["events"]


def test_text_columns_are_offered_as_content(tmp_path: Path) -> None:
    """Columns of words, not of codes; a comment within the comment, so that it is chosen on purpose."""
    write(tmp_path / "log.csv", NAMES, visits())
    header = ["item_id", "title", "blurb", "code"]
    rows = [[n, f"The {n}th one", f"all about thing {n}", f"x{n}-a{n}"] for n in range(60)]
    write(tmp_path / "items.tsv", header, rows, "\t")
    config = tmp_path / "log.yaml"
    init(str(tmp_path / "log.csv"), config)
    [line] = [line for line in config.read_text().splitlines() if "text: [" in line]
    assert line.startswith("  #   # text: [title, blurb]  # ")
    config.write_text(uncommented(config.read_text(), "items").replace("  # text: [", "  text: ["))
    assert prepared(config).schema.content_dim == 256


def test_side_tables_beside_a_text_log(tmp_path: Path) -> None:
    rows = visits()
    write(tmp_path / "log.csv", NAMES, rows)
    header = ["item_id", "title", "category", "price", "views", "constant", "tags"]
    described = [[n, f"The {n}", f"c{n % 4}", n / 2, n, 1, f"t{n % 3}, t{n % 7}"] for n in range(60)]
    write(tmp_path / "items.tsv", header, described, "\t")
    write(tmp_path / "people.csv", ["user", "age", "town"], [[n, 20 + n, f"t{n % 3}"] for n in range(25)], ";")
    write(tmp_path / "other.csv", ["item", "note"], [[row[1], "x"] for row in rows])  # an item in many rows
    write(tmp_path / "few.csv", ["item", "note"], [[n, "x"] for n in range(5)])
    (tmp_path / "broken.parquet").write_bytes(b"no")
    pq.write_table(pa.table({"item": ["a", "b"], "x": [1, 2]}), tmp_path / "texts.parquet")
    config = tmp_path / "log.yaml"
    result = init(str(tmp_path / "log.csv"), config)
    assert (Path(result["guesses"]["items"]).name, Path(result["guesses"]["users"]).name) == ("items.tsv", "people.csv")
    assert "small integers match by chance" in config.read_text()
    config.write_text(uncommented(config.read_text(), "items", "users"))
    data = read_config(config)["data"]
    assert data["items"] == {
        "path": str(tmp_path / "items.tsv"),
        "id": "item_id",
        "title": "title",
        "category": "category",
        "features": {
            "category": {"kind": "categorical"},
            "price": {"kind": "numeric"},
            "tags": {"kind": "categories", "separator": ","},
        },
    }
    assert data["users"]["format"] == {"delimiter": ";"}
    assert data["users"]["features"] == {"age": {"kind": "numeric"}, "town": {"kind": "categorical"}}
    found = prepared(config)
    assert found.items.title is not None
    assert {name: column.ndim for name, column in found.items.features.items()} == {
        "category": 1,
        "price": 1,
        "tags": 2,
    }


def test_several_values_of_an_item(tmp_path: Path) -> None:
    rows = visits()
    pq.write_table(pa.table(dict(zip(NAMES, zip(*rows, strict=True), strict=True))), tmp_path / "log.parquet")
    columns = {
        "item": list(range(60)),
        "tags": [[f"t{n % 3}"] for n in range(60)],
        "nested": [[["a"], ["b"]]] * 60,
        "genres": [f"g{n % 3}|g{n % 7}" for n in range(60)],
        "printed": [f"['g{n % 3}', 'g{n % 7}']" for n in range(60)],
        "price": [f"{n % 9},5" for n in range(60)],
        "prose": [f"One {n}, two {n + 100}, three {n + 200}" for n in range(60)],
    }
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    config = tmp_path / "log.yaml"
    init(str(tmp_path / "log.parquet"), config)
    text = config.read_text()
    assert re.search(r"# tags: array<string>; a feature of kind: categories if its values come again", text)
    assert re.search(r"# nested: array<array<string>>$", text, re.MULTILINE)
    config.write_text(uncommented(text, "items"))
    features = read_config(config)["data"]["items"]["features"]
    assert features["genres"] == {"kind": "categories", "separator": "|"}
    assert "separator" not in {**features.get("printed", {}), **features.get("price", {}), **features.get("prose", {})}
    assert prepared(config).items.features["genres"].shape[1] == 2


# -- files and the command line ----------------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write(tmp_path / "my.log.csv", NAMES, visits())
    monkeypatch.chdir(tmp_path)
    assert init(str(log))["config"] == "my.log.yaml"
    before = Path("my.log.yaml").read_text()
    with pytest.raises(ConfigError, match=r"--out: my\.log\.yaml is there already; choose another --out or remove it"):
        init(str(log))
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        init(str(log), tmp_path)
    assert Path("my.log.yaml").read_text() == before
    assert init(str(log), tmp_path / "new" / "x.yaml")["config"] == str(tmp_path / "new" / "x.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "is empty"), ("user,item\n", "has no rows; nothing can be guessed from it"), (None, "no file")],
)
def test_logs_that_hold_nothing(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ConfigError, match=f"LOG: .*{told}"):
        init(str(tmp_path / "log.csv"), tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.csv", ["user", "b", *"cdef"], visits(by_time=True))
    out = tmp_path / "my config.yaml"
    assert main(["init", str(log), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "  user: user\n" in text
    assert f"  recgpt data check '{out}'" in text.replace("next:", " ").replace("after these edits:", " ")
    assert f"recgpt pretrain '{out}'" in text
    assert main(["init", str(log), "--out", str(tmp_path / "2.yaml"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"config", "rows", "guesses", "edits", "checks"}
    assert (result["guesses"]["user"], result["guesses"]["time"]) == ("user", "c")
    assert main(["init", str(log), "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["init", str(tmp_path / "none.csv")]) == 2
    assert "no file matches" in capsys.readouterr().err


def test_edits_and_checks_are_shown(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", list("abcdef"), visits(by_time=True))
    text = init_text(init(str(log), tmp_path / "x.yaml"))
    assert "EDIT data.user (EDIT_USER): b, a\n" in text
    assert "CHECK time: its name says nothing" in text
    assert "after these edits: recgpt data check" in text


@pytest.mark.parametrize(
    "name",
    ["a", "a b", "yes", "null", "~", "1", "1e5", "a: b", "a #b", "- a", "{a}", "用户", 'a"b', "it's", "a\nb", " a ",
     "\x7f", "", "\\", "\U0001f5dd", "\u2028", "true", "0x1", "2024-05-01", "=", "<<", "!t", "%p", "@a", "`b`",
     "|", ">", "a\tb"],
)  # fmt: skip
def test_quoted_names_are_read_back(name: str) -> None:
    text = quote(name)
    assert "\n" not in text
    assert parse_yaml(f"k: {text}\nl: {{{text}: [{text}]}}\n", "x") == {"k": name, "l": {name: [name]}}
