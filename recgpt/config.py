"""Configuration: typed sections, YAML files that hold differences from the defaults, `key.sub=value`.

A section stands beside the module that it configures; a stage puts sections together. The attribute docstrings of a
section are the only documentation of its fields (`recgpt config show FILE` prints every value and its origin).
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from recgpt.errors import ConfigError

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A group of settings: frozen, unknown keys refused, `true` is no number."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _no_bool_for_number(cls, values: Any) -> Any:
        """Python's True is the integer 1; as text it fails where a number is asked for, with the other errors."""
        if not isinstance(values, Mapping):
            return values
        return {name: _bool_as_text(value) if cls._wants_number(name) else value for name, value in values.items()}

    @classmethod
    def _wants_number(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        leaves = list(_leaves(field.annotation)) if field else []
        return any(leaf in (int, float) for leaf in leaves) and bool not in leaves


def _bool_as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return [_bool_as_text(each) for each in value] if isinstance(value, list | tuple) else value


def _leaves(annotation: Any) -> Iterator[Any]:
    """The plain types inside a (possibly nested) annotation."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _leaves(argument)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `3e-4` as text and `no` as false; here the first is a float and only true/false are booleans."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (a copy, never changed)
        key: [(tag, regexp) for tag, regexp in pairs if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
        for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_FLOAT = re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` or a YAML 1.1 reader would take for something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (a copy, never changed)
        key: yaml.SafeDumper.yaml_implicit_resolvers.get(key, []) + _Loader.yaml_implicit_resolvers.get(key, [])
        for key in yaml.SafeDumper.yaml_implicit_resolvers | _Loader.yaml_implicit_resolvers
    }


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML without executing anything; `where` names the source in errors."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {detail}") from error


def read_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Read a YAML file (or copy a mapping) as plain nested dicts."""
    if isinstance(source, Mapping):
        return _copy(source)
    path = Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"{path}: no such config file{hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8: {error}") from error
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as `data:`, got {type(values).__name__}")
    return values


def _copy(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copy(value) for key, value in values.items()}
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set `key.sub=value` entries in nested dicts; values are read as YAML."""
    result = _copy(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise ConfigError(f"{override!r}: write overrides as key.sub=value, for example optim.lr=3e-4")
        target = result
        for part in parts[:-1]:
            child = target.get(part)
            if not isinstance(child, dict):
                child = target[part] = {}
            target = child
        target[parts[-1]] = parse_yaml(text, override)
    return result


def load_config(cls: type[S], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> S:
    """Read, override and validate a config.

    Args:
        cls: the section that the whole file must fit.
        source: a YAML file or nested dicts.
        overrides: `key.sub=value` strings.

    Raises:
        ConfigError: every problem at once, each on its own line with its key, value and, for a typo, the nearest key.
    """
    values = apply_overrides(read_config(source), overrides)
    return validate(cls, values, "config" if isinstance(source, Mapping) else str(source))


def validate(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """Build section `cls` from nested dicts; see `load_config` for the errors."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        lines = [_describe(cls, detail) for detail in error.errors()]
        raise ConfigError(f"{where}: " + f"\n{where}: ".join(dict.fromkeys(lines))) from error


_FIELD = re.compile(r"^[a-z_][\w.]*: ")


def _describe(cls: type[Section], detail: ErrorDetails) -> str:
    parts = [str(part) for part in detail["loc"]]
    key, value = ".".join(parts), detail["input"]
    if detail["type"] == "extra_forbidden":
        names = _known_keys(cls, parts[:-1])
        near = difflib.get_close_matches(parts[-1], names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(names)}"
        return f"{key}: unknown key (value {_short(value)}); {hint}"
    if detail["type"] == "missing":
        return f"{key}: missing; it has no default, so write it in the config"
    if detail["type"] == "model_type" and key:
        if parts[-1] == detail["ctx"]["class_name"]:  # one of several that may stand there
            key = ".".join(parts[:-1])
        names = _known_keys(cls, parts)
        return f"{key}: a section, not one value (got {_short(value)}); write {key}.KEY, KEY one of {', '.join(names)}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    own = _FIELD.match(message)
    if own and isinstance(value, Mapping):  # a section's own check names the field itself
        return f"{key}.{message}" if key else message
    return f"{key}: {message} (got {_short(value)})" if key else message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(cls: type[Section], parts: Sequence[str]) -> list[str]:
    """Field names of the section(s) that `parts` lead to; names that lead nowhere (union tags) are stepped over."""
    sections: list[type[Section]] = [cls]
    for part in parts:
        inner: list[type[Section]] = []
        for section in sections:
            field = section.model_fields.get(part)
            if field is not None:
                inner += [
                    leaf for leaf in _leaves(field.annotation) if isinstance(leaf, type) and issubclass(leaf, Section)
                ]
        sections = inner or sections
    return sorted({name for section in sections for name in section.model_fields})


def dump_config(section: Section) -> str:
    """Every value of a section as YAML; `load_config` reads it back to an equal section."""
    values = section.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


def config_digest(section: Section) -> str:
    """A stable hex digest of every value."""
    return hashlib.sha256(section.model_dump_json().encode("utf-8")).hexdigest()[:16]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one level of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def show_config(cls: type[Section], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> str:
    """Every resolved value, one a line, with its origin: file, override or default."""
    section = load_config(cls, source, overrides)
    in_file = flatten(read_config(source))
    given = {override.partition("=")[0] for override in overrides}
    lines = []
    for key, value in flatten(section.model_dump(mode="json")).items():
        origin = "default"
        if any(key == name or key.startswith(f"{name}.") for name in in_file):
            origin = "file"
        if any(key == name or key.startswith(f"{name}.") for name in given):
            origin = "override"
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10_000)
        lines.append(_show_line(key, text, origin))
    return "\n".join(lines) + "\n"


def _show_line(key: str, text: str, origin: str) -> str:
    value = text.strip().removesuffix("...").strip()
    return f"{key}: {value}".ljust(60) + f" # {origin}"
