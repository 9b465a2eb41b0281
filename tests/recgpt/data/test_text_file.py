"""Text files in other encodings and with delimiters of several characters."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from recgpt.data.text_file import SEPARATOR, LineCounter, TextForm, _Translation, one_character, open_text
from recgpt.errors import ConfigError
from tests.recgpt.data.logfiles import history, refused, rejects, run, write_text

LAYOUT = {"header": False, "columns": ["u", "i", "r", "t"]}
RATINGS = "1::10::5::100\n1::11::3::200\n2::10::4::100\n1::12::4::300\n"


def translated(data: bytes, delimiter: str, cuts: tuple[int, ...], encoding: str = "utf-8") -> bytes:
    """The pieces between the cuts, one after another, and the end."""
    translate = _Translation(Path("log.dat"), TextForm(delimiter, encoding))
    bounds = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in zip(bounds, bounds[1:], strict=False) if b > a]
    return b"".join(translate(pa.py_buffer(piece)) for piece in [*pieces, b""])


@pytest.mark.parametrize("delimiter", ["::", "<>", "aab"])
def test_a_delimiter_is_found_wherever_the_file_is_cut(delimiter: str) -> None:
    text = f"x{delimiter}é{delimiter[0]}{delimiter}{delimiter}y{delimiter[:-1]}"
    data, expected = text.encode(), text.replace(delimiter, SEPARATOR).encode()
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            assert translated(data, delimiter, (first, second)) == expected


def test_other_encodings_become_utf_8(tmp_path: Path) -> None:
    text = "1,Amélie\n"
    for encoding in ("latin-1", "utf-16", "cp1252"):
        (tmp_path / "a.csv").write_bytes(text.encode(encoding))
        assert open_text(tmp_path / "a.csv", TextForm(",", encoding)).read() == text.encode()
    assert (one_character(","), one_character("::"), one_character("§")) == (",", SEPARATOR, SEPARATOR)


@pytest.mark.parametrize("text", ["", "a\nb\n", "a\nb", "\n\na\n\n\nb\r\n\r\n", "a\r\nb\r\n"])
def test_lines_are_counted_wherever_the_file_is_cut(text: str) -> None:
    data = text.encode()
    for cut in range(len(data) + 1):
        lines = LineCounter()
        assert lines(data[:cut]) + lines(data[cut:]) == data
        assert lines.n == sum(line != "" for line in text.splitlines())


@pytest.mark.parametrize("name", ["ratings.dat", "ratings.dat.gz"])
def test_movielens_files_as_they_come(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(RATINGS.encode()) if name.endswith("gz") else RATINGS.encode())
    titles = "10::Amélie (2001)::Comedy|Romance\n11::Heat (1995)::Action\n"
    (tmp_path / "movies.dat").write_bytes(titles.encode("latin-1"))
    items = {
        "path": str(tmp_path / "movies.dat"),
        "format": {"header": False, "columns": ["id", "title", "genres"], "encoding": "latin-1"},
        "id": "id",
        "title": "title",
        "category": "genres",
    }
    prepared = run(tmp_path, str(tmp_path / name), format=LAYOUT, items=items, time_unit="s")
    assert history(prepared, 1) == [10, 11, 12]
    assert prepared.summary["rows"]["kept"] == 4
    table = prepared.items
    assert table.title is not None
    by_id = dict(zip(table.ids.to_pylist(), table.title, strict=True))
    assert by_id == {10: "Amélie (2001)", 11: "Heat (1995)", 12: None}


def test_a_bad_line_is_told_as_it_stands(tmp_path: Path) -> None:
    path = write_text(tmp_path / "ratings.dat", RATINGS * 100 + "1::13::5\n")
    prepared = run(tmp_path, path, format=LAYOUT)
    assert rejects(prepared) == [("wrong number of fields", "data.format", "1::13::5", 400)]


def test_what_cannot_be_read_has_its_line(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.dat", "1::10\x1f::5::100\n")
    assert "holds the character 0x1F, which stands for '::'" in refused(tmp_path, path, format=LAYOUT)
    latin = "1::Amélie::5::100\n".encode("latin-1")
    (tmp_path / "b.dat").write_bytes(latin)
    line = refused(tmp_path, str(tmp_path / "b.dat"), format=LAYOUT)
    assert line.startswith("data.format.encoding: ")
    assert "b.dat is not written in utf-8 (" in line
    (tmp_path / "c.csv").write_bytes(latin.replace(b"::", b","))
    assert "data.format: encoding, where it is not UTF-8" in refused(tmp_path, str(tmp_path / "c.csv"), format=LAYOUT)
    path = write_text(tmp_path / "ratings.dat", RATINGS)
    for name in ("b.dat", "c.csv"):
        items = {"path": str(tmp_path / name), "format": {"header": False, "columns": list("abcd")}, "id": "a"}
        line = refused(tmp_path, path, format=LAYOUT, items=items | {"title": "b"})
        assert "data.items.format" in line
        assert "encoding" in line


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "punycode"])
def test_an_encoding_that_the_bytes_break(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(b"u,i,t\n1,\x81,3\n")
    with pytest.raises(ConfigError, match=f"is not written in {encoding}"):
        run(tmp_path, str(tmp_path / "a.csv"), format={"encoding": encoding})


def test_a_quote_takes_no_line_with_it(tmp_path: Path) -> None:
    """Where no field stands between quotes, a quote is a character; in .csv, lines within quotes are counted."""
    rows = [f"{n}{{}}{n % 7}{{}}{n}" for n in range(2000)]
    layout = {"header": False, "columns": ["u", "i", "t"]}
    for name, delimiter in (("a.dat", "::"), ("a.tsv", "\t"), ("a.txt", " ")):
        lines = [row.format(delimiter, delimiter) for row in rows]
        lines[1000] = delimiter.join(("1000", '"x', "1000"))
        prepared = run(tmp_path / name.replace(".", ""), write_text(tmp_path / name, "\n".join(lines)), format=layout)
        assert (prepared.summary["rows"]["kept"], prepared.summary["quoted_lines"]) == (2000, 0)
    lines = [row.format(",", ",") for row in rows]
    lines[1000] = '1000,"x,1000'
    path = write_text(tmp_path / "b.csv", "\n".join(lines))
    line = refused(tmp_path, path, format=layout)
    assert line.startswith("data.format.quotes: 999 of 2,000 lines lie inside quotes")
    told = run(tmp_path, path, format=layout | {"quotes": False}).summary
    assert (told["rows"]["kept"], told["quoted_lines"]) == (2000, 0)


def test_fields_of_several_lines(tmp_path: Path) -> None:
    text = "u,i,t\n" + "".join(f'{n},"item\n{n}",{n}\n' for n in range(150))
    path = write_text(tmp_path / "log.csv", text)
    assert "150 of 300 lines lie inside quotes" in refused(tmp_path, path)
    prepared = run(tmp_path, path, format={"quotes": True})
    assert history(prepared, 7) == ["item\n7"]
    assert "150 lines of the log lie inside quotes, as part of the row before them" in prepared.summary["warnings"]
    few = write_text(tmp_path / "few.csv", text[: text.index("90,")])
    told = run(tmp_path / "few", few).summary
    assert (told["rows"]["kept"], told["quoted_lines"]) == (90, 90)
