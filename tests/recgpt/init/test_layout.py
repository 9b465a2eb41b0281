"""How text files are laid out."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from recgpt.errors import ConfigError
from recgpt.init.layout import TextLayout, file_kind, find_layout


def layout(folder: Path, text: str | bytes, name: str = "log.csv") -> TextLayout:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return find_layout(folder / name, "LOG")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", ".parquet"),
        ("a.PQ", ".parquet"),
        ("a.b.csv", ".csv"),
        ("a.tsv.gz", ".tsv"),
        ("a.txt.zst", ".txt"),
        ("a.dat", ".dat"),
        ("a.json", None),
        ("a.gz", None),
        ("a", None),
    ],
)
def test_kinds_of_files(name: str, kind: str | None) -> None:
    assert file_kind(Path(name)) == kind


@pytest.mark.parametrize(
    ("name", "text", "delimiter", "default"),
    [
        ("a.csv", "user,item\n1,2\n", ",", True),
        ("a.csv", "user;item\n1;2\n", ";", False),
        ("a.csv", "user;item;price\n1;2;3,5\n2;2;4,5\n", ";", False),  # a comma in every line but the first
        ("a.csv", "user\titem\n1\t2\n", "\t", False),
        ("a.csv", "user|item\n1|2\n", "|", False),
        ("a.tsv", "user\titem\n1\t2\n", "\t", True),
        ("a.txt", "1 2\n1 3\n", " ", True),
        ("a.txt", "1,2\n1,3\n", ",", False),
        ("a.txt", "user\titem\ttime\n1\t2\t2020-01-01 10:00:00\n", "\t", False),
        ("a.csv", "user,time\n1,2020-01-01 10:00:00\n2,2020-01-01 10:00:00\n", ",", True),
        ("a.csv", 'user,title\n1,"a, b; c"\n2,"d, e; f"\n', ",", True),
        ("a.csv", "1::2::5\n1::3::4\n", "::", False),
        ("a.dat", "1::2::5\n1::3::4\n", "::", True),
        ("a.dat", "1\t2\n1\t3\n", "\t", False),
        ("movies.dat", "1::Alien: Resurrection::A|B\n2::Heat::A|B\n", "::", True),
        ("a.csv", "x\n1\n2\n", ",", True),
    ],
)
def test_delimiters(tmp_path: Path, name: str, text: str, delimiter: str, default: bool) -> None:
    found = layout(tmp_path, text, name)
    assert (found.delimiter, found.default) == (delimiter, default)
    assert ("delimiter" in found.settings) == (not default)


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("user,item\n1,2\n1,3\n", True),
        ("1,2\n1,3\n", False),
        ("1 , 2.5,2020-01-01\n1,3.5,2020-01-02\n", False),
        ("yes,null,on,1\n1,2,3,4\n1,3,3,4\n", True),
        ("a1,b1\na1,b2\na2,b1\n", False),  # text alone; the first line's values come again
        ("reader,book\nann,dune\nann,emma\n", True),  # text alone; the words are known
        ("foo,bar\nann,dune\nann,emma\n", True),  # text alone, nothing known: a header is likelier
        ("1,2\n", True),  # one line
    ],
)
def test_headers(tmp_path: Path, text: str, header: bool) -> None:
    assert layout(tmp_path, text).header == header


def test_doubts_are_told(tmp_path: Path) -> None:
    assert layout(tmp_path, "user,item\n1,2\n1,3\n").doubts == []
    assert "not certain" in layout(tmp_path, "foo,bar\nann,dune\nann,emma\n").doubts[0]
    assert "taken for the header" in layout(tmp_path, "user,item\n").doubts[0]
    assert "set format.delimiter" in layout(tmp_path, "x\n1\n2\n").doubts[-1]


def test_names_become_distinct_and_speakable(tmp_path: Path) -> None:
    """The engine does not tell case apart, and keeps names that begin with two underscores for itself."""
    found = layout(tmp_path, "a,b,a,A,,__row,a_2\n" + "1,2,3,4,5,6,7\n" * 3)
    assert found.columns == ["a", "b", "a_3", "A_4", "column_5", "column__row", "a_2"]
    assert found.settings == {"columns": found.columns}
    without = layout(tmp_path, "1,2,3\n1,3,3\n")
    assert without.settings == {"header": False, "columns": ["c1", "c2", "c3"]}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    found = layout(tmp_path, b"\xef\xbb\xbfuser,item\r\n1,2\r\n")
    assert (found.columns, found.settings) == (["user", "item"], {})


def test_compressed_files(tmp_path: Path) -> None:
    assert layout(tmp_path, gzip.compress(b"user;item\n1;2\n"), "a.csv.gz").delimiter == ";"
    with pytest.raises(ConfigError, match="cannot be read"):
        layout(tmp_path, b"no gzip", "b.csv.gz")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "is empty"),
        (b"\nuser,item\n1,2\n", "begins with an empty line"),
        ("user,item\n1,2\n".encode("utf-16-le"), "no text in UTF-8"),
        (b"PK\x00\x01", "no text in UTF-8"),
        (b'"user\nid",item\n1,2\n', "a name with a line break"),
    ],
)
def test_files_that_prepare_would_not_read(tmp_path: Path, text: bytes, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^LOG: .*{told}"):
        layout(tmp_path, text)


def test_encodings(tmp_path: Path) -> None:
    found = layout(tmp_path, "user,item\n1,Amélie\n".encode("utf-16"))
    assert (found.columns, found.settings, found.doubts) == (["user", "item"], {"encoding": "utf-16"}, [])
    found = layout(tmp_path, "user,item\n1,Amélie\n".encode("latin-1"))
    assert found.settings == {"encoding": "latin-1"}
    assert "look at its accents" in found.doubts[-1]


def test_quotes(tmp_path: Path) -> None:
    """Elsewhere than in .csv they are told where fields stand between them."""
    assert layout(tmp_path, 'user,title\n1,"a, b"\n2,"c, d"\n').settings == {}
    assert layout(tmp_path, 'user\ttitle\n1\t"a\tb"\n2\tc\n3\td\n', "a.tsv").columns == ["user", "title"]
    assert layout(tmp_path, 'user\ttitle\n1\t"a"\n2\tc\n', "b.tsv").settings == {"quotes": True}
    assert layout(tmp_path, 'user\ttitle\n1\t"a" b\n2\tc\n', "c.tsv").settings == {}
    assert layout(tmp_path, 'user::title\n1::"a"\n2::c\n', "d.dat").settings == {}
