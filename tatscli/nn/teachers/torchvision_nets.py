"""Teachers of torchvision: its classifiers of pictures and videos, at any node of their graph."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from tatscli.errors import RecipeError
from tatscli.files import sha256_of
from tatscli.nn.teachers.base import IMAGENET, ByFrame, Given, Source, Teacher
from tatscli.recipe import schema


@dataclass(frozen=True, slots=True)
class Layout:
    """How the output of a node is laid out.

    Attributes:
        places: Its extent in (time,) height and width; of a sequence of tokens that does not fit,
            their number.
        channels: Which axis has the features.
        extra: Tokens before those of places: a class token.
    """

    places: tuple[int, ...]
    channels: int
    extra: int = 0

    @classmethod
    def of(cls, shape: Sequence[int], wanted: tuple[int, ...]) -> Layout | None:
        """Read it off an output's shape; None if it has no places.

        Args:
            shape: Of the output for one picture or clip.
            wanted: The places it should have, which decide where the shape does not.
        """
        if len(shape) == 3:
            extra = shape[1] - math.prod(wanted)
            return cls(wanted, 2, extra) if extra in (0, 1) else cls((shape[1],), 2)
        if len(shape) != 2 + len(wanted):
            return None
        first, last = tuple(shape[2:]), tuple(shape[1:-1])
        return cls(last, -1) if last == wanted != first else cls(first, 1)

    def tokens(self, output: Tensor) -> Tensor:
        """Return the output as tokens: (X, S, D)."""
        return output.movedim(self.channels, -1).flatten(1, -2)[:, self.extra :]


class Node(nn.Module):
    """A network as far as one node of its graph.

    Args:
        network: The whole of it.
        node: Its name in `torchvision.models.feature_extraction`.

    Raises:
        ValueError: If there is no such node.
    """

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        self.network = create_feature_extractor(network, {node: "features"})

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the output of the node."""
        found: Tensor = self.network(pixels)["features"]
        return found


class VisionTeacher(Teacher):
    """The output of a node as tokens, for whole clips or frame by frame."""

    def __init__(
        self,
        config: schema.TeacherTarget,
        given: Given,
        node: Node,
        layout: Layout,
        width: int,
        *,
        video: bool,
    ) -> None:
        name = str(config.torchvision)
        mean, std = _normalisation(name)
        super().__init__(name, given, mean=config.mean or mean, std=config.std or std)
        self.node = node
        self.layout = layout
        self.width = width
        self.by_frame = None if video else ByFrame(given.tubelet, config.frames)
        self.sees = (0, 0, 0)
        self.grid = layout.places if video else (given.grid[0], *layout.places)

    def features(self, video_BCTHW: Tensor) -> Tensor:
        """Return the node's output at every place."""
        if self.by_frame is None:
            return self.layout.tokens(self.node(video_BCTHW))
        features_XSD = self.layout.tokens(self.node(self.by_frame.pictures(video_BCTHW)))
        return self.by_frame.tokens(features_XSD, len(video_BCTHW))


def open_torchvision(config: schema.TeacherTarget, given: Given) -> Source:
    """Open a model of torchvision with weights from a local file.

    Raises:
        RecipeError: If there is no such model or node, the node's output has no places, or the
            weights cannot be used.
    """
    from torchvision.models import get_model, get_model_builder

    name, weights = str(config.torchvision), Path(str(config.weights))
    _refuse_unknown(name)
    video = get_model_builder(name).__module__.startswith("torchvision.models.video")
    wanted = given.grid if video else given.grid[1:]
    if not weights.is_file():
        raise RecipeError(
            f"`targets`: the teacher's `weights: {weights}` do not exist",
            hint="give a local file; nothing is downloaded",
        )
    with torch.device("meta"):  # shapes alone, for nothing
        model = get_model(name, weights=None).eval()
        pixels = torch.zeros(1, 3, *(given.clip if video else given.clip[1:]))
        node = str(config.layer or _last_node(model, pixels, wanted, name))
        shape = _shape_at(model, node, pixels, name)
    layout = Layout.of(shape, wanted)
    if layout is None:
        raise RecipeError(
            f"`targets`: `layer: {node}` of the teacher `{name}` gives {list(shape[1:])}, without "
            "places for tokens",
            hint="an earlier layer, such as the one before the pooling; null takes that",
        )
    if not given.meta:
        model = get_model(name, weights=None)
        _load(model, weights, name)
    teacher = VisionTeacher(
        config, given, Node(model.eval(), node), layout, shape[layout.channels], video=video
    )
    return Source(teacher, str(weights), "" if given.meta else sha256_of([weights]))


def _refuse_unknown(name: str) -> None:
    """Find out that torchvision has no such classifier; its other models fetch their backbones.

    Raises:
        RecipeError: If so.
    """
    import torchvision.models as pictures
    import torchvision.models.video as videos

    known = [*pictures.list_models(module=pictures), *pictures.list_models(module=videos)]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise RecipeError(
            f"`targets`: torchvision has no classifier `{name}` to be a teacher",
            hint=f"did you mean `{near[0]}`?" if near else "such as `resnet50` or `r3d_18`",
        )


def _shape_at(model: nn.Module, node: str, pixels: Tensor, name: str) -> tuple[int, ...]:
    """Return the shape of a node's output.

    Raises:
        RecipeError: If there is no such node, or the model does not take such pixels.
    """
    from torchvision.models.feature_extraction import get_graph_node_names

    try:
        return tuple(Node(model, node)(pixels).shape)
    except ValueError as error:
        nodes = get_graph_node_names(model)[1]
        near = get_close_matches(node, nodes, n=3) or nodes[-3:]
        raise RecipeError(
            f"`targets`: the teacher `{name}` has no `layer: {node}`",
            hint="such as " + ", ".join(f"`{one}`" for one in near),
        ) from error
    except (RuntimeError, AssertionError, AttributeError) as error:
        raise _not_taken(pixels, name, error) from error


def _last_node(model: nn.Module, pixels: Tensor, wanted: tuple[int, ...], name: str) -> str:
    """Return the last node whose output has more than one place.

    Raises:
        RecipeError: If the model does not take such pixels.
    """
    from torchvision.models.feature_extraction import (
        create_feature_extractor,
        get_graph_node_names,
    )

    nodes = get_graph_node_names(model)[1]
    try:
        outputs = create_feature_extractor(model, {node: node for node in nodes})(pixels)
    except (RuntimeError, AssertionError, AttributeError) as error:
        raise _not_taken(pixels, name, error) from error
    for node in reversed(nodes):
        output = outputs[node]
        layout = Layout.of(output.shape, wanted) if isinstance(output, Tensor) else None
        if layout is not None and (layout.places == wanted or math.prod(layout.places) > 1):
            return node
    return nodes[-1]


def _not_taken(pixels: Tensor, name: str, error: Exception) -> RecipeError:
    shape = " x ".join(map(str, pixels.shape[2:]))
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RecipeError(
        f"`targets`: the teacher `{name}` cannot take {shape} pixels: {reason}",
        hint="`size` resizes the clip for the teacher",
    )


def _load(model: nn.Module, path: Path, name: str) -> None:
    """Load weights from a file of tensors alone.

    Raises:
        RecipeError: If it is another file, or the weights are not the model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RecipeError(
            f"`targets`: the teacher's `weights: {path}` hold more than tensors, which is not read",
            hint="save the `state_dict()` alone, best as safetensors",
        ) from error
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"`targets`: the teacher's `weights: {path}` cannot be read: {reason}"
        ) from error
    wanted = {key: one.shape for key, one in model.state_dict().items()}
    given = {key: one.shape for key, one in state.items() if isinstance(one, Tensor)}
    if given != wanted or len(state) != len(given):
        wrong = [key for key in wanted if given.get(key) != wanted[key]]
        foreign = [key for key in state if key not in wanted]
        raise RecipeError(
            f"`targets`: the teacher's `weights: {path}` are not those of `{name}`: "
            f"{len(wanted) - len(wrong)} of {len(wanted)} tensors match; the first that does not "
            f"is `{(wrong + foreign)[0]}`"
        )
    model.load_state_dict(state)


def _normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and deviation of a model's published weights, ImageNet's without any."""
    from torchvision.models import get_model_weights

    published = list(get_model_weights(name))
    if not published:
        return IMAGENET
    transforms = published[-1].transforms()
    return transforms.mean, transforms.std
