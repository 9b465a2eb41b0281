"""The item side table."""

import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from recgpt.data.hashing import hash_id
from recgpt.data.schema import DataConfig, ItemFeatureConfig
from recgpt.data.text import ngram_vectors
from tests.recgpt.data.logfiles import config, refused, run, write_parquet, write_text

SIDE = {
    "id": [30, 10, 10, None, 99],
    "kind": ["film", "book", "film", "x", "y"],
    "name": ["Thirty", None, "again", "none", "unseen"],
    "size": [3.5, None, 7.0, 1.0, 1.0],
    "vector": [[1.0, 2.0], [3.0, 4.0], None, [0.0, 0.0], [0.0, 0.0]],
}
SECTION = {
    "id": "id",
    "category": "kind",
    "title": "name",
    "embedding": "vector",
    "features": {"size": {"kind": "numeric"}, "kind": {"kind": "categorical"}},
}


@pytest.fixture
def log(tmp_path):
    return write_parquet(tmp_path / "log.parquet", {"u": [1, 1, 1], "i": [10, 20, 30], "t": [1, 2, 3]})


def side(tmp_path, **changes):
    return write_parquet(tmp_path / "side.parquet", SIDE | changes)


def test_columns_are_joined_by_id(tmp_path, log):
    prepared = run(tmp_path, log, items=SECTION | {"path": side(tmp_path)})
    items = prepared.items
    row = {item: k for k, item in enumerate(items.ids.to_pylist())}
    order = [row[10], row[20], row[30]]
    assert items.category[order].tolist() == [hash_id("book"), 0, hash_id("film")]
    assert [items.title[k] for k in order] == [None, None, "Thirty"]
    np.testing.assert_array_equal(items.features["size"][order], np.float32([np.nan, np.nan, 3.5]))
    np.testing.assert_array_equal(items.features["kind"][order], items.category[order])
    np.testing.assert_array_equal(items.embedding[order], np.float32([[3, 4], [np.nan, np.nan], [1, 2]]))
    schema = prepared.schema
    assert (schema.content_dim, schema.has_category) == (2, True)
    assert schema.features == {"size": "numeric", "kind": "categorical"}
    told = "\n".join(prepared.summary["warnings"])
    assert "1 of 3 items of the log have no row in data.items, such as 20" in told
    assert "1 rows of data.items repeat an id: the first row counts" in told
    assert "1 rows of data.items have a null or empty id" in told
    assert "1 items of data.items have no event in the log: left out" in told


def test_text_side_table(tmp_path, log):
    path = write_text(tmp_path / "side.csv", "id,kind,size\n10,film,2.5\n20,,\n")
    section = {
        "path": path,
        "id": "id",
        "category": "kind",
        "features": {"size": {"kind": "numeric"}},
    }
    items = run(tmp_path, log, items=section).items
    row = {item: k for k, item in enumerate(items.ids.to_pylist())}
    assert items.category[[row[10], row[20]]].tolist() == [hash_id("film"), 0]
    np.testing.assert_array_equal(items.features["size"][[row[10], row[20]]], np.float32([2.5, np.nan]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"id": ["a", "b", "c", "d", "e"]},
            "data.items.id: column 'id' is string, but the log's item ids are int64",
        ),
        (
            {"id": [1.0, 2.0, 3.0, 4.0, 5.0]},
            "data.items.id: column 'id' is double; integers or text",
        ),
        (
            {"size": [float("nan")] * 5},
            "data.items.features.size: column 'size' holds NaN or infinity",
        ),
        ({"size": ["a"] * 5}, "data.items.features.size: column 'size' is string, not a number"),
        ({"vector": [1.0] * 5}, "data.items.embedding: column 'vector' is double, not list<float>"),
        (
            {"vector": [[1.0], [1.0, 2.0], [1.0], None, None]},
            "holds vectors of widths [1, 2]; one width is needed",
        ),
        ({"vector": [[1.0, float("nan")]] * 5}, "the vector of item "),
        ({"kind": [1.5] * 5}, "data.items.category: column 'kind' is double; integers or text"),
    ],
)
def test_bad_side_tables(tmp_path, log, changes, told):
    line = refused(tmp_path, log, items=SECTION | {"path": side(tmp_path, **changes)})
    assert told in line


VECTORS = {"item": [30, 10, 10, 99, None], "v": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]]}


def vectors_file(tmp_path, name="vectors.parquet", **changes):
    return {"path": write_parquet(tmp_path / name, VECTORS | changes), "id": "item", "column": "v"}


def by_item(items, values):
    row = {item: k for k, item in enumerate(items.ids.to_pylist())}
    return values[[row[10], row[20], row[30]]]


def test_vectors_from_a_file_of_their_own(tmp_path, log):
    section = {"path": side(tmp_path), "id": "id", "title": "name", "vectors": vectors_file(tmp_path)}
    prepared = run(tmp_path, log, items=section)
    items = prepared.items
    np.testing.assert_array_equal(by_item(items, items.embedding), np.float32([[3, 4], [np.nan, np.nan], [1, 2]]))
    assert prepared.schema.content_dim == 2
    told = "\n".join(prepared.summary["warnings"])
    for line in (
        "1 of 3 items of the log have no row in data.items.vectors, such as 20: they have no vector",
        "1 rows of data.items.vectors repeat an id: the first row counts",
        "1 rows of data.items.vectors have a null or empty id",
        "1 items of data.items.vectors have no event in the log: left out",
    ):
        assert line in told


def test_a_changed_vectors_file_is_prepared_anew(tmp_path, log):
    section = {"path": side(tmp_path), "id": "id", "vectors": vectors_file(tmp_path)}
    first = run(tmp_path, log, items=section)
    assert run(tmp_path, log, items=section).summary["seconds"] == first.summary["seconds"]  # opened, not prepared
    vectors_file(tmp_path, v=[[1.0, 2.0], [3.0, 5.0], [5.0, 6.0], [7.0, 8.0], [9.0, 10.0]])
    second = run(tmp_path, log, items=section)
    assert by_item(second.items, second.items.embedding)[0].tolist() == [3, 5]
    assert second.content != first.content


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"item": ["a", "b", "c", "d", "e"]}, "data.items.vectors.id: column 'item' is string, but the log's item ids"),
        ({"v": [1.0] * 5}, "data.items.vectors.column: column 'v' is double, not list<float>"),
        ({"v": [[1.0], [1.0, 2.0], [1.0], [], []]}, "data.items.vectors.column: column 'v' holds vectors of widths"),
        ({"v": [[1.0, float("inf")]] * 5}, "data.items.vectors.column: the vector of item "),
        ({"item": [1, 2, 3, 4, 5]}, "data.items.vectors.column: column 'v' has no vector for any item of the log"),
    ],
    ids=str,
)
def test_bad_vectors_files(tmp_path, log, changes, told):
    section = {"path": side(tmp_path), "id": "id", "vectors": vectors_file(tmp_path, **changes)}
    assert refused(tmp_path, log, items=section).startswith(told)


def test_a_missing_vectors_file_or_column(tmp_path, log):
    section = {"path": side(tmp_path), "id": "id"}
    vectors = {"path": f"{tmp_path}/none.parquet", "id": "item", "column": "v"}
    assert refused(tmp_path, log, items=section | {"vectors": vectors}).startswith("data.items.vectors.path: no file")
    vectors = vectors_file(tmp_path) | {"column": "w"}
    line = refused(tmp_path, log, items=section | {"vectors": vectors})
    assert line.startswith("data.items.vectors.column: no column 'w' in vectors.parquet")
    (tmp_path / "v.npy").write_bytes(b"")
    vectors = {"path": f"{tmp_path}/v.npy", "id": "item", "column": "v"}
    line = refused(tmp_path, log, items=section | {"vectors": vectors})
    assert line.startswith("data.items.vectors.path: 'v.npy' is neither Parquet")


TEXT = {"id": "id", "text": ["name", "kind"], "text_width": 16}


def test_text_columns_become_vectors(tmp_path, log):
    prepared = run(tmp_path, log, items=TEXT | {"path": side(tmp_path)})
    items = prepared.items
    expected = ngram_vectors(["book", None, "Thirty film"], 16)  # items 10, 20, 30
    np.testing.assert_allclose(by_item(items, items.embedding), expected, atol=1e-6)
    assert prepared.schema.content_dim == 16
    assert "1 of 3 items have no text in data.items.text" in prepared.summary["warnings"]


def test_lists_of_texts_and_one_column_by_its_name(tmp_path, log):
    lists = [["Thirty", "film"], ["book"], ["x"], None, []]
    items = run(tmp_path, log, items=TEXT | {"path": side(tmp_path, kind=lists), "text": "kind"}).items
    expected = ngram_vectors(["book", None, "Thirty film"], 16)
    np.testing.assert_allclose(by_item(items, items.embedding), expected, atol=1e-6)


def test_text_of_a_text_table(tmp_path, log):
    path = write_text(tmp_path / "side.csv", "id,name\n10,A Book\n20,\n")
    items = run(tmp_path, log, items={"path": path, "id": "id", "text": "name", "text_width": 16}).items
    np.testing.assert_allclose(by_item(items, items.embedding), ngram_vectors(["A Book", None, None], 16), atol=1e-6)


def test_a_sentence_encoder_instead(tmp_path, log, monkeypatch):
    class Encoder:
        def __init__(self, name, **options):
            assert name == "some/model"

        def encode(self, texts, **options):
            return np.array([[len(text), 1.0, 2.0] for text in texts])

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder))
    prepared = run(tmp_path, log, items=TEXT | {"path": side(tmp_path), "encoder": "some/model"})
    items = prepared.items
    np.testing.assert_array_equal(by_item(items, items.embedding)[[0, 2]], [[4, 1, 2], [11, 1, 2]])
    assert prepared.schema.content_dim == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text": ["size"]}, "data.items.text: column 'size' is double, not text; cast it to text"),
        ({"text": ["vector"]}, "data.items.text: column 'vector' is list<"),
        ({"text": ["nam"]}, "data.items.text.0: no column 'nam' in side.parquet; did you mean 'name'?"),
        ({"text": ["name"]}, "data.items.text: no item of the log has a text in name; name other columns"),
        ({"encoder": "some/model"}, "data.items.encoder: 'some/model' needs sentence-transformers"),
    ],
    ids=str,
)
def test_bad_texts(tmp_path, log, monkeypatch, changes, told):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    names = [""] * 5 if changes == {"text": ["name"]} else SIDE["name"]
    assert refused(tmp_path, log, items=TEXT | {"path": side(tmp_path, name=names)} | changes).startswith(told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"embedding": "vector"}, "data.items.text: embedding is given too"),
        ({"vectors": {"path": "v.parquet", "id": "i", "column": "v"}}, "data.items.text: vectors is given too"),
        ({"text": [], "encoder": "some/model"}, "data.items.encoder: there is nothing to encode"),
        ({"text": ["name", "name"]}, "data.items.text: a column stands twice"),
        ({"text_width": 4}, "data.items.text_width: "),
    ],
    ids=str,
)
def test_one_source_of_content(tmp_path, log, changes, told):
    assert told in refused(tmp_path, log, items=TEXT | {"path": side(tmp_path)} | changes)


def test_other_settings_of_text_are_another_prepared_log():
    def digest(**changes):
        section = config("log.parquet", items={"path": "side.parquet", "id": "id"} | changes)["data"]
        return DataConfig.model_validate(section).digest()

    given = [{}, {"text": "a"}, {"text": "b"}, {"text": "a", "text_width": 16}, {"text": "a", "encoder": "m"}]
    assert len({digest(**changes) for changes in given}) == len(given)


def test_missing_side_table_and_column(tmp_path, log):
    line = refused(tmp_path, log, items={"path": f"{tmp_path}/none.parquet", "id": "id"})
    assert line.startswith("data.items.path: no file matches")
    line = refused(tmp_path, log, items={"path": side(tmp_path), "id": "idd"})
    assert line.startswith("data.items.id: no column 'idd' in side.parquet; did you mean 'id'?")


def test_large_and_fixed_lists(tmp_path, log):
    vectors = pa.array(SIDE["vector"], pa.list_(pa.float32(), 2))
    fixed = run(tmp_path, log, items=SECTION | {"path": side(tmp_path, vector=vectors)}).items.embedding
    large = pa.array(SIDE["vector"], pa.large_list(pa.float64()))
    other = run(tmp_path, log, items=SECTION | {"path": side(tmp_path, vector=large)}).items.embedding
    np.testing.assert_array_equal(fixed, other)


TAGS = [["a", "b", "a"], ["c"], [], None, ["b"]]
JOINED = ["a| b |a", "c", "|", None, "b"]


@pytest.mark.parametrize(
    ("values", "separator"),
    [(TAGS, None), (pa.array(TAGS, pa.large_list(pa.large_string())), None), (JOINED, "|")],
)
def test_several_categories(tmp_path, log, values, separator):
    feature = {"kind": "categories", "separator": separator}
    section = {"path": side(tmp_path, tags=values), "id": "id", "features": {"tags": feature}}
    prepared = run(tmp_path, log, items=section)
    expected = [[hash_id("c"), 0], [0, 0], [hash_id("a"), hash_id("b")]]  # of 10, 20 and 30
    np.testing.assert_array_equal(by_item(prepared.items, prepared.items.features["tags"]), expected)
    assert prepared.schema.features == {"tags": "categories"}


def test_several_categories_of_a_text_table_and_lists_of_integers(tmp_path, log):
    path = write_text(tmp_path / "side.csv", "id;genres\n10;7, 8\n20;\n30;8\n")
    section = {"path": path, "id": "id", "format": {"delimiter": ";"}}
    text = run(tmp_path, log, items=section | {"features": {"genres": {"kind": "categories", "separator": ","}}}).items
    assert by_item(text, text.features["genres"]).tolist() == [[hash_id(7), hash_id(8)], [0, 0], [hash_id(8), 0]]
    section = {"path": side(tmp_path, genres=[[8], [7, 8], None, None, None]), "id": "id"}
    lists = run(tmp_path, log, items=section | {"features": {"genres": {"kind": "categories"}}}).items
    np.testing.assert_array_equal(lists.features["genres"], text.features["genres"])


@pytest.mark.parametrize(
    ("values", "separator", "told"),
    [
        (["a|b"] * 5, None, "column 'tags' is string, not a list; tell its separator, such as '|'"),
        ([1, 2, 3, 4, 5], None, "column 'tags' is int64, not a list; declare it categorical"),
        ([1, 2, 3, 4, 5], "|", "is int64, which separator: '|' does not part; declare it categorical, without one"),
        (TAGS, "|", "which separator: '|' does not part; drop the separator"),
        ([[0.5]] * 5, None, "column 'tags' holds lists of double; integers or text are needed"),
        ([[]] * 5, None, "column 'tags' has no value for any item; leave it out"),
        ([list("abc"), [str(n) for n in range(65)]] + [["d"]] * 3, None, "holds 65 values for item 10, and at most 64"),
    ],
)
def test_bad_categories(tmp_path, log, values, separator, told):
    feature = {"kind": "categories", "separator": separator}
    section = {"path": side(tmp_path, tags=values), "id": "id", "features": {"tags": feature}}
    line = refused(tmp_path, log, items=section)
    assert line.startswith("data.items.features.tags: ")
    assert told in line


def test_a_separator_that_no_text_holds_is_told(tmp_path, log):
    feature = {"kind": "categories", "separator": "."}
    section = {"path": side(tmp_path, tags=JOINED), "id": "id", "features": {"tags": feature}}
    prepared = run(tmp_path, log, items=section)
    told = "data.items.features.tags: no text of column 'tags' holds the separator '.', so each is one value"
    assert told in prepared.summary["warnings"]
    assert by_item(prepared.items, prepared.items.features["tags"])[2].tolist() == [hash_id("a| b |a")]


def test_a_long_separator_is_no_pattern(tmp_path, log):
    feature = {"kind": "categories", "separator": ".*"}
    tags = ["a.*b", "x", "a.b.*c", None, None]
    items = run(
        tmp_path, log, items={"path": side(tmp_path, tags=tags), "id": "id", "features": {"tags": feature}}
    ).items
    assert by_item(items, items.features["tags"])[2].tolist() == [hash_id("a"), hash_id("b")]


def test_a_separator_parts_categories_alone():
    with pytest.raises(ValueError, match="separator: '|' parts the values of kind: categories, not of categorical"):
        ItemFeatureConfig.model_validate({"kind": "categorical", "separator": "|"})


@pytest.mark.parametrize("table", ["items", "users"])
def test_a_wrong_column_is_told_before_the_sort(tmp_path, log, table, monkeypatch):
    def sorts(*given):
        raise AssertionError("the log is sorted before the side tables are read")

    monkeypatch.setattr("recgpt.data.prepare.Preparation._sorted", sorts)
    section = {"path": side(tmp_path), "id": "id", "features": {"siz": {"kind": "numeric"}}}
    line = refused(tmp_path, log, **{table: section})
    assert f"data.{table}.features.siz: no column 'siz' in side.parquet; did you mean 'size'?" in line
