"""Config: what YAML texts mean, what is refused and how it is told, what a saved config reads back as."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import yaml
from pydantic import Field, ValidationError

from recgpt.config import (
    Section,
    apply_overrides,
    config_digest,
    dump_config,
    flatten,
    load_config,
    parse_yaml,
    read_config,
    show_config,
)
from recgpt.errors import ConfigError
from recgpt.stages import load_stage

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
PretrainConfig = importlib.import_module(f"{load_stage('pretrain').__name__}.config").PretrainConfig
FinetuneConfig = importlib.import_module(f"{load_stage('finetune').__name__}.config").FinetuneConfig
DATA = {"events": "log.parquet", "user": "u", "item": "i", "time": "t"}


class Fast(Section):
    kind: Literal["fast"]
    speed: float = 1.0


class Slow(Section):
    kind: Literal["slow"]
    patience: int = 1


class Inner(Section):
    rate: float = 0.1
    size: int = Field(default=3, ge=1)


class Outer(Section):
    count: int = 1
    share: float = 0.5
    on: bool = False
    name: str = "x"
    maybe: int | None = None
    either: bool | int = 0
    mode: Annotated[Fast | Slow, Field(discriminator="kind")] = Fast(kind="fast")
    sizes: list[int] = []
    pair: tuple[float, float] = (0.0, 1.0)
    inner: Inner = Inner()


def load(text: str, *overrides: str) -> Outer:
    return load_config(Outer, parse_yaml(text, "test") or {}, overrides)


def refused(source: Any, *overrides: str, cls: type[Section] = Outer) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(cls, source, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 0.0003),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("+7", 7),
        ("-12", -12),
        ("0", 0),
        ("9223372036854775807", 2**63 - 1),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        # YAML 1.1 makes booleans, base-60 numbers, octals, dates and ints with _ of these.
        *((text, text) for text in ("no", "on", "off", "y", "Yes", "True", "12:30", "007", "08", "0x10", "1_000")),
        *((text, text) for text in ("2024-05-01", "2024-05-01T12:00:00", "1.2.3", "e5")),
    ],
)
def test_what_a_text_means(text: str, value: Any) -> None:
    read = parse_yaml(f"a: {text}", "test")["a"]
    assert read == value
    assert type(read) is type(value)


def test_numbers_keep_their_type_in_a_section() -> None:
    config = load("share: 3e-4\ncount: 7\npair: [1e-3, 2]\n")
    assert (config.share, config.count, config.pair) == (0.0003, 7, (0.001, 2.0))


@pytest.mark.parametrize("text", ["a: [1", "a: 1\n b: 2", "a: !!python/object/apply:os.system ['true']", "\t- x"])
def test_invalid_yaml_is_one_line_with_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refused(path)
    assert message.startswith(f"{path}: not valid YAML: ")
    assert "\n" not in message


# -- files and overrides -----------------------------------------------------------------------------------------------


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.yaml").write_text("{}")
    message = refused(tmp_path / "ml1m.yaml")
    assert message == f"{tmp_path / 'ml1m.yaml'}: no such config file; did you mean {tmp_path / 'ml-1m.yaml'}?"
    assert refused(tmp_path / "none" / "x.yaml") == f"{tmp_path / 'none' / 'x.yaml'}: no such config file"
    assert refused(tmp_path).endswith("no such config file")  # a folder


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b", "list"), ("just words", "str"), ("5", "int")])
def test_not_a_mapping(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert refused(path) == f"{path}: expected sections such as `data:`, got {kind}"


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert load_config(Outer, path) == Outer()


def test_not_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: \xff\xfe")
    assert refused(path).startswith(f"{path}: not a text file in UTF-8")


def test_overrides() -> None:
    values = {"inner": {"rate": 1.0}, "name": "y"}
    config = load_config(Outer, values, ["inner.size=5", "name=a=b", "mode={kind: slow}", "maybe=null", "share=3e-4"])
    assert config.inner == Inner(rate=1.0, size=5)
    assert (config.name, config.mode, config.maybe, config.share) == ("a=b", Slow(kind="slow"), None, 0.0003)
    assert values == {"inner": {"rate": 1.0}, "name": "y"}  # the caller's dict stays
    assert load_config(Outer, {}, ["count=1", "count=2"]).count == 2  # the last one counts
    assert apply_overrides({"a": 1}, ["a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize("text", ["count", "=3", "inner.=3", ".size=3", "a..b=1"])
def test_a_malformed_override(text: str) -> None:
    assert refused({}, text) == f"{text!r}: write overrides as key.sub=value, for example optim.lr=3e-4"


def test_an_override_that_is_no_yaml() -> None:
    assert refused({}, "sizes=[1").startswith("sizes=[1: not valid YAML")


# -- errors ------------------------------------------------------------------------------------------------------------


def test_all_errors_at_once_each_on_a_line() -> None:
    message = refused({"count": "many", "inner": {"rat": 1, "size": 0}, "nmae": "x", "mode": {"kind": "slow", "sp": 2}})
    lines = message.split("\n")
    assert len(lines) == 5
    assert all(line.startswith("config: ") for line in lines)
    assert any(re.search(r"count: .*integer.* \(got 'many'\)", line) for line in lines)
    assert "config: inner.rat: unknown key (value 1); did you mean 'rate'?" in lines
    assert any(re.search(r"inner\.size: .*greater than or equal to 1 \(got 0\)", line) for line in lines)
    assert "config: nmae: unknown key (value 'x'); did you mean 'name'?" in lines
    assert any(line.startswith("config: mode.slow.sp: unknown key (value 2)") for line in lines)


def test_an_unknown_key_without_a_near_one_lists_the_known() -> None:
    assert refused({"inner": {"zzz": 1}}) == "config: inner.zzz: unknown key (value 1); known keys here: rate, size"


def test_a_missing_key_and_a_section_s_own_check() -> None:
    message = refused({"data": {"events": "x", "user": "u", "time": "t"}}, cls=PretrainConfig)
    assert message == "config: data.item: missing; it has no default, so write it in the config"
    message = refused({"data": DATA, "model": {"heads": 3}}, cls=PretrainConfig)
    assert message == "config: model.heads: 3 must divide dim 64 into an even width"


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("cuont: 3\n")
    assert refused(path) == f"{path}: cuont: unknown key (value 3); did you mean 'count'?"


def test_a_long_value_is_cut() -> None:
    assert len(refused({"count": "x" * 1000})) < 200


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", True),
        ("share", False),
        ("maybe", True),
        ("inner.size", True),
        ("inner.rate", True),
        ("sizes", [1, True]),
        ("pair", [False, True]),
        ("mode", {"kind": "fast", "speed": True}),
    ],
)
def test_true_is_no_number(key: str, value: Any) -> None:
    source: dict[str, Any] = {key: value}
    if "." in key:
        section, _, name = key.partition(".")
        source = {section: {name: value}}
    message = refused(source)
    assert message.startswith(f"config: {key}")
    assert "true" in message or "false" in message


def test_true_where_a_boolean_may_stand() -> None:
    config = load("on: true\neither: true\n")
    assert config.on is True
    assert config.either is True
    assert load("mode: {kind: slow, patience: 2}").mode == Slow(kind="slow", patience=2)
    assert "mode" in refused({"mode": True})
    split = {"kind": "time", "valid": 0, "test": True}
    assert "split.time.test" in refused({"data": DATA | {"split": split}}, cls=PretrainConfig)


def test_one_value_in_place_of_a_section() -> None:
    told = "config: inner: a section, not one value (got 0.5); write inner.KEY, KEY one of rate, size"
    assert refused({}, "inner=0.5") == told
    message = refused({"data": DATA | {"target": "bought"}}, cls=PretrainConfig)  # a section or a word
    assert "data.target: a section, not one value (got 'bought'); write data.target.KEY, KEY one of min," in message


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", ["share", "inner.rate"])
def test_nan_and_infinity_are_refused(key: str, text: str) -> None:
    message = refused({}, f"{key}={text}")
    assert message.startswith(f"config: {key}: ")
    assert "finite" in message


def test_frozen() -> None:
    config = Outer()
    with pytest.raises(ValidationError, match="frozen"):
        config.count = 2  # type: ignore[misc]


# -- saving and showing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_reads_back_equal(path: Path, tmp_path: Path) -> None:
    kind = FinetuneConfig if path.parent.name == "finetune" else PretrainConfig
    config = load_config(kind, path)
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(config), encoding="utf-8")
    again = load_config(kind, saved)
    assert again == config
    assert dump_config(again) == dump_config(config)
    assert config_digest(again) == config_digest(config)


@pytest.mark.parametrize(
    "text",
    ["3e-4", "1e5", "08", "007", "no", "true", "null", "12:30", "2024-05-01", "", " a", "#", "日本語", "a: b", "-"],
)
def test_any_text_reads_back_as_text(text: str) -> None:
    config = Outer(name=text)
    assert load_config(Outer, parse_yaml(dump_config(config), "dump")) == config
    shown = parse_yaml(show_config(Outer, {"name": text}), "show")
    assert shown["name"] == text


def test_the_saved_text_means_the_same_in_plain_yaml() -> None:
    values = {"name": "no", "share": 3e-4, "on": True, "sizes": [1, 2]}
    assert yaml.safe_load(dump_config(Outer.model_validate(values))).items() >= values.items()


def test_the_digest_sees_every_value() -> None:
    digests = [config_digest(c) for c in (Outer(), Outer(count=2), Outer(inner=Inner(size=4)), Outer(maybe=1))]
    assert len(set(digests)) == 4
    assert config_digest(Outer()) == digests[0]


def test_show_tells_value_and_origin(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("inner: {size: 5}\nname: z\nmode: {kind: slow}\n")
    shown = {}
    for line in show_config(Outer, path, ["inner.rate=3e-4", "name=w"]).splitlines():
        value, _, origin = line.rpartition("# ")
        key, _, text = value.partition(": ")
        shown[key] = (text.strip(), origin)
    assert shown["inner.size"] == ("5", "file")
    assert shown["inner.rate"] == ("0.0003", "override")
    assert shown["name"] == ("w", "override")
    assert shown["mode.kind"] == ("slow", "file")
    assert shown["count"] == ("1", "default")
    assert shown.keys() == flatten(load_config(Outer, path).model_dump(mode="json")).keys()


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": {}}) == {"a.b.c": 1, "a.d": [2], "e": {}}


def test_read_config_copies() -> None:
    inner = {"a": {"b": 1}}
    copy = read_config(inner)
    copy["a"]["b"] = 2
    assert inner == {"a": {"b": 1}}


# -- documentation -----------------------------------------------------------------------------------------------------


def reachable(section: type[Section], found: set[type[Section]]) -> Iterator[type[Section]]:
    """A section and all that its fields lead to."""
    if section in found:
        return
    found.add(section)
    yield section
    waiting = [field.annotation for field in section.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        waiting += get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from reachable(annotation, found)


SECTIONS = list(reachable(PretrainConfig, set()))


def test_the_walk_reaches_the_deep_ones() -> None:
    names = {section.__name__ for section in SECTIONS}
    assert {"TimeSplit", "OutcomeConfig", "IdEmbeddingConfig", "WindowConfig", "WandbConfig", "LossConfig"} <= names


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_is_documented(section: type[Section]) -> None:
    assert section.__doc__
    silent = {name for name, field in section.model_fields.items() if not field.description}
    # A discriminator of one value is told by its section's own docstring.
    alone = {name for name in silent if name == "kind" and len(get_args(section.model_fields[name].annotation)) == 1}
    assert silent == alone
