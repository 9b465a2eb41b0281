"""The wheel, an editable install and a bare checkout run the same code, under one name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from recgpt import stages
from recgpt.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent

# What the stage and the public function `recgpt.pretrain` are, as the process sees them.
PROBE = """
import sys, types
sys.path[:0] = sys.argv[1:]
import recgpt
assert "recgpt.pretrain" not in sys.modules
stage = recgpt.pretrain
main = types.ModuleType("recgpt.pretrain.main")
main.run = lambda config, fresh=False: ("ran", config, fresh)
sys.modules["recgpt.pretrain.main"] = main
assert recgpt.pretrain("a.yaml", fresh=True) == ("ran", "a.yaml", True)
import recgpt.pretrain as again
assert again is stage is sys.modules["recgpt.pretrain"]
assert "pretrain" not in sys.modules
from recgpt.stages import find_folder
print(recgpt.__file__, stage.__file__, find_folder("configs"), sep="\\n")
"""


def _probe(folder: Path, *paths: Path, isolated: bool = True) -> list[Path]:
    """Where `recgpt`, its stage and its configs come from, with `paths` first on sys.path."""
    flags = ["-I"] if isolated else []
    command = [sys.executable, *flags, "-c", PROBE, *map(str, paths)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = folder.glob("*.whl")
    return path


def _names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_recgpt_with_its_stages_and_configs_only(wheel: Path) -> None:
    names = _names(wheel)
    assert {name.split("/")[0] for name in names} == {"recgpt", "recgpt-0.1.0.dist-info"}
    code = {name for name in names if name.startswith("recgpt/")}
    wanted = {
        f"{'' if folder == 'recgpt' else 'recgpt/'}{path.relative_to(ROOT).as_posix()}"
        for folder in ("recgpt", "pretrain", "finetune", "serve", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".html", ".typed")
    }
    assert code == wanted
    assert "recgpt-0.1.0.dist-info/licenses/LICENSE" in names


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run([*command, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    [again] = tmp_path.glob("*.whl")
    assert _names(again) == _names(wheel)


def test_the_wheel_runs_its_own_stage(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Names that other distributions own, beside it: they must not be taken for stages.
    for name in ("finetune", "deploy"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise SystemExit('foreign code ran')\n")
    package, stage, configs = _probe(elsewhere, site)
    assert package == site / "recgpt" / "__init__.py"
    assert stage == site / "recgpt" / "pretrain" / "__init__.py"
    assert configs == site / "recgpt" / "configs"
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from recgpt.stages import load_stage\n"
        "from recgpt.errors import ConfigError\n"
        "print(load_stage('finetune').__file__)\n"
        "try: load_stage('deploy')\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    own, refused = done.stdout.splitlines()
    assert Path(own) == site / "recgpt" / "finetune" / "__init__.py"
    assert refused.startswith("deploy: no such folder")


def test_a_bare_checkout_runs_the_folder_beside_recgpt(tmp_path: Path) -> None:
    (tmp_path / "pretrain").mkdir()  # in the current directory: a stranger's
    (tmp_path / "pretrain" / "__init__.py").write_text("raise SystemExit('foreign code ran')\n")
    expected = [ROOT / "recgpt/__init__.py", ROOT / "pretrain/__init__.py", ROOT / "configs"]
    assert _probe(tmp_path, ROOT) == expected
    assert _probe(tmp_path, Path(), ROOT, isolated=False) == expected


def test_an_editable_install_runs_the_checkout_not_the_dead_copies(tmp_path: Path) -> None:
    """The build puts copies of the stages into site-packages/recgpt, first on the path."""
    code = f"import hatchling.build as b; print(b.build_editable({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / done.stdout.strip()) as archive:
        archive.extractall(site)
    assert (site / "recgpt" / "pretrain" / "__init__.py").is_file()
    [entry] = site.glob("*.pth")
    checkout = Path(entry.read_text(encoding="utf-8").strip())
    assert checkout == ROOT
    expected = [ROOT / "recgpt/__init__.py", ROOT / "pretrain/__init__.py", ROOT / "configs"]
    assert _probe(tmp_path, site, checkout) == expected


def test_a_missing_stage_is_told() -> None:
    with pytest.raises(ConfigError, match="^nonesuch: no such folder in .* install recgpt again$"):
        stages.load_stage("nonesuch")
    with pytest.raises(ConfigError, match="^configs: .*__init__.py is missing"):
        stages.load_stage("configs")
    with pytest.raises(ConfigError, match="^data: .* is a module of recgpt, not a stage$"):
        stages.load_stage("data")


def test_a_stage_that_fails_to_import_is_not_left_half_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("import recgpt.no_such_module\n")
    monkeypatch.setattr(stages, "PACKAGE", tmp_path / "recgpt")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            stages.load_stage("broken")
    assert "recgpt.broken" not in sys.modules


def test_warnings_raised_in_recgpt_are_errors(tmp_path: Path) -> None:
    """The filter of pyproject.toml works: a warning inside recgpt fails a test, one outside not."""
    (tmp_path / "test_it.py").write_text(
        "import warnings\n"
        "def warn(module):\n"
        "    code = 'import warnings; warnings.warn(\"w\")'\n"
        "    exec(compile(code, 'x.py', 'exec'), {'__name__': module})\n"
        "def test_inside(): warn('recgpt.data.read')\n"
        "def test_outside(): warn('another')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest"]
    command += ["-c", str(ROOT / "pyproject.toml"), str(tmp_path / "test_it.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "FAILED" in done.stdout
    assert "test_inside" in done.stdout.partition("FAILED")[2]
