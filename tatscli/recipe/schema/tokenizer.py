"""Tokenizers, which turn frames into codes: those to train, and trained ones by folder."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.section import Count, NonNegative, Positive, Ratio, Section, Share


class Perceptual(Section):
    """Perceptual loss on the features of an image classifier (LPIPS without learned weights)."""

    network: Literal["vgg16", "alexnet", "squeezenet1_1"] = "vgg16"
    """torchvision model."""
    weights: str
    """Local weights file, such as torchvision's `vgg16-397923af.pth`; nothing is downloaded."""
    weight: Positive = 1.0
    """Weight in the loss."""


class Discriminator(Section):
    """PatchGAN discriminator; for video tokenizers with 3D convolutions over whole clips."""

    start: Annotated[int, Field(ge=0)] = 20_000
    """Optimiser step at which the adversarial loss starts; LlamaGen's value."""
    weight: Positive = 0.5
    """Weight of the adversarial loss; LlamaGen's value."""
    loss: Literal["hinge", "nonsaturating"] = "hinge"
    """`hinge` (LlamaGen, taming) or `nonsaturating`, the logistic loss of StyleGAN and MAGVIT."""
    r1: NonNegative = 0.0
    """Weight of the R1 gradient penalty (Mescheder et al. 2018), with the factor 1/2. MAGVIT has
    10, for one output per video; ours averages over patches."""
    width: Count = 64
    """Channels of the first layer, doubling per layer up to eight times this."""
    layers: Count = 3
    """Number of layers that halve the resolution, and for videos also the time."""
    base_lr: Positive | None = None
    """Learning rate per 256 videos; null: `optim.base_lr`."""


class CnnTokenizer(Section):
    """Settings that the tokenizers share: a residual CNN encoder and decoder."""

    stride: Literal[4, 8, 16, 32] = 16
    """Downsampling factor: pixels per code along each side."""
    patch: Literal[1, 2, 4] = 4
    """Patch size of the first layer; smaller is slower and sharper."""
    widths: Annotated[list[Count], Field(min_length=1)] = [64, 128, 256]
    """Channels per resolution, from the `patch` grid down to the `stride` grid in steps of 2."""
    blocks: Count = 2
    """Residual blocks per resolution, in encoder and decoder."""
    reconstruction: Literal["l2", "l1"] = "l2"
    """Reconstruction loss, on pixels in [-1, 1]."""
    perceptual: Perceptual | None = None
    """Perceptual loss; null: none."""
    discriminator: Discriminator | None = None
    """Adversarial loss; null: none. A tokenizer that only provides targets needs none."""

    @model_validator(mode="after")
    def _a_width_for_each_resolution(self) -> Self:
        levels = (self.stride // self.patch).bit_length()
        if self.stride < self.patch or len(self.widths) != levels:
            raise ValueError(
                f"from `patch: {self.patch}` to `stride: {self.stride}` there are {levels}"
                f" resolutions, but `widths: {self.widths}` gives {len(self.widths)}"
            )
        return self


class VqTokenizer(CnnTokenizer):
    """VQ-VAE with an EMA codebook: each latent is replaced by its nearest code."""

    kind: Literal["vq"]
    codes: Count = 1024
    """Codebook size."""
    code_width: Count = 8
    """Code dimension; LlamaGen's value."""
    cosine: bool = False
    """Cosine similarity: L2-normalise latents and codes (LlamaGen)."""
    decay: Ratio = 0.99
    """EMA decay of the codebook."""
    commitment: NonNegative = 0.25
    """Weight of the commitment loss."""
    kmeans: Annotated[int, Field(ge=0)] = 10
    """Iterations of k-means on the first batch to initialise the codebook; 0: random
    initialisation."""
    restart: Share = 0.05
    """Re-initialise codes that are used less often than this fraction of uniform use, from latents
    of the batch; 0: never."""


class FsqTokenizer(CnnTokenizer):
    """Finite scalar quantisation (FSQ, Mentzer et al. 2023, arXiv 2309.15505)."""

    kind: Literal["fsq"]
    levels: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [8, 5, 5, 5]
    """Levels per dimension; their product is the codebook size."""
    entropy: NonNegative = 0.0
    """Weight of the entropy loss, which favours confident choices and even code use; VidTok has
    0.1."""
    commitment: NonNegative = 0.0
    """Weight of the commitment loss; VidTok has 0.25."""


class AdaptiveTokenizer(CnnTokenizer):
    """Adaptive video tokenizer that learns which codes matter (LVMAE, arXiv 2411.13683): a 3D CNN
    after MAGVIT, FSQ, and a score per code. It works on windows of `data.frames` frames."""

    kind: Literal["adaptive"]
    tubelet: Literal[1, 2, 4] = 2
    """Frames per code; LVMAE's value."""
    levels: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [8, 8, 8, 8, 8, 8]
    """FSQ levels per dimension; 2^18 codes, as in LVMAE."""
    keep: Count | None = 768
    """Number of codes per window that the decoder gets in training, those with the highest scores;
    the rest are zeroed. LVMAE's value, of 1,568. null: keep all, without scores."""
    first: Literal["beside", "among"] = "beside"
    """The first time step of a window is always kept: in addition to the `keep` others (`beside`),
    or counted among them (`among`). LVMAE does not say."""
    topk: Literal["straight_through", "perturbed"] = "straight_through"
    """How gradients reach the scores through the top-k choice; LVMAE does not say."""
    softness: Positive = 0.25
    """Softness of the top-k choice, in standard deviations of a clip's scores: width of the sigmoid
    of `straight_through`, or noise scale of `perturbed`. Our choice."""
    samples: Count = 64
    """Noise samples of `topk: perturbed`. Our choice."""
    scorer_width: Count = 64
    """Channels of the two scoring convolutions. Our choice."""
    entropy: NonNegative = 0.0
    """Weight of the entropy loss, which favours confident choices and even code use; VidTok has
    0.1. Dropped codes count as zeros."""
    commitment: NonNegative = 0.0
    """Weight of the commitment loss; VidTok has 0.25."""
    ema: Ratio | None = 0.999
    """EMA decay of the weights; the average is saved as the model. At most (1 + n) / (10 + n) after
    n steps. null: no average. MAGVIT's value."""
    train: Literal["all", "decoder"] = "all"
    """`decoder`: freeze everything else. A second stage for sharper reconstructions, after
    `--init`, which leaves codes and scores unchanged."""


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
    """The `.ckpt` or `.safetensors` file; no code in it is executed."""


TrainedTokenizer = Annotated[
    RunTokenizer | DiffusersTokenizer | TamingTokenizer,
    Field(discriminator="kind"),
]
