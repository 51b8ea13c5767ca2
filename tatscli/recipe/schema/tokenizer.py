"""Tokenizers: how frames become codes, trained here or named by their folder."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.section import Count, NonNegative, Positive, Ratio, Section, Share


class Perceptual(Section):
    """A loss on the features of an image classifier (LPIPS without its learned weights)."""

    network: Literal["vgg16", "alexnet", "squeezenet1_1"] = "vgg16"
    """torchvision's model."""
    weights: str
    """File with its weights, such as torchvision's `vgg16-397923af.pth`; nothing is downloaded."""
    weight: Positive = 1.0
    """Weight in the loss."""


class Discriminator(Section):
    """A PatchGAN that learns to tell reconstructions from frames; that of a tokenizer of videos
    sees them whole, with 3D convolutions."""

    start: Annotated[int, Field(ge=0)] = 20_000
    """Optimiser step from which it takes part; LlamaGen's."""
    weight: Positive = 0.5
    """Weight of its verdict in the tokenizer's loss; LlamaGen's."""
    loss: Literal["hinge", "nonsaturating"] = "hinge"
    """How verdicts are scored: `hinge` (LlamaGen, taming), or the logistic loss of StyleGAN and
    MAGVIT."""
    r1: NonNegative = 0.0
    """Weight of half the squared gradient of its verdict on frames (R1, Mescheder et al. 2018),
    which keeps it smooth. MAGVIT's is 10, of a discriminator with one verdict a video; ours is the
    mean over its patches."""
    width: Count = 64
    """Channels of its first layer, twice as many in each of the next, at most eight times."""
    layers: Count = 3
    """Layers that halve the picture, and the time of a video."""
    base_lr: Positive | None = None
    """Learning rate per 256 videos; null is that of `optim`."""


class CnnTokenizer(Section):
    """What the tokenizers share: a residual CNN down to `stride` and back up."""

    stride: Literal[4, 8, 16, 32] = 16
    """Pixels along the side of a code."""
    patch: Literal[1, 2, 4] = 4
    """Pixels along the side of what the first layer reads at once; less is slower and sharper."""
    widths: Annotated[list[Count], Field(min_length=1)] = [64, 128, 256]
    """Channels at each resolution, from one pixel a `patch` to one a `stride`, halving from one to
    the next."""
    blocks: Count = 2
    """Residual blocks at each resolution, in encoder and decoder."""
    reconstruction: Literal["l2", "l1"] = "l2"
    """Distance of pixels in [-1, 1] that training lowers."""
    perceptual: Perceptual | None = None
    """Null needs no weights of a classifier."""
    discriminator: Discriminator | None = None
    """Null trains without one: an encoder for targets needs none."""

    @model_validator(mode="after")
    def _a_width_for_each_resolution(self) -> Self:
        levels = (self.stride // self.patch).bit_length()
        if self.stride < self.patch or len(self.widths) != levels:
            raise ValueError(
                f"from `patch: {self.patch}` to `stride: {self.stride}` there are {levels}"
                f" resolutions, and `widths: {self.widths}` names {len(self.widths)}"
            )
        return self


class VqTokenizer(CnnTokenizer):
    """Codes are the nearest of a learned codebook (VQ-VAE with a moving-average codebook)."""

    kind: Literal["vq"]
    codes: Count = 1024
    """Size of the codebook."""
    code_width: Count = 8
    """Values of a code's vector; LlamaGen's."""
    cosine: bool = False
    """Compare directions: vectors and codes are scaled to length 1 (LlamaGen)."""
    decay: Ratio = 0.99
    """How much of the codebook's moving averages an update keeps."""
    commitment: NonNegative = 0.25
    """Weight of the squared distance of the encoder's vectors to their codes."""
    kmeans: Annotated[int, Field(ge=0)] = 10
    """Rounds of k-means over the first batch that make the first codebook; 0 draws it at random."""
    restart: Share = 0.05
    """A code used less often than this share of an even use starts again at a vector of the
    batch; 0 never restarts one."""


class FsqTokenizer(CnnTokenizer):
    """Codes are the cells of a fixed grid (FSQ, Mentzer et al. 2023, arXiv 2309.15505)."""

    kind: Literal["fsq"]
    levels: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [8, 5, 5, 5]
    """Steps along each axis of the grid; their product is the number of codes."""
    entropy: NonNegative = 0.0
    """Weight of a term that makes each choice clear and all codes as likely; VidTok's is 0.1."""
    commitment: NonNegative = 0.0
    """Weight of the squared distance of bounded values to their steps; VidTok's is 0.25."""


class AdaptiveTokenizer(CnnTokenizer):
    """A tokenizer of videos that learns which of its codes matter (LVMAE, arXiv 2411.13683): a 3D
    CNN after MAGVIT, FSQ, and scores. It takes windows of `data.frames` frames."""

    kind: Literal["adaptive"]
    tubelet: Literal[1, 2, 4] = 2
    """Frames of a code; LVMAE's."""
    levels: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [8, 8, 8, 8, 8, 8]
    """Steps along each axis of the grid of codes; 2^18 codes, LVMAE's number."""
    keep: Count | None = 768
    """Codes of a window that reach the decoder in training, those of the highest scores; the rest
    are zeros. LVMAE's, of 1,568. null keeps all, and learns no scores."""
    first: Literal["beside", "among"] = "beside"
    """The first slice of a window is always kept: `beside` the `keep` others, or `among` them.
    LVMAE does not say."""
    topk: Literal["straight_through", "perturbed"] = "straight_through"
    """How the choice passes a gradient to the scores; LVMAE does not say."""
    softness: Positive = 0.25
    """Of the choice, in deviations of a clip's scores: width of the sigmoid that
    `straight_through` takes the gradient of, or deviation of the noise of `perturbed`. Ours."""
    samples: Count = 64
    """Draws of noise of `topk: perturbed`. Ours."""
    scorer_width: Count = 64
    """Channels of the two convolutions that score. Ours."""
    entropy: NonNegative = 0.0
    """Weight of a term that makes each choice clear and all codes as likely; VidTok's is 0.1. Codes
    that are not kept count as zeros."""
    commitment: NonNegative = 0.0
    """Weight of the squared distance of bounded values to their steps; VidTok's is 0.25."""
    ema: Ratio | None = 0.999
    """Momentum of the moving average of the weights, which is what a checkpoint's model is; less at
    first: after n steps at most (1 + n) / (10 + n). null keeps the weights themselves. MAGVIT's."""
    train: Literal["all", "decoder"] = "all"
    """`decoder` trains nothing else: a second stage for sharper pictures, after `--init`, in which
    codes and scores stay as they are."""


Tokenizer = Annotated[
    VqTokenizer | FsqTokenizer | AdaptiveTokenizer,
    Field(discriminator="kind"),
]


class RunTokenizer(Section):
    """A tokenizer trained by `tats pretrain`."""

    kind: Literal["run"]
    path: str
    """Run or checkpoint folder."""


class DiffusersTokenizer(Section):
    """A `VQModel` or `AutoencoderVidTok` of diffusers (extra `tokenizers`)."""

    kind: Literal["diffusers"]
    path: str
    """Folder with `config.json` and safetensors weights."""


class TamingTokenizer(Section):
    """A VQGAN of taming-transformers (extra `tokenizers`)."""

    kind: Literal["taming"]
    path: str
    """The `.ckpt` or `.safetensors` file; no code in it is run."""


TrainedTokenizer = Annotated[
    RunTokenizer | DiffusersTokenizer | TamingTokenizer,
    Field(discriminator="kind"),
]
