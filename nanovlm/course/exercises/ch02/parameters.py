"""Chapter 02: the parameters of an encoder, counted by hand, and the chapter's quizzes."""

from __future__ import annotations

from dataclasses import replace

from nanovlm.config import ViTConfig
from nanovlm.course.judge.exercise import Case, Exercise, expect

# -- vit.count_parameters ----------------------------------------------------------------------------------------------


def count_parameters(config: ViTConfig) -> int:
    """Not by building it: torch's first model on the meta device costs a second, which is all a check may take."""
    return _counted(config)


TINY = ViTConfig(hidden_dim=4, inter_dim=8, num_blocks=1, num_heads=2, image_size=4, patch_size=2)

COUNT = Exercise(
    id="vit.count_parameters",
    chapter="02",
    title="Where the weights are",
    difficulty=2,
    minutes=8,
    why="Memory, download size and much of the compute follow from this number. Whoever can count it by hand has "
    "understood each part, and notices a layer that was not loaded.",
    hints=(
        "A linear layer from a to b holds a * b weights and b biases. A layer norm over d numbers holds 2 * d.",
        "The patch embedding is one linear layer from 3 * patch_size ** 2 numbers, and a vector for each patch's "
        "position. A block has two norms, qkv_proj, out_proj, fc1 and fc2. One more norm follows the blocks.",
        "embedding = linear(3 * p * p, d) + num_patches * d\n"
        "block = 2 * (2 * d) + linear(d, 3 * d) + …\n"
        "return embedding + num_blocks * block + 2 * d",
    ),
    reference=count_parameters,
    cases=lambda: [
        Case(TINY, note="4 wide, inter_dim 8, one block, four patches of 2x2 pixels"),
        Case(ViTConfig(128, 512, 2, 4, 64, 8), note="the pocket model's encoder"),
        Case(ViTConfig(), note="SigLIP-B/16 at 224 pixels"),
        Case(ViTConfig(1152, 4304, 27, 16, 384, 14), note="SigLIP-SO400M at 384 pixels"),
    ],
)


@COUNT.property("the number of heads makes no difference")
def _(fn) -> None:
    one, many = fn(ViTConfig(num_heads=1)), fn(ViTConfig(num_heads=12))
    expect(one == many, f"With 1 head you count {one:,}, with 12 heads {many:,}. Heads only cut a vector.")


@COUNT.property("larger pictures only add positions")
def _(fn) -> None:
    more = fn(ViTConfig(image_size=448)) - fn(ViTConfig(image_size=224))
    wanted = (28 * 28 - 14 * 14) * 768
    expect(more == wanted, f"448 pixels for 224 add {more:,} in your count; 588 more positions of 768 are {wanted:,}.")


def _counted(config: ViTConfig, **changes: int) -> int:
    """By hand; `changes` puts wrong numbers in."""
    d, inter, p = config.hidden_dim, config.inter_dim, config.patch_size
    parts = {
        "patches": 3 * p * p * d,
        "positions": config.num_patches * d,
        "norm": 2 * d,
        "attention": 4 * d * d,
        "mlp": 2 * d * inter,
        "block_biases": 3 * d + d + inter + d,
        "conv_bias": d,
    } | changes
    block = 2 * parts["norm"] + parts["attention"] + parts["mlp"] + parts["block_biases"]
    embedding = parts["patches"] + parts["conv_bias"] + parts["positions"]
    return embedding + config.num_blocks * block + parts.get("last_norm", parts["norm"])


@COUNT.mistake("The biases of the linear layers are missing: one for each output number.")
def _(config):
    return _counted(config, block_biases=0, conv_bias=0)


@COUNT.mistake("The biases inside the blocks are missing: qkv_proj, out_proj, fc1 and fc2 have one for each output.")
def _(config):
    return _counted(config, block_biases=0)


@COUNT.mistake("The positions are missing: one vector of hidden_dim for each patch.")
def _(config):
    return _counted(config, positions=0)


@COUNT.mistake("There is one position too many. SigLIP has no class token: as many positions as patches.")
def _(config):
    return _counted(config, positions=(config.num_patches + 1) * config.hidden_dim)


@COUNT.mistake("A patch has three colours: the patch embedding reads 3 * patch_size ** 2 numbers.")
def _(config):
    return _counted(config, patches=config.patch_size**2 * config.hidden_dim)


@COUNT.mistake("A layer norm has a weight and a bias for each number: 2 * hidden_dim, not one.")
def _(config):
    return _counted(config, norm=config.hidden_dim)


@COUNT.mistake("The last layer norm, behind the blocks, is missing.")
def _(config):
    return _counted(config, last_norm=0)


@COUNT.mistake("The layer norms inside the blocks are missing: two for each block, a weight and a bias each.")
def _(config):
    return _counted(config, norm=0, last_norm=2 * config.hidden_dim)


@COUNT.mistake("out_proj is missing: attention has four matrices of hidden_dim x hidden_dim, q, k, v and out.")
def _(config):
    d, inter = config.hidden_dim, config.inter_dim
    return _counted(config, attention=3 * d * d, block_biases=3 * d + inter + d)


@COUNT.mistake("The patch embedding has a bias, hidden_dim numbers, which you left out.")
def _(config):
    return _counted(config, conv_bias=0)


@COUNT.mistake("There is a class token and a position for it in your count. SigLIP has no class token.")
def _(config):
    return _counted(config, positions=(config.num_patches + 2) * config.hidden_dim)


@COUNT.mistake("A block has two norms, one for attention and one for the MLP; you count one.")
def _(config):
    return _counted(config, norm=config.hidden_dim, last_norm=2 * config.hidden_dim)


@COUNT.mistake("q, k and v are counted as one. qkv_proj makes three times hidden_dim numbers.")
def _(config):
    d, inter = config.hidden_dim, config.inter_dim
    return _counted(config, attention=2 * d * d, block_biases=d + d + inter + d)


@COUNT.mistake("The MLP's width is written in as 4 * hidden_dim. The config says it: inter_dim.")
def _(config):
    return _counted(replace(config, inter_dim=4 * config.hidden_dim))


@COUNT.mistake("The MLP has two layers: you count fc1 and leave out fc2.")
def _(config):
    d, inter = config.hidden_dim, config.inter_dim
    return _counted(config, mlp=d * inter, block_biases=3 * d + d + inter)


@COUNT.mistake("A patch has patch_size ** 2 pixels; you count patch_size of them.")
def _(config):
    return _counted(config, patches=3 * config.patch_size * config.hidden_dim)


@COUNT.mistake("You count a position for each pixel. There is one for each patch: config.num_patches.")
def _(config):
    return _counted(config, positions=config.image_size**2 * config.hidden_dim)


@COUNT.mistake("qkv is counted once for each head. The heads divide its outputs among them; they do not add any.")
def _(config):
    d, inter = config.hidden_dim, config.inter_dim
    heads = config.num_heads
    return _counted(config, attention=(3 * heads + 1) * d * d, block_biases=3 * heads * d + d + inter + d)


@COUNT.mistake("This is a single block. There are num_blocks of them.")
def _(config):
    return _counted(replace(config, num_blocks=1))
