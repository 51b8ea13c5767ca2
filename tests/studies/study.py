"""What a study is: a YAML file with a question, a criterion, arms and scores.

Every arm is trained and scored once for each seed by `tats` itself, on one thread. The file says
before anything runs what would count as yes, as no and as undecided. What several studies share
(stores, recipe, scores) is in a file of `settings/`, and an arm that one study has run can be
named by another.
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
        shift: How far away it lies in a video at most, in pixels and in both directions.
        options: For `tats prepare`; `{videos}` is the folder of the videos.
    """

    source: str
    cut: tuple[int, int, int] | None = None
    shift: int = 0
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
        of: Study of the same setting that runs this arm, under the same name.
        set: Recipe keys, for all of its stages.
        pretrain: Recipe keys of its pretraining alone.
        pretrained: False of an arm that begins with random weights: fine-tuning starts from
            scratch, and probes look at the untrained encoder.
        scores: Names of the scores it gets, each with more recipe keys; all by default.
        against: Arm that it is compared with, in place of the study's reference.
    """

    of: str | None = None
    set: Overrides = []
    pretrain: Overrides = []
    pretrained: bool = True
    scores: dict[str, Overrides] | None = None
    against: str | None = None


class Network(Form):
    """A tokenizer or teacher that is trained once, for all arms and seeds.

    Attributes:
        recipe: Its recipe.
        store: Name of the store it is trained on.
        set: Recipe keys.
        arm: Name of an arm; its pretraining is the network's, in place of all the above.
    """

    recipe: str = ""
    store: str = ""
    set: Overrides = []
    arm: str | None = None


class Study(Form):
    """A study.

    Attributes:
        question: What is asked.
        criterion: What counts as yes, no and undecided, written before the first run.
        setting: File of `settings/` with those of the following keys that are not given here, and
            with more networks.
        stores: By name.
        networks: By name; recipe keys name them as `NETWORKS/<name>`.
        recipe: Recipe that all arms change.
        pretrain: Recipe keys of pretraining.
        set: Recipe keys of every stage.
        score_store: Name of the store that is probed, fine-tuned on and scored.
        pretrain_store: Name of the store that is pretrained on.
        scores: By name; a list names some of the setting's.
        along: Probe of every kept checkpoint of a pretraining, for its curve.
        arms: By name.
        reference: The arm that others are compared with.
        seeds: Of weights, data order and masks.
    """

    question: str
    criterion: dict[Literal["yes", "no", "undecided"], str]
    setting: str | None = None
    stores: dict[str, Videos]
    networks: dict[str, Network] = {}
    recipe: str
    pretrain_store: str
    score_store: str
    set: Overrides = []
    pretrain: Overrides = []
    scores: dict[str, Score]
    along: Score | None = None
    arms: dict[str, Arm]
    reference: str
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        trained = [one.store for one in self.networks.values() if one.arm is None]
        for name in (self.pretrain_store, self.score_store, *trained):
            if name not in self.stores:
                raise ValueError(f"no store is called {name!r}: {', '.join(self.stores)}")
        against = [arm.against for arm in self.arms.values()]
        taught = [one.arm for one in self.networks.values()]
        for name in (self.reference, *against, *taught):
            if name is not None and name not in self.arms:
                raise ValueError(f"{name!r} is no arm: {', '.join(self.arms)}")
        for name, arm in self.arms.items():
            for score in arm.scores or ():
                if score not in self.scores:
                    raise ValueError(f"arm {name!r}: no score is called {score!r}")
        return self

    def keys_of(self, arm: str) -> Overrides:
        """Return the recipe keys of an arm's pretraining."""
        return [*self.set, *self.arms[arm].set, *self.pretrain, *self.arms[arm].pretrain]

    def scores_of(self, arm: str) -> dict[str, Score]:
        """Return the scores that an arm gets."""
        more = self.arms[arm].scores
        if more is None:
            return self.scores
        known = {name: self.scores[name] for name in more}
        return {
            name: one.model_copy(update={"set": [*one.set, *more[name]]})
            for name, one in known.items()
        }


def read_study(path: Path) -> Study:
    """Read a study's file, with its setting and the arms of other studies.

    Raises:
        ValueError: It names an arm of a study that has none of this name, or another setting, or
            a score that its setting has not.
    """
    given = yaml.safe_load(path.read_text())
    if given.get("setting"):
        shared = path.parent / "settings" / f"{given['setting']}.yaml"
        setting = yaml.safe_load(shared.read_text())
        if isinstance(given.get("scores"), list):
            if unknown := set(given["scores"]) - set(setting["scores"]):
                raise ValueError(f"{shared.name} has no score {', '.join(sorted(unknown))}")
            given["scores"] = {name: setting["scores"][name] for name in given["scores"]}
        networks = setting.get("networks", {}) | given.get("networks", {})
        given = setting | given | {"networks": networks}
    study = Study.model_validate(given)
    taken = {name: _taken(path, name, arm) for name, arm in study.arms.items() if arm.of}
    return study.model_copy(update={"arms": study.arms | taken})


def _taken(path: Path, name: str, arm: Arm) -> Arm:
    """Return an arm as the study that runs it has it."""
    other = yaml.safe_load(path.with_name(f"{arm.of}.yaml").read_text())
    mine = yaml.safe_load(path.read_text())
    if name not in other["arms"] or other.get("setting") != mine.get("setting"):
        raise ValueError(f"{path.name}: `{arm.of}` runs no arm {name!r} of this setting")
    return Arm.model_validate(other["arms"][name]).model_copy(
        update={"of": arm.of, "against": arm.against}
    )
