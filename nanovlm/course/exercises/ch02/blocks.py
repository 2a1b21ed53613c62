"""Chapter 02: the block, the encoder, and what they hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import ViTConfig
from nanovlm.course.exercises.common import expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.vision_transformer import PatchEmbedding, ViT, ViTAttention, ViTBlock, ViTMLP

# A layer_norm_eps this large shows in the numbers: whoever leaves torch's default in is found out.
SMALL = ViTConfig(4, 8, num_blocks=1, num_heads=2, image_size=8, patch_size=4, layer_norm_eps=0.01)
WIDER = ViTConfig(12, 20, num_blocks=3, num_heads=3, image_size=12, patch_size=4, layer_norm_eps=0.1)

# -- vit.block ---------------------------------------------------------------------------------------------------------


def run_block(cls, x: Tensor, config: ViTConfig) -> Tensor:
    return with_weights(cls(config), like=ViTBlock(config))(x)


BLOCK = Exercise(
    id="vit.block",
    chapter="02",
    title="Normalise, transform, add back",
    difficulty=2,
    minutes=8,
    why="The order of these few operations decides whether weights fit and whether a deep stack trains. With the norm "
    "in another place the pocket model falls back to guessing, and no shape tells you.",
    hints=(
        "The residual stream is only ever added to. What is normalised is a copy of it, for the sub-layer to read.",
        "There are two steps of the same form: x plus the sub-layer of the normalised x. The second step starts from "
        "the result of the first.",
        "in __init__: self.ln1 = nn.LayerNorm(hidden_dim, eps=config.layer_norm_eps)\n"
        "             self.attn = ViTAttention(config), self.ln2 the same again, self.mlp = ViTMLP(config)\n"
        "in forward:  x = x + …        # attention\n"
        "             return x + …     # MLP",
    ),
    reference=ViTBlock,
    cases=lambda: [
        Case(noise(1, 3, 4), SMALL, note="three patches, hidden_dim 4"),
        Case(2 * noise(2, 9, 12, seed=1), WIDER, note="two pictures of nine patches, hidden_dim 12"),
    ],
    axes="batch num_patches hidden_dim",
    call=run_block,
)


@BLOCK.property("when attention and MLP give zeros, the block changes nothing")
def _(cls) -> None:
    module, x = with_weights(cls(WIDER)), 3 * noise(1, 5, 12)
    with torch.no_grad():
        for layer in (module.attn.out_proj, module.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
    expect(
        torch.allclose(module(x), x, atol=1e-6),
        "With the last layers of both set to zero, x should come out as it went in, but something else changes it.",
    )


@BLOCK.property("gradients reach the input and every parameter")
def _(cls) -> None:
    expect_same_gradients(with_weights(cls(SMALL)), with_weights(ViTBlock(SMALL)), noise(1, 3, 4))


class _Block(nn.Module):
    """A ViTBlock to build wrong versions from."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.attn = ViTAttention(config)
        self.ln2 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


@BLOCK.mistake(
    "This is post-norm, as in the first transformer: the norm comes after the addition. SigLIP normalises before each "
    "sub-layer, and nothing after the addition."
)
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x + self.attn(x))
        return self.ln2(x + self.mlp(x))


@BLOCK.mistake("Nothing is added back: each sub-layer replaces x. Keep x and add what the sub-layer gives.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln2(self.attn(self.ln1(x))))


@BLOCK.mistake(
    "The normalised x is what you add to, so the norm sits on the main road. Normalise only what goes into the "
    "sub-layer."
)
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x)
        x = self.ln2(x + self.attn(x))
        return x + self.mlp(x)


@BLOCK.mistake(
    "Both sub-layers read the same x, side by side. Some models do that; in SigLIP the MLP reads what attention left."
)
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.ln1(x)) + self.mlp(self.ln2(x))


@BLOCK.mistake("ln1 stands before both sub-layers. Each has a norm of its own: ln2 belongs to the MLP.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln1(x))


@BLOCK.mistake("The MLP comes first. Attention goes first, with ln1; then the MLP, with ln2.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp(self.ln2(x))
        return x + self.attn(self.ln1(x))


@BLOCK.mistake("The MLP's input is not normalised: ln2 is built and never used there.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(x)


@BLOCK.mistake(
    "The MLP reads what attention left, but is added to the x from before it, so attention's own result is lost. "
    "Add to what the first half gave."
)
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(y))


@BLOCK.mistake("The attention's input is not normalised: ln1 is built and never used there.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(self.ln2(x))


@BLOCK.mistake("Here attention's result replaces x: the first residual connection is missing. Add x to it.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


@BLOCK.mistake("The MLP's result replaces x: the second residual connection is missing. Add x to it.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return self.mlp(self.ln2(x))


@BLOCK.mistake("The two norms have changed places: ln1 belongs to attention, ln2 to the MLP.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln2(x))
        return x + self.mlp(self.ln1(x))


@BLOCK.mistake(
    "The norms are applied to what the sub-layers give. Pre-norm applies them to what the sub-layers read: attn(ln1(x))."
)
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ln1(self.attn(x))
        return x + self.ln2(self.mlp(x))


@BLOCK.mistake("x is added twice in each step, so it doubles from block to block. Add it once.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x + self.attn(self.ln1(x))
        return 2 * x + self.mlp(self.ln2(x))


@BLOCK.mistake("Neither sub-layer's input is normalised: ln1 and ln2 are built and never used.")
class _(_Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


@BLOCK.mistake("The norms have torch's default eps, 1e-5. The config has one of its own: layer_norm_eps.")
class _(_Block):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.ln1, self.ln2 = nn.LayerNorm(config.hidden_dim), nn.LayerNorm(config.hidden_dim)


@BLOCK.mistake("The eps of the norms, 1e-6, is written in. That is SigLIP's; the config says which: layer_norm_eps.")
class _(_Block):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.ln1, self.ln2 = (nn.LayerNorm(config.hidden_dim, eps=1e-6) for _ in range(2))


@BLOCK.part
def _(code, learner) -> None:
    code.vision_transformer.ViTBlock = learner


# -- vit.encoder -------------------------------------------------------------------------------------------------------


def run_encoder(cls, images: Tensor, config: ViTConfig) -> Tensor:
    return with_weights(cls(config), like=ViT(config))(images)


ENCODER = Exercise(
    id="vit.encoder",
    chapter="02",
    title="The whole encoder",
    difficulty=2,
    minutes=8,
    why="This is SigLIP's encoder. With the published numbers in its parameters, your class gives what the published "
    "model gives, and the pocket model sees through it.",
    hints=(
        "The encoder has three parts, one after another: one that makes vectors, a stack of equal blocks, one norm.",
        "The blocks must be in an nn.ModuleList, or PyTorch does not know that they have parameters. Each of them is a "
        "block of its own, and each reads what the one before it gave.",
        "in __init__: self.patch_embedding = PatchEmbedding(config)\n"
        "             self.blocks = nn.ModuleList(… for _ in range(config.num_blocks))\n"
        "             self.layer_norm = nn.LayerNorm(hidden_dim, eps=config.layer_norm_eps)\n"
        "in forward:  x = self.patch_embedding(images)\n"
        "             for block in self.blocks: …\n"
        "             return self.layer_norm(x)",
    ),
    reference=ViT,
    cases=lambda: [
        Case(noise(1, 3, 8, 8), SMALL, note="one picture of 8x8 pixels in 2x2 patches, one block"),
        Case(noise(2, 3, 12, 12, seed=1), WIDER, note="two pictures of 12x12 pixels in 3x3 patches, three blocks"),
    ],
    axes="batch num_patches hidden_dim",
    call=run_encoder,
)


@ENCODER.property("pictures of a batch do not mix")
def _(cls) -> None:
    module, images = with_weights(cls(SMALL)), noise(3, 3, 8, 8)
    alone = torch.cat([module(images[i : i + 1]) for i in range(3)])
    expect(
        torch.allclose(module(images), alone, atol=1e-5), "A picture gives another result when others share its batch."
    )


@ENCODER.property("every patch influences every other")
def _(cls) -> None:
    module, images = with_weights(cls(SMALL)), noise(1, 3, 8, 8)
    changed = images.clone()
    changed[..., :4, :4] += 1  # patch 0
    expect(
        ((module(images) - module(changed)).abs().amax(-1) > 1e-6).all(),
        "A change of the first patch of the picture does not reach all others.",
    )


@ENCODER.property("gradients reach the pixels and every parameter")
def _(cls) -> None:
    expect_same_gradients(with_weights(cls(SMALL)), with_weights(ViT(SMALL)), noise(1, 3, 8, 8))


class _ViT(nn.Module):
    """A ViT to build wrong versions from."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.num_blocks))
        self.layer_norm = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)

    def run_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        return self.layer_norm(self.run_blocks(self.patch_embedding(images)))


@ENCODER.mistake(
    "The last layer norm is missing. Pre-norm blocks never normalise what they hand on, so the encoder does it once at "
    "the end."
)
class _(_ViT):
    def forward(self, images: Tensor) -> Tensor:
        return self.run_blocks(self.patch_embedding(images))


@ENCODER.mistake("The layer norm comes before the blocks. Its place is behind the last one.")
class _(_ViT):
    def forward(self, images: Tensor) -> Tensor:
        return self.run_blocks(self.layer_norm(self.patch_embedding(images)))


@ENCODER.mistake("The last layer norm has torch's default eps, 1e-5. The config has one of its own: layer_norm_eps.")
class _(_ViT):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)


@ENCODER.mistake("The layer norm runs after every block. It comes once, behind the last one.")
class _(_ViT):
    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embedding(images)
        for block in self.blocks:
            x = self.layer_norm(block(x))
        return x


@ENCODER.mistake("Only the first block runs: the return is inside the loop.")
class _(_ViT):
    def run_blocks(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)


@ENCODER.mistake("One block is missing: the loop runs over one fewer than there are.")
class _(_ViT):
    def run_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks[:-1]:
            x = block(x)
        return x


@ENCODER.mistake("The blocks are built and do not run: what you normalise is the patch embedding.")
class _(_ViT):
    def run_blocks(self, x: Tensor) -> Tensor:
        return x


@ENCODER.mistake("There is a residual connection round each block. The blocks have theirs inside: x = block(x).")
class _(_ViT):
    def run_blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@ENCODER.mistake("The positions are added twice: PatchEmbedding has added them already.")
class _(_ViT):
    def run_blocks(self, x: Tensor) -> Tensor:
        return super().run_blocks(x + self.patch_embedding.position_embedding)


@ENCODER.mistake(
    "The first vector alone comes back. In a model with a class token that is the summary; here it is the patch at the "
    "top left, and a VLM wants all of them."
)
class _(_ViT):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, 0]


@ENCODER.mistake("Every block reads the patch embedding, so only the last one counts. Each reads the one before it.")
class _(_ViT):
    def run_blocks(self, x: Tensor) -> Tensor:
        return self.blocks[-1](x)


@ENCODER.mistake("The blocks run from the last to the first.")
class _(_ViT):
    def run_blocks(self, x: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return x


@ENCODER.mistake(
    "[ViTBlock(config)] * n is n times the same block, with one set of weights. Build a new one for each place."
)
class _(_ViT):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList([ViTBlock(config)] * config.num_blocks)


@ENCODER.mistake(
    "The blocks are in a plain Python list. PyTorch does not look into lists: no weights would be loaded, moved or "
    "trained. Use nn.ModuleList."
)
class _(_ViT):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        del self.blocks
        self.blocks = [ViTBlock(config) for _ in range(config.num_blocks)]


@ENCODER.mistake(
    "The patches are averaged to one vector. A classifier does that; a VLM wants every patch, so that it can tell "
    "where things are."
)
class _(_ViT):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean(dim=1)


@ENCODER.part
def _(code, learner) -> None:
    code.vision_transformer.ViT = learner
