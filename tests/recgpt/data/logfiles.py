"""Small logs for the tests of `recgpt.data`."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgpt.data.prepare import prepare
from recgpt.errors import ConfigError


def write_parquet(path, columns, **options):
    """Write columns (lists or Arrow arrays) as one Parquet file."""
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def write_text(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def config(events, **changes):
    """A `data` section for columns u, i, t."""
    return {"data": {"events": events, "user": "u", "item": "i", "time": "t"} | changes}


def run(tmp_path, events, **changes):
    """Prepare quietly under `tmp_path`."""
    return prepare(config(events, **changes), tmp_path / "prepared", progress=False)


def refused(tmp_path, events, **changes):
    """The one line that `prepare` raises; nothing is left on the disk."""
    with pytest.raises(ConfigError) as error:
        run(tmp_path, events, **changes)
    line = str(error.value)
    assert "\n" not in line
    assert not [path for path in tmp_path.iterdir() if "prepared" in path.name]
    return line


def history(prepared, user):
    """The item ids of a user in order."""
    row = prepared.find_user(user)
    start = prepared.users.offset[row]
    rows = prepared.item_rows(start, start + prepared.users.n_events[row])
    return prepared.items.ids.take(pa.array(rows)).to_pylist()


def rejects(prepared):
    """(reason, field, value, row) of every rejected row, sorted."""
    table = pq.read_table(prepared.folder / "rejects.parquet").to_pylist()
    return sorted(((row["reason"], row["field"], row["value"], row["row"]) for row in table), key=str)
