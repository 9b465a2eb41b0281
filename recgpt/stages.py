"""Finding the applications (pretrain, ...) and the configs that go with the imported recgpt.

A stage is a folder beside `recgpt/` in a checkout and inside it in the wheel. Either way it is
imported as `recgpt.<stage>`, never under a bare top-level name that others could own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from recgpt.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent


class CallableStage(ModuleType):
    """A stage package that runs when called, so that `recgpt.pretrain(config)` works.

    The package and the public function have one name; whichever way the stage was imported,
    calling it calls the `run` of its `main` module.
    """

    def __call__(self, config: Any, **arguments: Any) -> Any:
        """Run the stage: see `run` in its `main` module for the arguments."""
        return importlib.import_module(f"{self.__name__}.main").run(config, **arguments)


def find_folder(name: str) -> Path:
    """The folder that belongs to the imported recgpt: inside it (wheel) or beside it (checkout).

    Raises:
        ConfigError: neither exists.
    """
    places = [PACKAGE / name]
    if (PACKAGE.parent / "pyproject.toml").is_file():  # else: site-packages, where others own the names
        places.append(PACKAGE.parent / name)
    for folder in places:
        if folder.is_dir():
            return folder
    raise ConfigError(f"{name}: no such folder in {PACKAGE} or in a checkout around it; install recgpt again")


def load_stage(name: str) -> CallableStage:
    """Import a stage as `recgpt.<name>`.

    Args:
        name: the stage's folder, e.g. `pretrain`.

    Raises:
        ConfigError: this recgpt has no such stage.
    """
    full_name = f"recgpt.{name}"
    module = sys.modules.get(full_name)
    if module is None:
        source = _stage_source(name)
        if source.parent.parent == PACKAGE:
            module = importlib.import_module(full_name)
        else:
            module = _load_by_path(full_name, source)
    if not isinstance(module, CallableStage):
        raise ConfigError(f"{name}: {module.__file__} is a module of recgpt, not a stage")
    return module


def _stage_source(name: str) -> Path:
    source = find_folder(name) / "__init__.py"
    if not source.is_file():
        raise ConfigError(f"{name}: {source} is missing, so this is no stage of recgpt")
    return source


def _load_by_path(full_name: str, source: Path) -> ModuleType:
    """Import the package at `source` under `full_name`, as the import system would."""
    spec = importlib.util.spec_from_file_location(full_name, source, submodule_search_locations=[str(source.parent)])
    if spec is None or spec.loader is None:
        raise ConfigError(f"{source}: Python cannot import this file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full_name]
        raise
    setattr(sys.modules["recgpt"], full_name.rpartition(".")[2], module)
    return module
