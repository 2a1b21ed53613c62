"""Chapter 14: take a head away, read a decoder's vectors as words, and follow attention through all blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig, ViTConfig
from nanovlm.course.exercises.ch02.attention import attend, split_heads
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_transformer import ViTAttention

# -- inside.ablate_head ------------------------------------------------------------------------------------------------


def ablate_head(attention: ViTAttention, x: Tensor, head: int) -> Tensor:
    """The head's mixture is set to zero before out_proj."""
    mixed = attend(*split_heads(attention.qkv_proj(x), attention.num_heads)).clone()
    mixed[:, head] = 0
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


THREE = ViTConfig(hidden_dim=12, inter_dim=20, num_blocks=1, num_heads=3, image_size=12, patch_size=4)
TWO = ViTConfig(hidden_dim=4, inter_dim=10, num_blocks=1, num_heads=2, image_size=8, patch_size=4)


def run_ablation(fn, x: Tensor, head: int, config: ViTConfig) -> Tensor:
    return fn(with_weights(ViTAttention(config)), x, head)


ABLATE = Exercise(
    id="inside.ablate_head",
    chapter="14",
    title="Take one head away",
    difficulty=2,
    minutes=12,
    why="A map shows what a head attends to, and not whether the model needs it. Only taking the head away tells, "
    "provided that nothing else changes with it.",
    hints=(
        "A head's contribution is what out_proj reads of it. What if that were zero?",
        "Run the module's forward by hand: qkv_proj, split into heads, attend. Set the mixture of this one head to "
        "zero, merge the heads again and apply out_proj with its bias.",
        "q, k, v = split_heads(attention.qkv_proj(x), attention.num_heads)\n"
        "mixed = attend(q, k, v)                    # [B, num_heads, N, head_dim]\n"
        "mixed = mixed with …\n"
        "return attention.out_proj(mixed.transpose(1, 2).flatten(2))",
    ),
    reference=ablate_head,
    cases=lambda: [
        Case(noise(1, 3, 4), 1, TWO, note="three patches, two heads, without head 1"),
        Case(noise(2, 9, 12, seed=1), 0, THREE, note="two pictures, three heads, without head 0"),
        Case(noise(1, 9, 12, seed=2), 2, THREE, note="three heads, without the last"),
    ],
    axes="batch num_patches hidden_dim",
    call=run_ablation,
)


@ABLATE.property("the module works as before afterwards")
def _(fn) -> None:
    attention, x = with_weights(ViTAttention(THREE)), noise(1, 5, 12)
    before = attention(x).detach()
    fn(attention, x, 1)
    expect(
        torch.equal(attention(x).detach(), before),
        "After your function the module gives other results: its weights were changed in place. Work on a copy.",
    )


def _with(change) -> type:
    def version(attention: ViTAttention, x: Tensor, head: int) -> Tensor:
        q, k, v = (part.clone() for part in split_heads(attention.qkv_proj(x), attention.num_heads))
        mixed = None
        if change == "query":
            q[:, head] = 0
        if change == "key and query":
            q[:, head] = k[:, head] = 0
        mixed = attend(q, k, v).clone()
        if change == "mean":
            mixed[:, head] = mixed[:, head].mean(dim=1, keepdim=True)
        if change == "only":
            kept = torch.zeros_like(mixed)
            kept[:, head] = mixed[:, head]
            mixed = kept
        if change == "patch":
            mixed[:, :, head] = 0
        if change == "number":
            mixed[..., head] = 0
        if change in ("zero", "no bias"):
            mixed[:, head] = 0
        if change == "dropped":
            mixed = torch.cat([mixed[:, :head], mixed[:, head + 1 :], torch.zeros_like(mixed[:, :1])], dim=1)
        merged = mixed.transpose(1, 2).flatten(2)
        if change == "no bias":
            return merged @ attention.out_proj.weight.T
        if change == "not projected":
            merged = merged.unflatten(2, (attention.num_heads, -1)).clone()
            merged[:, :, head] = 0
            return merged.flatten(2)
        out = attention.out_proj(merged)
        if change == "after":
            out = out.unflatten(2, (attention.num_heads, -1)).clone()
            out[:, :, head] = 0
            out = out.flatten(2)
        return out

    return version


for _name, _sentence in {
    "nothing": "Nothing is taken away: this is the module's own output.",
    "query": "A query of zeros makes the head attend to everything evenly; its values still arrive. Set its mixture to zero.",
    "mean": "The head still passes on its average. That is a milder ablation; here its mixture is to be zero.",
    "only": "This keeps the head and takes all others away.",
    "patch": "You set a patch to zero, not a head: in [B, num_heads, N, head_dim] the head is axis 1.",
    "number": "You set one number of every head to zero: the head is axis 1, not the last.",
    "dropped": "The head is left out and the others move up, so that out_proj reads them as other heads. Leave zeros in its "
    "place.",
    "no bias": "The bias of out_proj is missing. It does not belong to the head.",
    "not projected": "out_proj is missing.",
    "after": "You set a stretch of the output to zero. Behind out_proj every number mixes all heads: ablate before it.",
}.items():
    ABLATE.mistake(_sentence)(_with(_name))


@ABLATE.mistake("The heads are counted from 1 here. Head 0 is the first.")
def _(attention, x, head):
    return ablate_head(attention, x, head - 1)


# -- inside.logit_lens -------------------------------------------------------------------------------------------------

DECODER = LMConfig(
    hidden_dim=8,
    inter_dim=12,
    rope_base=500.0,
    num_blocks=3,
    num_heads=2,
    num_kv_heads=1,
    vocab_size=19,
    max_positions=32,
)


def logit_lens(states: list[Tensor], decoder: LanguageModel) -> Tensor:
    """The last state is behind the norm already."""
    normed = [decoder.norm(state) for state in states[:-1]] + [states[-1]]
    return decoder.head(torch.stack(normed)).argmax(dim=-1)


def run_lens(fn, x: Tensor, config: LMConfig) -> Tensor:
    decoder = with_weights(LanguageModel(config)).eval()
    with torch.no_grad():
        decoder.norm.weight.copy_(torch.linspace(-2, 3, config.hidden_dim))  # a norm that is easily missed
    states: list[Tensor] = []
    with torch.no_grad():
        decoder(x, hidden_states=states)
        return fn(states, decoder)


LENS = Exercise(
    id="inside.logit_lens",
    chapter="14",
    title="Mend it: a lens without its norm",
    difficulty=2,
    minutes=10,
    why="The logit lens reads a vector in the middle of the decoder as a word. Without the final norm it shows words as "
    "well, and they are the wrong ones.",
    hints=(
        "What happens to a vector between the last block and the logits? The lens should do the same to every state.",
        "head(norm(state)) for the input of every block. The last entry of `states` is the decoder's output, to which "
        "the norm has been applied already. Then take the largest logit of each vector.",
        "normed = [decoder.norm(state) for state in …] + [states[-1]]\n"
        "return decoder.head(torch.stack(normed)).argmax(dim=…)",
    ),
    reference=logit_lens,
    cases=lambda: [
        Case(noise(1, 4, 8), DECODER, note="one sequence of four vectors, three blocks: four states"),
        Case(noise(2, 6, 8, seed=1), DECODER, note="two sequences of six vectors"),
    ],
    axes="state batch position",
    call=run_lens,
)


@LENS.property("the last row is what the model itself predicts")
def _(fn) -> None:
    decoder, states, x = with_weights(LanguageModel(DECODER)).eval(), [], noise(2, 5, 8)
    with torch.no_grad():
        predicted = decoder.head(decoder(x, hidden_states=states)).argmax(-1)
        expect(torch.equal(fn(states, decoder)[-1], predicted), "The last row is not the argmax of the model's logits.")


for _sentence, _version in {
    "The norm is missing, or its learned weight (length alone does not change which logit is largest). Between the last "
    "block and head comes decoder.norm.": (lambda states, d: d.head(torch.stack(states)).argmax(-1)),
    "The last state is normalised twice: it is the decoder's output, which is behind the norm already.": (
        lambda states, d: d.head(d.norm(torch.stack(states))).argmax(-1)
    ),
    "The norm comes after head. It belongs between the last block and head.": (
        lambda states, d: torch.stack(
            [nn.functional.normalize(d.head(s), dim=1) for s in states[:-1]] + [d.head(states[-1])]
        ).argmax(-1)
    ),
    "argmin takes the least likely token. Take the largest logit.": (
        lambda states, d: d.head(torch.stack([*map(d.norm, states[:-1]), states[-1]])).argmin(-1)
    ),
    "The argmax runs over the positions. Each vector has logits over the vocabulary, the last axis.": (
        lambda states, d: d.head(torch.stack([*map(d.norm, states[:-1]), states[-1]])).argmax(2)
    ),
    "The first state is left out. It is the input of the first block, the embeddings, and has a row too.": (
        lambda states, d: d.head(torch.stack([*map(d.norm, states[1:-1]), states[-1]])).argmax(-1)
    ),
    "The last state is left out. It is the decoder's output, and has a row too.": (
        lambda states, d: d.head(torch.stack([*map(d.norm, states[:-1])])).argmax(-1)
    ),
    "These are the logits. Return the token with the largest of them: argmax.": (
        lambda states, d: d.head(torch.stack([*map(d.norm, states[:-1]), states[-1]]))
    ),
    "Only the last position is read. The lens is for every position, image tokens among them.": (
        lambda states, d: d.head(torch.stack([*map(d.norm, states[:-1]), states[-1]])).argmax(-1)[..., -1:]
    ),
    "A block runs again on every state, so that each row is one block further than it says.": (
        lambda states, d: torch.stack(
            [
                *(d.head(d.norm(s)).argmax(-1) for s in states[1:-1]),
                d.head(states[-1]).argmax(-1),
                d.head(states[-1]).argmax(-1),
            ]
        )
    ),
}.items():
    LENS.mistake(_sentence)(_version)


# -- inside.rollout ----------------------------------------------------------------------------------------------------


def rollout(maps: Tensor) -> Tensor:
    """Block by block, from the input on."""
    num_patches = maps.shape[-1]
    flow = torch.eye(num_patches)
    for block in maps:
        step = (block.mean(dim=0) + torch.eye(num_patches)) / 2
        flow = step @ flow
    return flow


ROLLOUT = Exercise(
    id="inside.rollout",
    chapter="14",
    title="Attention through all blocks",
    difficulty=2,
    minutes=12,
    why="After the first block, attending to patch 10 no longer means attending to what patch 10 shows. Rollout follows "
    "the weights back to the pixels, with assumptions that one has to know.",
    hints=(
        "In one block a vector keeps itself, by the residual connection, and receives a mixture of the others. Which "
        "matrix says both?",
        "Average the heads. Add the identity for the residual connection and halve, so that rows sum to 1. The second "
        "block reads what the first one gave, so its matrix is multiplied from the left.",
        "flow = torch.eye(N)\nfor block in maps:\n    step = …                     # rows sum to 1\n    flow = step @ flow\nreturn flow",
    ),
    reference=rollout,
    cases=lambda: [
        Case(torch.tensor([[[[1.0, 0], [1, 0]]], [[[0.5, 0.5], [0, 1]]]]), note="two blocks of one head, two patches"),
        Case((2 * noise(3, 2, 5, 5)).softmax(-1), note="three blocks of two heads, five patches"),
    ],
    axes="patch source",
)


@ROLLOUT.property("rows sum to 1")
def _(fn) -> None:
    out = fn(noise(4, 3, 6, 6).softmax(-1))
    expect(torch.allclose(out.sum(-1), torch.ones(6), atol=1e-5), "A row of the result does not sum to 1.")


def _steps(maps: Tensor) -> list[Tensor]:
    return [(block.mean(0) + torch.eye(maps.shape[-1])) / 2 for block in maps]


def _product(steps: list[Tensor], left: bool = True) -> Tensor:
    flow = torch.eye(steps[0].shape[-1])
    for step in steps:
        flow = step @ flow if left else flow @ step
    return flow


for _sentence, _version in {
    "The residual connection is missing: each vector also keeps itself. Add the identity.": (
        lambda maps: _product(list(maps.mean(1)))
    ),
    "The rows do not sum to 1: halve after adding the identity.": (
        lambda maps: _product([2 * step for step in _steps(maps)])
    ),
    "The matrices are multiplied in the wrong order. The second block reads what the first gave: its matrix comes from the "
    "left.": lambda maps: _product(_steps(maps), left=False),
    "The blocks are multiplied number by number. Paths through two patches need a matrix product.": (
        lambda maps: torch.stack(_steps(maps)).prod(0)
    ),
    "The blocks are averaged. A later block reads what the earlier ones gave: multiply their matrices.": (
        lambda maps: torch.stack(_steps(maps)).mean(0)
    ),
    "The heads are summed, so that rows no longer sum to 1. Take their mean.": (
        lambda maps: _product([(block.sum(0) + torch.eye(block.shape[-1])) / 2 for block in maps])
    ),
    "Of the heads only the first is used. Take their mean.": (
        lambda maps: _product([(block[0] + torch.eye(block.shape[-1])) / 2 for block in maps])
    ),
    "The heads' largest weight is taken. Take their mean.": (
        lambda maps: _product([(block.amax(0) + torch.eye(block.shape[-1])) / 2 for block in maps])
    ),
    "The maps are transposed: a row belongs to the patch that attends.": (
        lambda maps: _product([step.T for step in _steps(maps)])
    ),
    "Only the last block counts. Multiply the matrices of all.": lambda maps: _steps(maps)[-1],
    "The identity is added once, at the end. Every block has a residual connection of its own.": (
        lambda maps: (_product(list(maps.mean(1))) + torch.eye(maps.shape[-1])) / 2
    ),
}.items():
    ROLLOUT.mistake(_sentence)(_version)
