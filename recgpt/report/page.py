"""`recgpt report RUN`: the page, put together and written."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from recgpt.errors import RecGPTError
from recgpt.files import atomic_write_text
from recgpt.inspection.run import look, saved
from recgpt.progress import Told, progress_bar
from recgpt.report.blocks import PERCENT, Head, Notice, Section
from recgpt.report.geometry import geometry
from recgpt.report.head import head
from recgpt.report.material import Material
from recgpt.report.outcomes import ranking, read_impressions
from recgpt.report.retrieval import ranks_of, retrieval
from recgpt.report.stories import stories
from recgpt.report.training import training
from recgpt.report.validation import read_lists

FILE = "report.html"
TEMPLATE = "template.html"


def report(run: str | Path) -> Path:
    """Write RUN/report.html: one file that shows a run to people and needs nothing else, no network either.

    Everything on it comes from the run's files or is computed from its model and log; the same files give the same
    page. The test part is never read: what `recgpt evaluate` saved is shown.

    Args:
        run: a finished run's folder, pretrained or fine-tuned.

    Returns:
        The file.

    Raises:
        ConfigError: no finished run, or its log has moved or changed.
        RecGPTError: the file cannot be written.
    """
    path = Path(run) / FILE
    with progress_bar() as told:
        told("opening the run", 0, 0)
        material = Material.open(run)
        text = render(*build(material, told))
        try:
            atomic_write_text(path, text)
        except OSError as error:
            raise RecGPTError(f"{path}: cannot be written ({error.strerror}); free that place and try again") from error
    return path


def build(material: Material, told: Told) -> tuple[Head, list[Section]]:
    """Head and sections of the page.

    Args:
        material: the run.
        told: called with what is being done and how far it is.
    """
    lists = read_lists(material.trained, lambda done, of: told("ranking the validation part", done, of))
    impressions = None if material.ranker is None else read_impressions(material)
    sections = []
    told("drawing", 0, 0)
    if impressions is not None:
        sections.append(ranking(impressions))
    elif material.ranker is not None:
        notice = Notice("Nothing is saved of this run's impressions.", f"recgpt evaluate {material.path}")
        sections.append(Section("ranking", "Outcomes of impressions", [notice]))
    ranks = ranks_of(material, lists)
    sections.append(retrieval(material, ranks, lists))
    told("telling of users", 0, 0)
    sections.append(stories(material, lists))
    told("drawing", 0, 0)
    found = saved(material.trained, material.ranker)
    if found is None:
        found = look(material.trained, material.ranker, lambda what: told(what, 0, 0))
    sections += [training(material), geometry(found)]
    return head(material, impressions, ranks), sections


def render(top: Head, sections: list[Section]) -> str:
    """The page as text; titles and ids are escaped, charts are not."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    return environment.get_template(TEMPLATE).render(head=top, sections=sections)


def _inline(text: str) -> str:
    """Escape a text; what stands between backticks becomes code, a number keeps its % on the line."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text.replace(" %", PERCENT)))
