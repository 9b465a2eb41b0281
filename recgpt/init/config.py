"""`recgpt init`: from a look at a log to a commented config."""

from __future__ import annotations

import glob
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recgpt.config import parse_yaml, validate
from recgpt.data.logs import find_files
from recgpt.data.schema import UNITS_PER_SECOND, DataConfig
from recgpt.data.text_file import COMPRESSED_SUFFIXES
from recgpt.errors import ConfigError
from recgpt.files import atomic_write_text
from recgpt.init.beside import Side, find_sides, side_lines
from recgpt.init.guess import guess_roles
from recgpt.init.names import shown
from recgpt.init.roles import EDIT, Roles, is_known
from recgpt.init.sample import Sample, read_sample
from recgpt.init.values import Use, Values, guess_values

PLAIN = re.compile(r"[A-Za-z_/$][A-Za-z0-9_./$*-]*")
DAY = 86_400
KEYWORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def init(log: str, out: str | Path | None = None) -> dict[str, Any]:
    """Look at a log and write a config for it, with comments that say what was guessed and what to check.

    Args:
        log: a file or a glob: Parquet, CSV, TSV, TXT or DAT, also gzipped.
        out: the config to write; by default the log's name with .yaml in the working directory.

    Returns:
        `{"config", "rows", "guesses", "edits", "checks"}`: guesses by config key; edits, what must be replaced before
        the config can be used, each with its key, its mark and the candidates; checks by config key, what to look at.

    Raises:
        ConfigError: no such log, a damaged one, or `out` is there already.
    """
    files = find_files([log], "LOG")
    path = Path(out) if out is not None else Path(f"{_stem(files, log)}.yaml")
    if path.exists():
        what = "is a folder; name a file" if path.is_dir() else "is there already; choose another --out or remove it"
        raise ConfigError(f"--out: {path} {what}")
    sample = read_sample(files, "LOG")
    if not sample.columns or sample.rows == 0:
        raise ConfigError(f"LOG: {files[0]} has no rows; nothing can be guessed from it")
    roles = guess_roles(sample)
    values = guess_values(sample, roles)
    sides = find_sides(sample, roles)
    folder = Path(log).parent
    for side in sides.values():
        side.path = folder / side.path.name if glob.escape(str(folder)) == str(folder) else side.path
    edits = [
        {"key": f"data.{key}", "mark": EDIT[key], "candidates": candidates}
        for key, candidates in roles.candidates.items()
    ]
    text = "\n".join(_Writer(log, path, sample, roles, values, sides).lines()) + "\n"
    written = parse_yaml(text, str(path))
    validate(DataConfig, written["data"], str(path))
    atomic_write_text(path, text)
    guesses = {key: value for key, value in written["data"].items() if value not in EDIT.values()}
    guesses |= {key: str(side.path) for key, side in sides.items()}
    checks = roles.checks | ({"events": "; ".join(sample.doubts)} if sample.doubts else {})
    return {"config": str(path), "rows": sample.rows, "guesses": guesses, "edits": edits, "checks": checks}


def _stem(files: list[Path], log: str) -> str:
    """The log's name without suffixes; of several files the folder's."""
    if len(files) > 1 or "*" in files[0].name:
        return files[0].resolve().parent.name or "log"
    name = files[0].name
    while Path(name).suffix.lower() in COMPRESSED_SUFFIXES:
        name = Path(name).stem
    return Path(name).stem


def quote(text: str) -> str:
    """A text as YAML: plain where nobody can read it as something else, else between double quotes."""
    if PLAIN.fullmatch(text) and text.lower() not in KEYWORDS:
        return text
    single = text.isprintable() and text.count("'") < text.count('"') + text.count("\\")
    style = "'" if single else '"'
    return yaml.dump(text, Dumper=yaml.SafeDumper, default_style=style, allow_unicode=True, width=1 << 30).strip("\n")


def flow(values: dict[str, Any]) -> str:
    """A section on one line."""
    return "{" + ", ".join(f"{key}: {_flow(value)}" for key, value in values.items()) + "}"


def _flow(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(_flow(each) for each in value)}]"
    return quote(value) if isinstance(value, str) else str(value)


class _Writer:
    """Puts the config's lines together."""

    def __init__(
        self, log: str, path: Path, sample: Sample, roles: Roles, values: Values, sides: dict[str, Side]
    ) -> None:
        self.log, self.path = log, path
        self.sample, self.roles, self.values, self.sides = sample, roles, values, sides

    def lines(self) -> list[str]:
        """All of them."""
        lines = [*self._head(), "data:", *self._log(), *self._roles()]
        lines += self._uses("outcomes", self.values.outcomes, "known after the event: inputs of later events, targets")
        lines += self._uses("context", self.values.context, "known when the item was shown")
        lines += self._ranking()
        for key, side in self.sides.items():
            lines += [f"  # {line}" for line in side_lines(key, side, quote, flow)]
        lines += self._split()
        if self.values.rest:
            lines.append("  # Not used:")
            lines += [f"  #   {quote(name)}: {note}" for name, note in self.values.rest.items()]
        return lines

    def _head(self) -> list[str]:
        sample, files = self.sample, self.sample.files
        rows = "all" if sample.total == sample.rows else "the first"
        of = f" of {sample.total:,}" if sample.total not in (None, sample.rows) else ""
        many = f" (of {len(files):,} files {shown(files[0].name)})" if len(files) > 1 else ""
        edits = [EDIT[key] for key in self.roles.candidates]
        lines = [f"# Guessed from {rows} {sample.rows:,}{of} rows{many}; CHECK marks what to look at."]
        if edits:
            lines.append(f"# Replace {', '.join(edits)} first: no column could be guessed there.")
        path = shlex.quote(str(self.path))
        return [*lines, f"#   recgpt data check {path}", f"#   recgpt pretrain {path}"]

    def _log(self) -> list[str]:
        doubts = "; ".join(self.sample.doubts)
        lines = [f"  events: {quote(self.log)}" + (f"  # CHECK: {doubts}" if doubts else "")]
        settings = self.sample.layout.settings if self.sample.layout is not None else {}
        if settings:
            lines.append(f"  format: {flow(settings)}")
        if self.roles.where is not None:
            lines.append(f"  where: {quote(self.roles.where)}{self._comment('where')}")
        return lines

    def _roles(self) -> list[str]:
        roles, lines = self.roles, []
        for key in ("user", "item"):
            lines.append(f"  {key}: {quote(getattr(roles, key) or EDIT[key])}{self._comment(key)}")
        if roles.order is not None:
            lines.append(f"  order: {quote(roles.order)}{self._comment('order')}")
        if roles.time is not None:
            lines.append(f"  time: {quote(roles.time)}{self._comment('time')}")
            if roles.unit:
                lines.append(f"  time_unit: {roles.unit}")
            if roles.order is None:
                lines.append(f"  # order:{self._comment('order').removeprefix('  #')}")
        return lines

    def _comment(self, key: str) -> str:
        roles = self.roles
        if key in roles.candidates:
            named = [f"{quote(name)} ({self._candidate(name)})" for name in roles.candidates[key]]
            told = "".join(f"; {quote(n)} is {note}" for n, note in roles.told.items() if f"the {key}," in note)
            return f"  # candidates: {', '.join(named) or 'none: ids are integers or short texts'}{told}"
        parts = [roles.notes[key]] if key in roles.notes else []
        parts += [f"CHECK: {roles.checks[key]}"] if key in roles.checks else []
        return f"  # {'; '.join(parts)}" if parts else ""

    def _candidate(self, name: str) -> str:
        column = self.sample.column(name)
        empty = f", {column.missing:.1%} empty: needs where: {quote(is_known(column))}" if column.missing else ""
        return f"{column.distinct:,} distinct{empty}"

    def _uses(self, key: str, uses: dict[str, Use], what: str) -> list[str]:
        if not uses:
            return []
        active = any(use.active for use in uses.values())
        lines = [f"  {key}:  # {what}" if active else f"  # {key}:  # {what}"]
        for name, use in uses.items():
            lines.append(f"    {'' if use.active else '# '}{quote(name)}: {{kind: {use.kind}}}  # {use.note}")
        return lines

    def _ranking(self) -> list[str]:
        """What goes on with outcomes, as comments."""
        binary = [name for name, kind in self.values.active(self.values.outcomes).items() if kind == "binary"]
        if not binary:
            return []
        column = self.sample.column(binary[0])
        where = f"where: {quote(is_known(column))}, " if column.missing else ""
        return [
            f"  # impressions: {{{where}history: online}}  # for `recgpt finetune`: rows that tell what was shown",
            f"  # target: {{outcome: {quote(binary[0])}, min: 1}}  # predict these alone; all events are read",
        ]

    # -- split ---------------------------------------------------------------------------------------------------------

    def _split(self) -> list[str]:
        part, lines = self.values.part, []
        if part is not None and part[1]["valid"] and part[1]["test"]:
            section = {"kind": "column", "column": part[0], "valid": part[1]["valid"], "test": part[1]["test"]}
            lines.append(f"  split: {flow(section)}  # CHECK: {self._parts(part[0])}")
            lines.append(
                "  # split: {kind: leave_one_out}  # each user's last target is tested, the one before validates"
            )
        else:
            lines.append(
                "  split: {kind: leave_one_out}  # each user's last target is tested, the one before validates"
            )
            if part is not None:
                lines.append(f"  # {quote(part[0])} may name the parts of a split: {self._parts(part[0])}")
        times = self._moments()
        if times is not None:
            lines.append(
                f"  # split: {{kind: time, valid: {quote(times[0])}, test: {quote(times[1])}}}"
                "  # by time, as a live system sees it"
            )
        return lines

    def _parts(self, name: str) -> str:
        codes, distinct = self.sample.column(name).coded
        counts = np.bincount(codes[codes >= 0], minlength=len(distinct))
        return ", ".join(f"{quote(str(v))} {n:,}" for v, n in zip(distinct.to_pylist(), counts, strict=True))

    def _moments(self) -> tuple[str, str] | None:
        """Two moments, a tenth and a twentieth of the log before its end; None where its span is not known."""
        if self.roles.time is None:
            return None
        column = self.sample.column(self.roles.time)
        if column.range is None or (column.span is None and self.sample.total != self.sample.rows):
            return None
        low, high = (_seconds(value, self.roles.unit) for value in column.range)
        step = max(DAY, (high - low) // 20 // DAY * DAY)
        if high - low >= 3 * DAY:  # whole days, to the nearest midnight
            test = (high - step + DAY // 2) // DAY * DAY
        else:
            step = (high - low) // 20
            test = high - step
        unit = "datetime64[D]" if step % DAY == 0 else "datetime64[s]"
        return (_iso(test - step, unit), _iso(test, unit)) if step else None


def _iso(seconds: int, unit: str) -> str:
    return str(np.datetime64(seconds, "s").astype(unit))


def _seconds(value: Any, unit: str) -> int:
    if unit:
        return int(value) // UNITS_PER_SECOND[unit]
    moment = np.datetime64(value.replace(tzinfo=None) if hasattr(value, "tzinfo") else value, "s")
    return int(moment.astype(np.int64))


def init_text(result: dict[str, Any]) -> str:
    """What `init` found, for people: the guesses, what to edit and to check, the next two commands."""
    guesses = result["guesses"]
    lines = [f"{result['config']}: guessed from {result['rows']:,} rows"]
    for key in ("user", "item", "order", "time", "time_unit", "where", "format"):
        if key in guesses:
            lines.append(
                f"  {key}: {_flow(guesses[key]) if not isinstance(guesses[key], dict) else flow(guesses[key])}"
            )
    for key in ("outcomes", "context"):
        if guesses.get(key):
            named = (f"{shown(name)} ({use['kind']})" for name, use in guesses[key].items())
            lines.append(f"  {key}: {', '.join(named)}")
    lines.append(f"  split: {flow(guesses['split'])}")
    lines += [f"  {key}, as comments: {guesses[key]}" for key in ("items", "users") if key in guesses]
    lines += [f"CHECK {key}: {text}" for key, text in result["checks"].items()]
    for edit in result["edits"]:
        lines.append(
            f"EDIT {edit['key']} ({edit['mark']}): {', '.join(map(shown, edit['candidates'])) or 'no candidate'}"
        )
    path = shlex.quote(result["config"])
    first = "after these edits" if result["edits"] else "next"
    return "\n".join([*lines, f"{first}: recgpt data check {path}", f"      recgpt pretrain {path}"]) + "\n"
