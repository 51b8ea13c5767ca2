"""What a study is: a YAML file with a question, a criterion, arms and scores.

Every arm is trained and scored once for each seed by `tats` itself, on one thread. The file says
before anything runs what would count as yes, as no and as undecided.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Overrides = list[str]


class Form(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Videos(Form):
    """A store, and how `tats prepare` makes it.

    Attributes:
        source: Folder of videos in the data folder.
        cut: Top, left and side of the square that is cut out of every video first, in pixels.
        options: For `tats prepare`; `{videos}` is the folder of the videos.
    """

    source: str
    cut: tuple[int, int, int] | None = None
    options: list[str] = []


class Score(Form):
    """Something an arm is scored by.

    Attributes:
        protocol: That of `tats evaluate`; `finetuned` fine-tunes first.
        set: Recipe keys.
    """

    protocol: Literal["finetuned", "knn", "linear", "attentive"]
    set: Overrides = []


class Arm(Form):
    """One of the trainings that are compared.

    Attributes:
        set: Recipe keys, for all of its stages.
        pretrain: Recipe keys of its pretraining alone.
        pretrained: False of an arm that begins with random weights: fine-tuning starts from
            scratch, and probes look at the untrained encoder.
        scores: Names of the scores it gets; all by default.
    """

    set: Overrides = []
    pretrain: Overrides = []
    pretrained: bool = True
    scores: list[str] | None = None


class Study(Form):
    """A study.

    Attributes:
        question: What is asked.
        criterion: What counts as yes, no and undecided, written before the first run.
        stores: By name.
        recipe: Recipe that all arms change.
        pretrain: Recipe keys of pretraining.
        set: Recipe keys of every stage.
        score_store: Name of the store that is probed, fine-tuned on and scored.
        pretrain_store: Name of the store that is pretrained on.
        scores: By name.
        arms: By name.
        reference: The arm that others are compared with.
        seeds: Of weights, data order and masks.
    """

    question: str
    criterion: dict[Literal["yes", "no", "undecided"], str]
    stores: dict[str, Videos]
    recipe: str
    pretrain_store: str
    score_store: str
    set: Overrides = []
    pretrain: Overrides = []
    scores: dict[str, Score]
    arms: dict[str, Arm]
    reference: str
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        for name in (self.pretrain_store, self.score_store):
            if name not in self.stores:
                raise ValueError(f"no store is called {name!r}: {', '.join(self.stores)}")
        if self.reference not in self.arms:
            raise ValueError(f"`reference: {self.reference}` is no arm: {', '.join(self.arms)}")
        for name, arm in self.arms.items():
            for score in arm.scores or ():
                if score not in self.scores:
                    raise ValueError(f"arm {name!r}: no score is called {score!r}")
        return self

    def scores_of(self, arm: str) -> dict[str, Score]:
        """Return the scores that an arm gets."""
        names = self.arms[arm].scores
        return self.scores if names is None else {name: self.scores[name] for name in names}


def read_study(path: Path) -> Study:
    """Read a study's file."""
    return Study.model_validate(yaml.safe_load(path.read_text()))
