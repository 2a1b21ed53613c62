"""What makes each design what it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from nanovlm.config import ViTConfig, VLMConfig
from nanovlm.designs import cheap_attention, cnn, sparse
from nanovlm.designs.marked import DROPPED, IMAGE, MarkedLanguageModel, Seen
from nanovlm.designs.registry import build
from nanovlm.designs.resampler import Resampler
from nanovlm.designs.sharing import BorrowingViT, OpenAttention
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.models.vision_transformer import ViTAttention
from tests.tiny import ONE_IMAGE, ids_of, loud, max_difference, random_images, tiny_config, tiny_lm, tiny_vit

IDS = torch.tensor([ids_of([7, ONE_IMAGE, 8, ONE_IMAGE, 9, 10])])
FIRST, SECOND = slice(1, 5), slice(6, 10)  # where the two pictures are


def seen_of(model: VisionLanguageModel, ids: Tensor = IDS, seed: int = 0) -> tuple[Seen, Tensor]:
    """What the decoder sees of the ids with two pictures, and who it lets look at whom, [S, S]."""
    caught: list[Seen] = []
    layout = model.decoder.layout

    def watched(*arguments: object) -> tuple[Tensor, Seen]:
        positions, seen = layout(*arguments)
        caught.append(seen)
        return positions, seen

    model.decoder.layout = watched
    with torch.no_grad():
        model(ids, random_images(2, seed=seed))
    return caught[0], caught[0].mask[0, 0]


@pytest.mark.parametrize(("size", "patch_size"), [(64, 8), (56, 14), (384, 14), (9, 3), (4, 1)])
def test_the_cnn_gives_as_many_places_as_there_are_patches(size: int, patch_size: int) -> None:
    config = VLMConfig(vision=ViTConfig(image_size=size, patch_size=patch_size), **sizes_of(1))
    with torch.device("meta"):
        assert cnn.LightCNN(config)(torch.empty(2, 3, size, size)).shape == (2, config.vision.num_patches, 768)
        assert cnn.LightCNN(config, pooled=True)(torch.empty(2, 3, size, size)).shape == (2, 1, 768)


def sizes_of(factor: int) -> dict[str, object]:
    projector = VLMConfig().projector
    projector.pixel_shuffle_factor = factor
    return {"projector": projector}


def test_the_cnn_is_lighter_than_full_kernels_and_refuses_other_sizes() -> None:
    block = cnn.InvertedBottleneck(64, 64)
    assert sum(p.numel() for p in block.parameters()) < 9 * 64 * 64
    with pytest.raises(ValueError, match=r"expects pictures of shape \[B, 3, 16, 16\]; got \[1, 3, 8, 8\]"):
        cnn.LightCNN(tiny_config())(torch.zeros(1, 3, 8, 8))


def test_squeeze_excitation_lets_a_distant_pixel_count() -> None:
    block = loud(cnn.InvertedBottleneck(8, 8))
    block.norm = torch.nn.Identity()  # it, too, looks at the whole picture
    x = torch.randn(1, 8, 9, 9, requires_grad=True)
    block(x)[0, :, 0, 0].sum().backward()
    assert (x.grad[0, :, 8, 8] != 0).any()


@torch.no_grad()
def test_a_closed_gate_hides_the_image_and_an_open_one_shows_it() -> None:
    model, images = loud(build("cross_attention", tiny_config())), random_images(4)
    words = [0, 5, 10, 11]
    crossing = [block.fusion for block in model.decoder.blocks if block.fusion is not None]
    for part in crossing:
        part.attention_gate.zero_(), part.mlp_gate.zero_()
    assert torch.equal(model(IDS, images[:2]).logits[:, words], model(IDS, images[2:]).logits[:, words])
    crossing[0].attention_gate.fill_(1.0)
    assert (
        max_difference(model(IDS, images[:2]).logits[:, words[1:]], model(IDS, images[2:]).logits[:, words[1:]]) > 0.01
    )
    fresh = build("cross_attention", tiny_config())
    assert all(float(gate) == 0 for name, gate in fresh.named_parameters() if name.endswith("_gate"))


@pytest.mark.parametrize("name", ["cross_attention", "pooled_fusion"])
def test_beside_the_text_no_word_attends_to_an_image_token(name: str) -> None:
    _, mask = seen_of(loud(build(name, tiny_config())))
    is_image = IDS[0] == 4
    assert not mask[~is_image][:, is_image].any()
    assert torch.equal(mask[~is_image][:, ~is_image], torch.ones(4, 4, dtype=torch.bool).tril())


@torch.no_grad()
def test_the_fused_vector_does_not_know_where_anything_was() -> None:
    model = loud(build("pooled_fusion", tiny_config()))
    fusion, x = model.decoder.blocks[0].fusion, torch.randn(1, 6, 32)
    inputs, images = torch.randn(1, 6, 32), torch.tensor([[[[False, True, True, True, False, False]] * 6]])
    shuffled = inputs[:, [0, 3, 1, 2, 4, 5]]
    assert max_difference(fusion(x, inputs, images), fusion(x, shuffled, images)) < 1e-5
    assert torch.equal(fusion(x, inputs, images & False), x)


def test_the_resampler_gives_the_tokens_of_pixel_shuffle_and_its_queries_differ() -> None:
    config = tiny_config()
    tokens = Resampler(config)(torch.randn(3, config.vision.num_patches, 32))
    assert tokens.shape == (3, config.num_image_tokens, 32)
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 1e-3


def test_without_an_encoder_a_patch_knows_of_no_other() -> None:
    encoder, images = build("early_fusion", tiny_config()).vision_encoder, random_images(1).requires_grad_()
    encoder(images)[0, 0].square().sum().backward()
    assert images.grad[..., :4, :4].abs().sum() > 0
    assert images.grad[..., 4:, :].abs().sum() + images.grad[..., 4:].abs().sum() == 0


def test_a_shared_block_has_the_weights_of_one() -> None:
    one, many = (
        build("shared_blocks", VLMConfig(tiny_vit(num_blocks=n), tiny_config().projector, tiny_lm(num_blocks=n)))
        for n in (1, 5)
    )
    assert [p.shape for p in one.parameters()] == [p.shape for p in many.parameters()]
    many.load_state_dict(one.state_dict())
    images, ids = random_images(1), torch.tensor([[7, 8]])
    assert max_difference(one(ids, images).logits, many(ids, images).logits) > 1e-6, "it is run through five times"


def test_linear_attention_is_the_same_as_running_sums_and_as_a_matrix() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    running, written_out = (
        cheap_attention.attend_linearly(q, k, v),
        cheap_attention.attend_linearly_masked(q, k, v, causal),
    )
    assert max_difference(running, written_out) < 1e-5
    same = torch.full_like(q, 2.0)
    assert max_difference(cheap_attention.attend_linearly(same, same, v)[:, :, 3], v[:, :, :4].mean(dim=2)) < 1e-5


def test_a_window_counts_visible_keys_only() -> None:
    visible = torch.ones(8, 8, dtype=torch.bool).tril()
    visible[:, 1] = False  # padding
    window = cheap_attention.window_with_sinks(visible[None, None], window=2, sinks=1)[0, 0]
    assert window[7].nonzero()[:, 0].tolist() == [0, 6, 7]
    assert window[3].nonzero()[:, 0].tolist() == [0, 2, 3]
    assert window[2].nonzero()[:, 0].tolist() == [0, 2]


def test_a_prefix_is_open_within_a_picture_and_closed_between_two() -> None:
    _, mask = seen_of(loud(build("prefix", tiny_config())))
    expected = torch.ones(12, 12, dtype=torch.bool).tril()
    expected[FIRST, FIRST] = expected[SECOND, SECOND] = True
    assert torch.equal(mask, expected)
    in_front = loud(build("prefix", tiny_config(None)))
    _, mask = seen_of(in_front, torch.tensor([[7, 8], [9, 10]]))
    assert mask[:4, :4].all() and not mask[4, 5]


def test_vectors_that_come_from_no_ids_are_text() -> None:
    decoder = MarkedLanguageModel(tiny_config()).eval()
    decoder.token_embedding(torch.tensor([[4, 4, 4, 4]]))
    assert (decoder.token_embedding.take(torch.zeros(1, 5, 32)) == IMAGE).all()
    assert (decoder.token_embedding.take(torch.zeros(1, 5, 32)) == 0).all(), "what was noted is used once"


@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_half_of_each_image_is_dropped_for_later_words_and_it_depends_on_the_image(seed: int) -> None:
    model = loud(build("dropped_tokens", tiny_config()))
    seen, _ = seen_of(model, seed=seed)
    dropped = seen.kinds[0] == DROPPED
    assert dropped[FIRST].sum() == dropped[SECOND].sum() == 2
    assert dropped.sum() == 4
    x = model.decoder.token_embedding(IDS)
    x[:, dropped] += 1.0  # in the second block only, where they are hidden
    rope = model.decoder.rotary_embedding(torch.arange(12)[None])
    seen.kinds[:] = torch.where(dropped, DROPPED, seen.kinds)
    model.decoder.blocks[1].drop = lambda *_: None
    plain = x.clone()
    plain[:, dropped] -= 1.0
    one, other = (model.decoder.blocks[1](y, rope, seen) for y in (plain, x))
    assert max_difference(one[:, 10:], other[:, 10:]) == 0
    assert max_difference(one[:, FIRST], other[:, FIRST]) > 0.01


def test_which_tokens_are_dropped_depends_on_the_image() -> None:
    chosen = {
        tuple((seen_of(loud(build("dropped_tokens", tiny_config())), seed=s)[0].kinds[0] == DROPPED).tolist())
        for s in range(4)
    }
    assert len(chosen) > 1


def test_the_balance_loss_is_one_where_all_is_even_and_two_where_one_takes_all() -> None:
    even, one_sided = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert sparse.balance_loss(even, even.argmax(dim=1)) == 1
    assert sparse.balance_loss(one_sided, one_sided.argmax(dim=1)) == 2


def test_the_balance_loss_reaches_the_router_as_a_term_of_the_loss_would() -> None:
    mlp, x = loud(sparse.RoutedMLP(tiny_lm())).train(), torch.randn(1, 7, 32)  # an even split would have no gradient
    (mlp(x).sum() * 0).backward()  # nothing but the balance is left
    got = mlp.router.weight.grad.clone()
    chances = mlp.router(x.flatten(0, 1)).softmax(dim=-1)
    (expected,) = torch.autograd.grad(
        sparse.BALANCE * sparse.balance_loss(chances, chances.argmax(1)), mlp.router.weight
    )
    assert got.abs().sum() > 0
    assert max_difference(got, expected) < 1e-8


@torch.no_grad()
def test_a_token_goes_through_one_expert_times_its_chance() -> None:
    mlp, x = loud(sparse.RoutedMLP(tiny_lm())), torch.randn(1, 7, 32)
    chance, chosen = mlp.router(x[0]).softmax(dim=-1).max(dim=-1)
    expected = torch.stack([c * mlp.experts[e](t) for t, c, e in zip(x[0], chance, chosen.tolist(), strict=True)])
    assert max_difference(mlp(x)[0], expected) < 1e-5
    assert set(chosen.tolist()) == {0, 1} and mlp.shares.sum() == 1


def test_a_decoders_attention_serves_an_encoder_without_mask_and_rotation() -> None:
    decoder = loud(LanguageModel(tiny_lm(num_kv_heads=4)))
    lender, own, x = decoder.blocks[0].attn, ViTAttention(tiny_vit()), torch.randn(2, 16, 32)
    with torch.no_grad():
        own.qkv_proj.weight.copy_(torch.cat([lender.q_proj.weight, lender.k_proj.weight, lender.v_proj.weight]))
        own.out_proj.weight.copy_(lender.out_proj.weight)
        own.qkv_proj.bias.zero_()
        own.out_proj.bias.zero_()
        assert max_difference(OpenAttention(lender)(x), own(x)) < 1e-5


def test_a_borrowed_attention_is_the_decoders_and_is_saved_once() -> None:
    model = build("shared_attention", tiny_config())
    names = list(model.state_dict())
    assert not any("vision_encoder" in name and "attn" in name for name in names) and len(set(names)) == len(names)
    model.vision_encoder(random_images(1)).sum().backward()
    for block in model.decoder.blocks:
        assert block.attn.q_proj.weight.grad.any() and block.mlp.up_proj.weight.grad is None
    copied = copy.deepcopy(model)
    assert copied.vision_encoder.blocks[1].attn.lender[0] is copied.decoder.blocks[1].attn
    with pytest.raises(ValueError, match="need one width; they have 32 and 64"):
        BorrowingViT(tiny_config(hidden_dim=64), LanguageModel(tiny_lm(hidden_dim=64)))
