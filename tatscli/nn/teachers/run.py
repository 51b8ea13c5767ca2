"""Teachers trained here: the encoder of a run (SALT, Li et al. 2025, arXiv 2509.24317)."""

from __future__ import annotations

from torch import Tensor, nn

from tatscli.errors import CheckpointError, RecipeError
from tatscli.nn.load import load_encoder, open_checkpoint, refuse_tokenizer
from tatscli.nn.teachers.base import Given, Source, Teacher, first_blocks
from tatscli.nn.vit import Encoder, build_encoder
from tatscli.recipe import schema
from tatscli.recipe.schema import Recipe


class RunTeacher(Teacher):
    """An encoder that sees whole clips, up to a block where one is named.

    Raises:
        RecipeError: If it has no such block.
    """

    def __init__(
        self, name: str, given: Given, recipe: Recipe, encoder: Encoder, layer: int | None
    ) -> None:
        super().__init__(name, given, mean=recipe.data.mean, std=recipe.data.std)
        self.grid = recipe.grid
        self.sees = (recipe.data.frames, *recipe.data.view_size)
        self.width = encoder.width
        self.encoder = encoder
        if layer is not None:
            encoder.blocks = first_blocks(encoder.blocks, layer, name)
            encoder.norm = nn.Identity()  # type: ignore[assignment]

    def features(self, video_BCTHW: Tensor) -> Tensor:
        """Return the encoder's latents of all tokens."""
        encoder = self.encoder
        tokens_BND: Tensor = encoder(encoder.embed(encoder.cubes(video_BCTHW)))
        return tokens_BND


def open_run(config: schema.TeacherTarget, given: Given) -> Source:
    """Open the encoder of a run or checkpoint, pretrained or fine-tuned.

    Raises:
        RecipeError: If there is none, or it is a tokenizer.
    """
    assert config.run is not None
    try:
        loaded = open_checkpoint(config.run)
        refuse_tokenizer(loaded.checkpoint)
        encoder = build_encoder(loaded.recipe.model, loaded.recipe.grid, drop_path=0.0)
        if not given.meta:
            load_encoder(encoder, loaded.checkpoint)
    except CheckpointError as error:
        raise RecipeError(f"`targets`: a `teacher`: {error.message}", error.hint) from error
    layer = config.layer if isinstance(config.layer, int) else None
    teacher = RunTeacher(config.run, given, loaded.recipe, encoder, layer)
    return Source(
        teacher,
        str(loaded.checkpoint.path),
        "" if given.meta else loaded.checkpoint.file_digest(),
    )
