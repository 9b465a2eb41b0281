import pytest

from recgpt.config import load_config
from recgpt.data.schema import DataConfig, time_point
from recgpt.errors import ConfigError

GOOD = {"events": "log.csv", "user": "u", "item": "i", "time": "t"}


def load(**changes):
    return load_config(DataConfig, GOOD | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"time": None}, "order: missing"),
        ({"order": "row", "events": ["a", "b"]}, "order: row needs a single file, events names 2"),
        ({"events": []}, "no file is named"),
        ({"split": {"kind": "time", "valid": 5, "test": 5}}, "valid 5 must lie before test 5"),
        ({"split": {"kind": "time", "valid": "soon", "test": 5}}, "not an ISO date .*'soon'"),
        ({"split": {"kind": "weekly"}}, "weekly"),
        (
            {"split": {"kind": "column", "column": "p", "valid": ["a"], "test": ["a"]}},
            "'a' is both",
        ),
        ({"target": {"outcome": "like"}}, "'like' is not declared; outcomes has none"),
        ({"context": {"u": {"kind": "categorical"}}}, "'u' is the user id"),
        ({"item": "u"}, "'u' is the user column too"),
        ({"impressions": {}}, "impressions: needs data.outcomes; declare the columns that tell what followed"),
        ({"impressions": {"history": "offline"}}, "impressions.history: .*'online' or 'frozen'.*'offline'"),
        ({"split": {"kind": "where", "valid": "a = 1"}}, "split.where.test: missing"),
        ({"users": {"path": "users.csv"}}, "users.id: missing"),
        ({"format": {"header": False}}, "columns: missing"),
        ({"format": {"delimiter": ""}}, "delimiter: '' parts no fields"),
        ({"format": {"delimiter": '"'}}, "parts no fields"),
        ({"format": {"delimiter": "\0"}}, "parts no fields"),
        ({"format": {"delimiter": "::", "quotes": True}}, "quotes: true needs a delimiter of one ASCII character"),
        ({"format": {"encoding": "latin-9000"}}, "'latin-9000' is no encoding"),
        ({"format": {"encoding": "base64"}}, "'base64' is no encoding"),
        ({"memory_limit": "2"}, "a size with its unit"),
        ({"outcomes": {"x": {"kind": "boolean"}}}, "outcomes.x.kind"),
        ({"max_reject_fraction": True}, "max_reject_fraction.*true"),
        ({"dupplicates": "drop"}, "did you mean 'duplicates'"),
    ],
)
def test_each_mistake_has_its_line(changes, told):
    with pytest.raises(ConfigError, match=told) as error:
        load(**changes)
    assert "\n" not in str(error.value)


def test_time_split_needs_a_clock():
    with pytest.raises(ConfigError, match="kind time needs data.time"):
        load(time=None, order="o", split={"kind": "time", "valid": 1, "test": 2})


def test_outcome_as_context_is_refused():
    both = {"x": {"kind": "numeric"}}
    with pytest.raises(ConfigError, match="'x' is declared as an outcome too"):
        load(context=both, outcomes={"x": {"kind": "regression"}})


def test_outcome_may_be_called_as_a_feature_of_another_table():
    table = {"path": "x.csv", "id": "x", "features": {"click": {"kind": "numeric"}}}
    config = load(outcomes={"click": {"kind": "binary"}}, items=table, users=table, impressions={})
    assert config.impressions.history == "online"


def test_moments():
    # 2022-04-28 is day 19110 of the epoch
    assert time_point("2022-04-28", "ms") == 19_110 * 86_400 * 10**6
    assert time_point("2022-04-28T02:00:00+02:00", "s") == 19_110 * 86_400 * 10**6
    assert time_point(1_651_104_000_123, "ms") == 1_651_104_000_123_000
    assert time_point(1_999, "ns") == 1


def test_digest_ignores_where_the_result_lies():
    assert load().digest() == load(prepared="there", memory_limit="4GB").digest()
    assert load().digest() != load(duplicates="drop").digest()


def test_digest_ignores_which_history_is_read():
    outcomes = {"y": {"kind": "binary"}}
    plain = load(outcomes=outcomes)
    online, frozen, some = (
        load(outcomes=outcomes, impressions=section)
        for section in ({"history": "online"}, {"history": "frozen"}, {"where": "y is not null"})
    )
    assert online.digest() == frozen.digest()
    assert len({plain.digest(), online.digest(), some.digest()}) == 3
    assert frozen.impressions.history == "frozen"
