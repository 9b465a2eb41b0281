"""The whole config of a finetuning run."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recgpt.config import Section
from recgpt.data.schema import DataConfig
from recgpt.model import ModelConfig
from recgpt.ranker import ScoreConfig, check_score
from recgpt.ranking.network import HeadsConfig
from recgpt.train import OptimConfig, RunConfig
from recgpt.train.stage import with_some_end

EPOCHS = 5


class TasksConfig(Section):
    """What is predicted, from what, and how the event model takes part."""

    outcomes: list[str] = Field(min_length=1)
    """Binary outcomes of data.outcomes; each has a probability of its own."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Outcome -> weight of its log loss in the sum; 1 where it is not named."""
    backbone_lr: float | None = Field(None, ge=0)
    """The event model's learning rate as a factor of optim.lr; 0 leaves it frozen, bit for bit. By default .1 from a
    pretrained run and 1 from scratch."""
    stale: float = Field(0.0, ge=0, le=1)
    """Share of the training impressions that read a state some events old (log-uniform), as between two exports."""
    fit_on: Literal["train", "train_valid"] = "train"
    """Parts whose impressions are learned from; the second is for a refit, when all choices are made."""
    score: ScoreConfig = ScoreConfig()
    """How probabilities become the score that candidates are sorted by."""

    @model_validator(mode="after")
    def _named(self) -> "TasksConfig":
        if len(set(self.outcomes)) != len(self.outcomes):
            raise ValueError(f"outcomes: a name stands twice in {self.outcomes}; remove one")
        for name in self.weights:
            if name not in self.outcomes:
                raise ValueError(f"weights.{name}: not among outcomes; they are {', '.join(self.outcomes)}")
        check_score(self.score, self.outcomes)
        return self


class FinetuneConfig(Section):
    """One finetuning run."""

    data: DataConfig
    """The log, with its impressions."""
    model: ModelConfig = ModelConfig()
    """The event model; with `--from` the pretrained one's, where a setting is not given here."""
    heads: HeadsConfig = HeadsConfig()
    """The ranking heads."""
    tasks: TasksConfig
    """The outcomes."""
    optim: OptimConfig = OptimConfig()
    """Batches and the optimiser."""
    run: RunConfig = RunConfig(epochs=EPOCHS, evaluate_every=0.25, select="best", patience=4)
    """The run folder, limits and logging; by default 5 epochs, validated four times in each, ended by 4 validations
    without a better log loss."""

    @model_validator(mode="before")
    @classmethod
    def _some_end(cls, values: Any) -> Any:
        values = with_some_end(values, EPOCHS)
        if isinstance(values, dict) and isinstance(values.get("run"), dict):
            run = {"evaluate_every": 0.25} | values["run"]
            if run.get("select", "best" if run["evaluate_every"] else "last") == "best":
                run = {"select": "best", "patience": 4} | run
            values = values | {"run": run}
        return values

    @model_validator(mode="after")
    def _coherent(self) -> "FinetuneConfig":
        if self.data.impressions is None:
            raise ValueError("data.impressions: missing; say which events are impressions (`impressions: {}` = all)")
        for name in self.tasks.outcomes:
            outcome = self.data.outcomes.get(name)
            if outcome is None:
                known = ", ".join(self.data.outcomes) or "none"
                raise ValueError(f"tasks.outcomes: {name!r} is not declared; data.outcomes has {known}")
            if outcome.kind != "binary":
                raise ValueError(f"tasks.outcomes: {name!r} is {outcome.kind}; the heads predict binary outcomes")
        return self
