"""Chapter 02: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from nanovlm.models import vision_transformer as vt

# -- vit.attention -----------------------------------------------------------------------------------------------------


def not_scaled(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v


def by_head_dim(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / q.size(-1), dim=-1) @ v


def times_the_root(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) * math.sqrt(q.size(-1)), dim=-1) @ v


def softmax_over_queries(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)), dim=-2) @ v


def softmax_dim_0(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)), dim=0) @ v


def softmax_dim_1(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)), dim=1) @ v


def raw_scores(q, k, v):
    return q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)) @ v


def scaled_too_late(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v / math.sqrt(q.size(-1))


def by_number_of_keys(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(k.size(-2)), dim=-1) @ v


def by_second_axis(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[1]), dim=-1) @ v


def sixty_four(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / 8, dim=-1) @ v


def only_weights(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)), dim=-1)


def dot_t(q, k, v):
    return torch.softmax(q @ k.permute(*range(k.ndim - 1, -1, -1)) / math.sqrt(q.size(-1)), dim=-1) @ v


def first_two_swapped(q, k, v):
    return torch.softmax(q @ k.transpose(0, 1) / math.sqrt(q.size(-1)), dim=-1) @ v


def middle_two_swapped(q, k, v):
    return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.size(-1)), dim=-1) @ v


def keys_as_they_are(q, k, v):
    return torch.softmax(q @ k / math.sqrt(q.size(-1)), dim=-1) @ v


def exp_by_hand(q, k, v):
    e = torch.exp(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)))
    return e / e.sum(dim=-1, keepdim=True) @ v


def whole_table(q, k, v):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
    return scores.flatten(-2).softmax(-1).view_as(scores) @ v


def log_weights(q, k, v):
    return torch.log_softmax(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)), dim=-1) @ v


def keys_for_values(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)), dim=-1) @ k


def keys_ask(q, k, v):
    return torch.softmax(k @ q.transpose(-1, -2) / math.sqrt(q.size(-1)), dim=-1) @ v


def causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def weights_detached(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.size(-1)), dim=-1).detach() @ v


def scales_q_in_place(q, k, v):
    q /= math.sqrt(q.size(-1))
    return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v


# -- vit.split_heads ---------------------------------------------------------------------------------------------------


def sizes(qkv, num_heads):
    batch, n, width = qkv.shape
    return batch, n, width // 3 // num_heads


def one_view_each(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    q, k, v = qkv.chunk(3, -1)
    return q.reshape(batch, num_heads, n, d), k.reshape(batch, num_heads, n, d), v.reshape(batch, num_heads, n, d)


def one_reshape_for_all(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return tuple(qkv.reshape(3, batch, num_heads, n, d))


def three_before_patches(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return tuple(qkv.reshape(batch, 3, n, num_heads, d).permute(1, 0, 3, 2, 4))


def heads_outside(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return qkv.view(batch, n, num_heads, 3 * d).transpose(1, 2).chunk(3, dim=-1)


def interleaved(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return tuple(part.view(batch, n, d, num_heads).permute(0, 3, 1, 2) for part in qkv.chunk(3, -1))


def no_transpose(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    q, k, v = qkv.view(batch, n, 3, num_heads, d).unbind(2)
    return q, k, v


def only_three(qkv, num_heads):
    return tuple(qkv.chunk(3, -1))


def turned(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return tuple(qkv.view(batch, n, 3, num_heads, d).permute(2, 0, 3, 4, 1))


def k_first(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    k, q, v = qkv.view(batch, n, 3, num_heads, d).permute(2, 0, 3, 1, 4)
    return q, k, v


def v_second(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    q, v, k = qkv.view(batch, n, 3, num_heads, d).permute(2, 0, 3, 1, 4)
    return q, k, v


def heads_in_the_batch(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return tuple(qkv.view(batch, n, 3, num_heads, d).permute(2, 0, 3, 1, 4).reshape(3, batch * num_heads, n, d))


def heads_first(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return tuple(qkv.view(batch, n, 3, num_heads, d).permute(2, 3, 0, 1, 4))


def two_of_three(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return tuple(qkv.view(batch, n, 3, num_heads, d).permute(2, 0, 3, 1, 4))[:2]


def cut_off(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    return tuple(qkv.detach().view(batch, n, 3, num_heads, d).permute(2, 0, 3, 1, 4))


def first_head_only(qkv, num_heads):
    batch, n, d = sizes(qkv, num_heads)
    q, k, v = qkv.view(batch, n, 3, num_heads, d).permute(2, 0, 3, 1, 4)[:, :, :1].expand(-1, -1, num_heads, -1, -1)
    return q, k, v


# -- vit.attention_module ----------------------------------------------------------------------------------------------


class A(nn.Module):
    """Written out in one forward, with the places where people differ."""

    def __init__(self, config):
        super().__init__()
        self.config, self.h = config, config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def cut(self, qkv):
        b, n, w = qkv.shape
        return qkv.view(b, n, 3, self.h, w // 3 // self.h).permute(2, 0, 3, 1, 4)

    def look(self, q, k, v):
        return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v

    def join(self, x):
        return x.transpose(1, 2).flatten(2)

    def forward(self, x):
        return self.out_proj(self.join(self.look(*self.cut(self.qkv_proj(x)))))


class JoinWithoutSwap(A):
    def join(self, x):
        b, h, n, d = x.shape
        return x.reshape(b, n, h * d)


class OneHead(A):
    def cut(self, qkv):
        return tuple(part.unsqueeze(1) for part in qkv.chunk(3, -1))


class NoOutProj(A):
    def forward(self, x):
        return self.join(self.look(*self.cut(self.qkv_proj(x))))


class KeysFirst(A):
    def look(self, q, k, v):
        return super().look(k, q, v)


class ValuesSecond(A):
    def look(self, q, k, v):
        return super().look(q, v, k)


class AcrossHeads(A):
    def cut(self, qkv):
        b, n, w = qkv.shape
        return qkv.view(b, n, 3, self.h, w // 3 // self.h).unbind(2)

    def join(self, x):
        return x.flatten(2)


class AddsX(A):
    def forward(self, x):
        return x + super().forward(x)


class NotScaled(A):
    def look(self, q, k, v):
        return not_scaled(q, k, v)


class RootOfDim(A):
    def look(self, q, k, v):
        return (q @ k.mT / math.sqrt(self.config.hidden_dim)).softmax(-1) @ v


class ByHeadDim(A):
    def look(self, q, k, v):
        return by_head_dim(q, k, v)


class SoftmaxDim0(A):
    def look(self, q, k, v):
        return softmax_dim_0(q, k, v)


class SoftmaxDim1(A):
    def look(self, q, k, v):
        return softmax_dim_1(q, k, v)


class SoftmaxOverQueries(A):
    def look(self, q, k, v):
        return softmax_over_queries(q, k, v)


class NoSoftmax(A):
    def look(self, q, k, v):
        return raw_scores(q, k, v)


class ReshapeForHeads(A):
    def cut(self, qkv):
        return one_view_each(qkv, self.h)


class HeadsOutside(A):
    def cut(self, qkv):
        return heads_outside(qkv, self.h)


class HeadDimHeads(A):
    def __init__(self, config):
        super().__init__(config)
        self.h = config.hidden_dim // config.num_heads


class Causal(A):
    def look(self, q, k, v):
        return causal(q, k, v)


class ThreeLayers(nn.Module):
    def __init__(self, config):
        super().__init__()
        d = config.hidden_dim
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))


class NoBias(A):
    def __init__(self, config):
        super().__init__(config)
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim, bias=False)


class NoGrad(A):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class DetachedV(A):
    def look(self, q, k, v):
        return super().look(q, k, v.detach())


class DetachedWeights(A):
    def look(self, q, k, v):
        return weights_detached(q, k, v)


# -- vit.mlp -----------------------------------------------------------------------------------------------------------


class M(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    act = staticmethod(lambda x: F.gelu(x, approximate="tanh"))

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def activation(function, name):
    return type(name, (M,), {"act": staticmethod(function)})


ExactGelu = activation(F.gelu, "ExactGelu")
Relu = activation(F.relu, "Relu")
Tanh = activation(torch.tanh, "Tanh")
Silu = activation(F.silu, "Silu")
Sigmoid = activation(torch.sigmoid, "Sigmoid")
QuickGelu = activation(lambda x: x * torch.sigmoid(1.702 * x), "QuickGelu")
Nothing = activation(lambda x: x, "Nothing")
LeakyRelu = activation(F.leaky_relu, "LeakyRelu")
Elu = activation(F.elu, "Elu")
Softplus = activation(F.softplus, "Softplus")
GeluTwice = activation(lambda x: F.gelu(F.gelu(x, approximate="tanh"), approximate="tanh"), "GeluTwice")
Detached = activation(lambda x: F.gelu(x.detach(), approximate="tanh"), "Detached")


class ActivationLast(M):
    def forward(self, x):
        return self.act(self.fc2(self.fc1(x)))


class ActivationBoth(M):
    def forward(self, x):
        return self.act(self.fc2(self.act(self.fc1(x))))


class ActivationFirst(M):
    def forward(self, x):
        return self.fc2(self.fc1(self.act(x)))


class MLPAddsX(M):
    def forward(self, x):
        return x + super().forward(x)


class NormInside(M):
    def forward(self, x):
        return super().forward(F.layer_norm(x, x.shape[-1:]))


class FourTimes(M):
    def __init__(self, config):
        super().__init__(config)
        self.fc1, self.fc2 = (
            nn.Linear(config.hidden_dim, 4 * config.hidden_dim),
            nn.Linear(4 * config.hidden_dim, config.hidden_dim),
        )


class NoBiasMLP(M):
    def __init__(self, config):
        super().__init__(config)
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)


class OtherNames(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(config.hidden_dim, config.inter_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.inter_dim, config.hidden_dim),
        )


# -- vit.block ---------------------------------------------------------------------------------------------------------


class B(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.attn = vt.ViTAttention(config)
        self.ln2 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.mlp = vt.ViTMLP(config)


def block(forward):
    return type(forward.__name__, (B,), {"forward": forward})


@block
def post_norm(self, x):
    x = self.ln1(self.attn(x) + x)
    return self.ln2(self.mlp(x) + x)


@block
def no_residual(self, x):
    return self.mlp(self.ln2(self.attn(self.ln1(x))))


@block
def first_residual_missing(self, x):
    x = self.attn(self.ln1(x))
    return x + self.mlp(self.ln2(x))


@block
def second_residual_missing(self, x):
    x = x + self.attn(self.ln1(x))
    return self.mlp(self.ln2(x))


@block
def adds_to_the_normalised(self, x):
    x = self.ln1(x)
    x = x + self.attn(x)
    x = self.ln2(x)
    return x + self.mlp(x)


@block
def side_by_side(self, x):
    return x + self.attn(self.ln1(x)) + self.mlp(self.ln2(x))


@block
def ln1_twice(self, x):
    x = x + self.attn(self.ln1(x))
    return x + self.mlp(self.ln1(x))


@block
def norms_swapped(self, x):
    x = x + self.attn(self.ln2(x))
    return x + self.mlp(self.ln1(x))


@block
def mlp_first(self, x):
    x = x + self.mlp(self.ln2(x))
    return x + self.attn(self.ln1(x))


@block
def mlp_not_normalised(self, x):
    x = x + self.attn(self.ln1(x))
    return x + self.mlp(x)


@block
def attention_not_normalised(self, x):
    x = x + self.attn(x)
    return x + self.mlp(self.ln2(x))


@block
def adds_to_the_old_x(self, x):
    y = x + self.attn(self.ln1(x))
    return x + self.mlp(self.ln2(y))


@block
def norm_on_the_way_out(self, x):
    x = x + self.ln1(self.attn(x))
    return x + self.ln2(self.mlp(x))


@block
def x_twice(self, x):
    x = x + self.attn(self.ln1(x)) + x
    return x + self.mlp(self.ln2(x)) + x


@block
def in_place(self, x):
    x += self.attn(self.ln1(x))
    x += self.mlp(self.ln2(x))
    return x


@block
def road_detached(self, x):
    x = x.detach() + self.attn(self.ln1(x))
    return x + self.mlp(self.ln2(x))


@block
def no_norms(self, x):
    x = x + self.attn(x)
    return x + self.mlp(x)


class DefaultEps(vt.ViTBlock):
    def __init__(self, config):
        super().__init__(config)
        self.ln1, self.ln2 = nn.LayerNorm(config.hidden_dim), nn.LayerNorm(config.hidden_dim)


class SiglipEps(vt.ViTBlock):
    def __init__(self, config):
        super().__init__(config)
        self.ln1, self.ln2 = (nn.LayerNorm(config.hidden_dim, eps=1e-6) for _ in range(2))


class OneNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)
        self.attn, self.mlp = vt.ViTAttention(config), vt.ViTMLP(config)


class RMSNorms(B):
    def __init__(self, config):
        super().__init__(config)
        self.ln1, self.ln2 = nn.RMSNorm(config.hidden_dim), nn.RMSNorm(config.hidden_dim)


# -- vit.encoder -------------------------------------------------------------------------------------------------------


class E(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = vt.PatchEmbedding(config)
        self.blocks = nn.ModuleList([vt.ViTBlock(config) for _ in range(config.num_blocks)])
        self.layer_norm = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)


def encoder(forward):
    return type(forward.__name__, (E,), {"forward": forward})


@encoder
def no_last_norm(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks:
        x = b(x)
    return x


@encoder
def norm_first(self, images):
    x = self.layer_norm(self.patch_embedding(images))
    for b in self.blocks:
        x = b(x)
    return x


@encoder
def norm_each_time(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks:
        x = self.layer_norm(b(x))
    return x


@encoder
def all_read_the_embedding(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks:
        out = b(x)
    return self.layer_norm(out)


@encoder
def return_in_the_loop(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks:
        x = b(x)
        return self.layer_norm(x)


@encoder
def backwards(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks[::-1]:
        x = b(x)
    return self.layer_norm(x)


@encoder
def averaged(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks:
        x = b(x)
    return self.layer_norm(x).mean(1)


@encoder
def first_patch(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks:
        x = b(x)
    return self.layer_norm(x)[:, 0]


@encoder
def positions_again(self, images):
    x = self.patch_embedding(images) + self.patch_embedding.position_embedding
    for b in self.blocks:
        x = b(x)
    return self.layer_norm(x)


@encoder
def residual_round_the_blocks(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks:
        x = x + b(x)
    return self.layer_norm(x)


@encoder
def no_gradients(self, images):
    with torch.no_grad():
        x = self.patch_embedding(images)
        for b in self.blocks:
            x = b(x)
        return self.layer_norm(x)


@encoder
def embedding_detached(self, images):
    x = self.patch_embedding(images).detach()
    for b in self.blocks:
        x = b(x)
    return self.layer_norm(x)


@encoder
def hidden_states(self, images):
    states = [self.patch_embedding(images)]
    for b in self.blocks:
        states.append(b(states[-1]))
    return [*states[:-1], self.layer_norm(states[-1])]


@encoder
def one_block_short(self, images):
    x = self.patch_embedding(images)
    for b in self.blocks[:-1]:
        x = b(x)
    return self.layer_norm(x)


@encoder
def blocks_forgotten(self, images):
    return self.layer_norm(self.patch_embedding(images))


class SameBlock(vt.ViT):
    def __init__(self, config):
        super().__init__(config)
        self.blocks = nn.ModuleList([vt.ViTBlock(config)] * config.num_blocks)


class PlainList(vt.ViT):
    def __init__(self, config):
        super().__init__(config)
        blocks = list(self.blocks)
        del self.blocks
        self.blocks = blocks


class EncoderEps(vt.ViT):
    def __init__(self, config):
        super().__init__(config)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)


class OtherNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = vt.PatchEmbedding(config)
        self.blocks = nn.ModuleList([vt.ViTBlock(config) for _ in range(config.num_blocks)])
        self.norm = nn.LayerNorm(config.hidden_dim, eps=config.layer_norm_eps)


# -- vit.count_parameters ----------------------------------------------------------------------------------------------


def counted(c, norm=None, block_extra=0, once=0, mlp_bias=True, qkv=3, inter=None, colours=3, blocks=None):
    d, i = c.hidden_dim, inter or c.inter_dim
    norm = 2 * d if norm is None else norm
    block = 2 * norm + (d * qkv * d + qkv * d) + (d * d + d) + 2 * d * i + (i + d) * mlp_bias + block_extra
    embedding = colours * c.patch_size**2 * d + d + c.num_patches * d
    return embedding + (c.num_blocks if blocks is None else blocks) * block + norm + once


def no_biases(c):
    d, i = c.hidden_dim, c.inter_dim
    block = 4 * d + 4 * d * d + 2 * d * i
    return 3 * c.patch_size**2 * d + c.num_patches * d + c.num_blocks * block + 2 * d


def no_block_biases(c):
    return counted(c, mlp_bias=False, block_extra=-4 * c.hidden_dim)


def conv_bias_forgotten(c):
    return counted(c, once=-c.hidden_dim)


def no_positions(c):
    return counted(c, once=-c.num_patches * c.hidden_dim)


def class_token(c):
    return counted(c, once=c.hidden_dim)


def class_token_and_its_position(c):
    return counted(c, once=2 * c.hidden_dim)


def grey(c):
    return counted(c, colours=1)


def half_norms(c):
    return counted(c, norm=c.hidden_dim)


def last_norm_forgotten(c):
    return counted(c, once=-2 * c.hidden_dim)


def block_norms_forgotten(c):
    return counted(c, block_extra=-4 * c.hidden_dim)


def one_norm_a_block(c):
    return counted(c, block_extra=-2 * c.hidden_dim)


def out_proj_forgotten(c):
    return counted(c, block_extra=-(c.hidden_dim**2 + c.hidden_dim))


def each_head_its_own(c):
    return counted(c, qkv=3 * c.num_heads)


def q_k_v_as_one(c):
    return counted(c, qkv=1)


def one_block(c):
    return counted(c, blocks=1)


def four_times(c):
    return counted(c, inter=4 * c.hidden_dim)


def half_an_mlp(c):
    return counted(c, block_extra=-(c.hidden_dim * c.inter_dim + c.hidden_dim))


def patch_not_squared(c):
    return counted(c, once=(3 * c.patch_size - 3 * c.patch_size**2) * c.hidden_dim)


def position_per_pixel(c):
    return counted(c, once=(c.image_size**2 - c.num_patches) * c.hidden_dim)


def a_float(c):
    return counted(c) / 1


# -- vit.siglip_loss ---------------------------------------------------------------------------------------------------


def logits_of(i, t, s, b):
    return F.normalize(i, dim=-1) @ F.normalize(t, dim=-1).T * s.exp() + b


def labels(n):
    return 2 * torch.eye(n) - 1


def mean_of_pairs(i, t, s, b):
    return F.binary_cross_entropy_with_logits(logits_of(i, t, s, b), torch.eye(len(i)))


def sum_of_pairs(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * logits_of(i, t, s, b)).sum()


def diagonal_alone(i, t, s, b):
    return -F.logsigmoid(logits_of(i, t, s, b).diagonal()).mean()


def not_normalised(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * (i @ t.T * s.exp() + b)).sum() / len(i)


def images_normalised(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * (F.normalize(i, dim=-1) @ t.T * s.exp() + b)).sum() / len(i)


def normalised_over_the_batch(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * (F.normalize(i, dim=0) @ F.normalize(t, dim=0).T * s.exp() + b)).sum() / len(
        i
    )


def scale_without_exp(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * (F.normalize(i) @ F.normalize(t).T * s + b)).sum() / len(i)


def divided_by_the_scale(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * (F.normalize(i) @ F.normalize(t).T / s.exp() + b)).sum() / len(i)


def no_bias(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * (F.normalize(i) @ F.normalize(t).T * s.exp())).sum() / len(i)


def bias_scaled(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * ((F.normalize(i) @ F.normalize(t).T + b) * s.exp())).sum() / len(i)


def zero_and_one(i, t, s, b):
    return -F.logsigmoid(torch.eye(len(i)) * logits_of(i, t, s, b)).sum() / len(i)


def signs_turned(i, t, s, b):
    return -F.logsigmoid(-labels(len(i)) * logits_of(i, t, s, b)).sum() / len(i)


def no_minus(i, t, s, b):
    return F.logsigmoid(labels(len(i)) * logits_of(i, t, s, b)).sum() / len(i)


def clip(i, t, s, b):
    x, y = logits_of(i, t, s, b), torch.arange(len(i))
    return (F.cross_entropy(x, y) + F.cross_entropy(x.T, y)) / 2


def log_of_sigmoid(i, t, s, b):
    return -torch.log(torch.sigmoid(labels(len(i)) * logits_of(i, t, s, b))).sum() / len(i)


def a_number(i, t, s, b):
    return (-F.logsigmoid(labels(len(i)) * logits_of(i, t, s, b)).sum() / len(i)).item()


def scale_detached(i, t, s, b):
    return -F.logsigmoid(labels(len(i)) * logits_of(i, t, s.detach(), b)).sum() / len(i)


# -- vit.update_sizes --------------------------------------------------------------------------------------------------


def walking(size):
    def update_sizes(encoder, images):
        sizes, x = [], encoder.patch_embedding(images)
        for b in encoder.blocks:
            for read in (lambda z, b=b: b.attn(b.ln1(z)), lambda z, b=b: b.mlp(b.ln2(z))):
                update = read(x)
                sizes.append(size(x, update).item())
                x = x + update
        return sizes

    return update_sizes


beside_the_sum = walking(lambda x, u: (u.norm(dim=-1) / (x + u).norm(dim=-1)).mean())
lengths_alone = walking(lambda x, u: u.norm(dim=-1).mean())
upside_down = walking(lambda x, u: (x.norm(dim=-1) / u.norm(dim=-1)).mean())
whole_tensor = walking(lambda x, u: u.norm() / x.norm())
means_divided = walking(lambda x, u: u.norm(dim=-1).mean() / x.norm(dim=-1).mean())
over_patches = walking(lambda x, u: (u.norm(dim=1) / x.norm(dim=1)).mean())
absolute_values = walking(lambda x, u: (u.abs().mean(-1) / x.abs().mean(-1)).mean())
summed = walking(lambda x, u: (u.norm(dim=-1) / x.norm(dim=-1)).sum())
squares = walking(lambda x, u: (u.pow(2).sum(-1) / x.pow(2).sum(-1)).mean())


def never_added(encoder, images):
    sizes, x = [], encoder.patch_embedding(images)
    for b in encoder.blocks:
        sizes.append((b.attn(b.ln1(x)).norm(dim=-1) / x.norm(dim=-1)).mean().item())
        sizes.append((b.mlp(b.ln2(x)).norm(dim=-1) / x.norm(dim=-1)).mean().item())
    return sizes


def not_normalised_first(encoder, images):
    sizes, x = [], encoder.patch_embedding(images)
    for b in encoder.blocks:
        for layer in (b.attn, b.mlp):
            sizes.append((layer(x).norm(dim=-1) / x.norm(dim=-1)).mean().item())
            x = x + layer(x)
    return sizes


def whole_blocks(encoder, images):
    sizes, x = [], encoder.patch_embedding(images)
    for b in encoder.blocks:
        sizes.append(((b(x) - x).norm(dim=-1) / x.norm(dim=-1)).mean().item())
        x = b(x)
    return sizes


# -- vit.streaming_attention -------------------------------------------------------------------------------------------


def online(scale=True, shrink_sum=True, shrink_mix=True, divide=True, upside_down=False, own=False):
    def streaming_attention(q, k, v, block):
        m = torch.full_like(q[..., :1], -math.inf)
        s, o = torch.zeros_like(m), torch.zeros_like(q)
        for i in range(0, k.shape[-2], block):
            x = q @ k[..., i : i + block, :].mT / (math.sqrt(q.shape[-1]) if scale else 1)
            new = x.amax(-1, keepdim=True) if own else torch.maximum(m, x.amax(-1, keepdim=True))
            a = torch.exp(m - new) if not upside_down or i == 0 else torch.exp(new - m)
            p = torch.exp(x - new)
            s = s * (a if shrink_sum else 1) + p.sum(-1, keepdim=True)
            o = o * (a if shrink_mix else 1) + p @ v[..., i : i + block, :]
            m = new
        return o / s if divide else o

    return streaming_attention


unscaled = online(scale=False)
sum_not_shrunk = online(shrink_sum=False)
mixture_not_shrunk = online(shrink_mix=False)
nothing_shrunk = online(shrink_sum=False, shrink_mix=False)
never_divided = online(divide=False)
wrong_way = online(upside_down=True)
own_maximum = online(own=True, shrink_sum=False, shrink_mix=False)


def each_block_alone(q, k, v, block):
    outs = [not_streaming(q, a, b) for a, b in zip(k.split(block, -2), v.split(block, -2), strict=True)]
    return sum(outs) / len(outs)


def not_streaming(q, k, v, block=0):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def overwritten(q, k, v, block):
    for a, b in zip(k.split(block, -2), v.split(block, -2), strict=True):
        out = not_streaming(q, a, b)
    return out


def early_return(q, k, v, block):
    for a, b in zip(k.split(block, -2), v.split(block, -2), strict=True):
        return not_streaming(q, a, b)


def rest_left_out(q, k, v, block):
    n = k.shape[-2] // block
    return online()(q, k[..., : n * block, :], v[..., : n * block, :], block)


def no_maximum(q, k, v, block):
    s = o = 0
    for a, b in zip(k.split(block, -2), v.split(block, -2), strict=True):
        e = torch.exp(q @ a.mT / math.sqrt(q.shape[-1]))
        s, o = s + e.sum(-1, keepdim=True), o + e @ b
    return o / s


def keeps_all_scores(q, k, v, block):
    scores = torch.cat([q @ a.mT for a in k.split(block, -2)], -1) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v


@torch.no_grad()
def streaming_no_grad(q, k, v, block):
    return online()(q, k, v, block)


# -- vit.test_attend ---------------------------------------------------------------------------------------------------


def shape_alone(attend):
    assert attend(torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4)).shape == (5, 4)


def all_values_equal(attend):
    v = torch.ones(5, 4)
    assert torch.allclose(attend(torch.randn(5, 4), torch.randn(5, 4), v), v)


def one_tensor(attend):
    x = torch.randn(5, 4)
    assert torch.allclose(attend(x, x, x), F.scaled_dot_product_attention(x, x, x), atol=1e-5)


def one_key(attend):
    v = torch.randn(1, 4)
    assert torch.allclose(attend(torch.randn(1, 4), torch.randn(1, 4), v), v)


def zero_queries(attend):
    v = torch.randn(5, 4)
    assert torch.allclose(attend(torch.zeros(5, 4), torch.randn(5, 4), v), v.mean(0).expand(5, 4), atol=1e-5)


def no_assert(attend):
    attend(torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4))


def returns_true(attend):
    q = torch.randn(5, 4)
    return torch.allclose(attend(q, q, q), q)


def wrong_expectation(attend):
    q, k, v = torch.randn(3, 5, 4)
    assert torch.allclose(attend(q, k, v), (q @ k.T).softmax(-1) @ v)


def always_false(attend):
    assert attend(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2)).sum() == 0, "should be zero"


def finite(attend):
    assert torch.isfinite(attend(torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 4))).all()


def rows_of_weights(attend):
    v = torch.eye(5)
    out = attend(torch.randn(5, 5), torch.randn(5, 5), v)
    assert torch.allclose(out.sum(-1), torch.ones(5), atol=1e-5)


def order_of_keys(attend):
    q, k, v = torch.randn(3, 5, 4)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.allclose(attend(q, k, v), attend(q, k[order], v[order]), atol=1e-5)


# -- vit.mend_block: a block of a SigLIP checkpoint, by hand -----------------------------------------------------------


def a_block(
    weights,
    num_heads,
    eps,
    x,
    *,
    eps1=None,
    eps2=None,
    split="right",
    merge="right",
    gelu=lambda x: F.gelu(x, approximate="tanh"),
    mask=False,
    scale=None,
    order="pre",
    without="",
):
    batch, num_patches, dim = x.shape

    def linear(name, x):
        bias = None if without == "bias" else weights[f"{name}.bias"]
        return F.linear(x, weights[f"{name}.weight"], bias)

    def norm(name, x, own):
        return F.layer_norm(x, (dim,), weights[f"{name}.weight"], weights[f"{name}.bias"], own or eps)

    def heads(x):
        if split == "as it was":
            return x.view(batch, num_heads, num_patches, -1)
        if split == "none":
            return x
        return x.view(batch, num_patches, num_heads, -1).transpose(1, 2)

    def attention(h):
        q, k, v = (heads(linear(f"self_attn.{name}_proj", h)) for name in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=mask, scale=scale)
        if split == "right" and merge == "right":
            mixed = mixed.transpose(1, 2)
        mixed = mixed.reshape(batch, num_patches, dim)
        return mixed if without == "out_proj" else linear("self_attn.out_proj", mixed)

    def mlp(h):
        return linear("mlp.fc2", gelu(linear("mlp.fc1", h)))

    if order == "post":
        x = norm("layer_norm1", x + attention(x), eps1)
        return norm("layer_norm2", x + mlp(x), eps2)
    h = norm("layer_norm1", x, eps1)
    x = attention(h) if without == "first residual" else (h if order == "normed" else x) + attention(h)
    h = x if without == "second norm" else norm("layer_norm2", x, eps2)
    return mlp(h) if without == "second residual" else (h if order == "normed" else x) + mlp(h)


def mend(**how):
    """A version that is called as the exercise asks."""
    return lambda weights, num_heads, eps, x: a_block(weights, num_heads, eps, x, **how)


AS_IT_WAS = {"eps1": 1e-5, "eps2": 1e-5, "split": "as it was", "gelu": F.gelu}
mended_nothing_mended = mend(**AS_IT_WAS)
mended_heads_alone = mend(**AS_IT_WAS | {"split": "right"})
mended_gelu_alone = mend(eps1=1e-5, eps2=1e-5, split="as it was")
mended_eps_alone = mend(split="as it was", gelu=F.gelu)
mended_heads_and_eps = mend(gelu=F.gelu)
mended_heads_and_gelu = mend(eps1=1e-5, eps2=1e-5)
mended_eps_and_gelu = mend(split="as it was")
mended_one_norm = mend(eps2=1e-5)
mended_the_other_norm = mend(eps1=1e-5)
mended_eps_written_in = mend(eps1=1e-6, eps2=1e-6)
mended_merged_without_turning = mend(merge="plain")
mended_no_heads = mend(split="none")
mended_quick_gelu = mend(gelu=lambda x: x * torch.sigmoid(1.702 * x))
mended_relu_in_place_of_gelu = mend(gelu=F.relu)
mended_causal = mend(mask=True)
mended_unscaled = mend(scale=1.0)
mended_post_norm = mend(order="post")
mended_stream_is_normed = mend(order="normed")
mended_no_first_residual = mend(without="first residual")
mended_no_second_residual = mend(without="second residual")
mended_no_second_norm = mend(without="second norm")
mended_no_out_proj = mend(without="out_proj")
mended_no_biases = mend(without="bias")


WRONG = {
    "vit.attention": [
        (not_scaled, "not scaled"),
        (by_head_dim, "divided by head_dim"),
        (times_the_root, "multiplied"),
        (softmax_over_queries, "over the queries"),
        (softmax_dim_0, "dim=0"),
        (softmax_dim_1, "dim=1"),
        (raw_scores, "no softmax"),
        (scaled_too_late, "after the softmax"),
        (by_number_of_keys, "number of keys"),
        (by_second_axis, "shape[1]"),
        (sixty_four, "written in"),
        (only_weights, "mix the values"),
        (dot_t, "last two"),
        (first_two_swapped, "last two"),
        (middle_two_swapped, "last two"),
        (keys_as_they_are, "last two"),
        (exp_by_hand, "overflows"),
        (whole_table, "whole table"),
        (log_weights, "logarithms"),
        (keys_for_values, "keys are mixed"),
        (keys_ask, "changed places"),
        (causal, "causal"),
        (weights_detached, "radient"),
        (scales_q_in_place, "in place"),
    ],
    "vit.split_heads": [
        (one_view_each, "reading order"),
        (one_reshape_for_all, "reading order"),
        (three_before_patches, "reading order"),
        (heads_outside, "Each head takes its own"),
        (interleaved, "num_heads-th"),
        (no_transpose, "before heads"),
        (only_three, "not yet cut"),
        (turned, "last two axes"),
        (k_first, "q first"),
        (v_second, "q first"),
        (heads_in_the_batch, "batch and heads"),
        (heads_first, "batch and num_heads"),
        (two_of_three, "2 things"),
        (cut_off, "radient"),
        (first_head_only, "head 0"),
    ],
    "vit.attention_module": [
        (JoinWithoutSwap, "without swapping"),
        (OneHead, "single head"),
        (NoOutProj, "out_proj"),
        (KeysFirst, "changed places"),
        (ValuesSecond, "changed places"),
        (AcrossHeads, "heads of one patch"),
        (AddsX, "added to the result"),
        (NotScaled, "not scaled"),
        (RootOfDim, "hidden_dim"),
        (ByHeadDim, "divided by head_dim"),
        (SoftmaxDim0, "dim=0"),
        (SoftmaxDim1, "dim=1"),
        (SoftmaxOverQueries, "over the queries"),
        (NoSoftmax, "no softmax"),
        (ReshapeForHeads, "reading order"),
        (HeadsOutside, "Each head takes its own"),
        (HeadDimHeads, "head_dim"),
        (Causal, "causal"),
        (ThreeLayers, "qkv_proj"),
        (NoBias, "qkv_proj.bias"),
        (NoGrad, "radient"),
        (DetachedV, "radient"),
        (DetachedWeights, "radient"),
    ],
    "vit.mlp": [
        (ExactGelu, "exact GELU"),
        (Relu, "ReLU"),
        (Tanh, "tanh alone"),
        (Silu, "SiLU"),
        (Sigmoid, "sigmoid alone"),
        (QuickGelu, "quick GELU"),
        (Nothing, "no activation"),
        (LeakyRelu, "another activation"),
        (Elu, "another activation"),
        (Softplus, "another activation"),
        (GeluTwice, "twice"),
        (Detached, "radient"),
        (ActivationLast, "behind fc2"),
        (ActivationBoth, "behind fc2"),
        (ActivationFirst, "before fc1"),
        (MLPAddsX, "added to the result"),
        (NormInside, "normalised"),
        (FourTimes, "fc1.weight has shape"),
        (NoBiasMLP, "fc1.bias"),
        (OtherNames, "no parameter fc1"),
    ],
    "vit.block": [
        (post_norm, "post-norm"),
        (no_residual, "Nothing is added back"),
        (first_residual_missing, "attention's result replaces"),
        (second_residual_missing, "MLP's result replaces"),
        (adds_to_the_normalised, "main road"),
        (side_by_side, "side by side"),
        (ln1_twice, "ln1 stands before both"),
        (norms_swapped, "changed places"),
        (mlp_first, "MLP comes first"),
        (mlp_not_normalised, "MLP's input is not"),
        (attention_not_normalised, "attention's input is not"),
        (adds_to_the_old_x, "from before"),
        (norm_on_the_way_out, "what the sub-layers give"),
        (x_twice, "twice"),
        (in_place, "in place"),
        (road_detached, "radient"),
        (no_norms, "Neither"),
        (DefaultEps, "eps"),
        (SiglipEps, "eps"),
        (OneNorm, "ln2"),
        (RMSNorms, "ln1.bias"),
    ],
    "vit.encoder": [
        (no_last_norm, "last layer norm is missing"),
        (norm_first, "before the blocks"),
        (norm_each_time, "after every block"),
        (all_read_the_embedding, "reads the patch embedding"),
        (return_in_the_loop, "first block"),
        (backwards, "last to the first"),
        (averaged, "averaged"),
        (first_patch, "class token"),
        (positions_again, "positions"),
        (residual_round_the_blocks, "residual"),
        (no_gradients, "radient"),
        (embedding_detached, "radient"),
        (hidden_states, "a list"),
        (one_block_short, "One block"),
        (blocks_forgotten, "do not run"),
        (SameBlock, "same block"),
        (PlainList, "plain Python list"),
        (EncoderEps, "eps"),
        (OtherNorm, "layer_norm.weight"),
    ],
    "vit.count_parameters": [
        (no_biases, "biases of the linear layers"),
        (no_block_biases, "biases inside the blocks"),
        (conv_bias_forgotten, "patch embedding has a bias"),
        (no_positions, "positions are missing"),
        (class_token, "class token"),
        (class_token_and_its_position, "class token"),
        (grey, "three colours"),
        (half_norms, "a weight and a bias"),
        (last_norm_forgotten, "last layer norm"),
        (block_norms_forgotten, "norms inside the blocks"),
        (one_norm_a_block, "two norms"),
        (out_proj_forgotten, "out_proj is missing"),
        (each_head_its_own, "once for each head"),
        (q_k_v_as_one, "three times"),
        (one_block, "single block"),
        (four_times, "inter_dim"),
        (half_an_mlp, "fc2"),
        (patch_not_squared, "patch_size ** 2"),
        (position_per_pixel, "pixel"),
        (a_float, "whole number"),
    ],
    "vit.siglip_loss": [
        (mean_of_pairs, "averaged over all pairs"),
        (sum_of_pairs, "not divided"),
        (diagonal_alone, "diagonal"),
        (not_normalised, "not normalised"),
        (images_normalised, "one of the two"),
        (normalised_over_the_batch, "over the batch"),
        (scale_without_exp, "logarithm"),
        (divided_by_the_scale, "divided by the scale"),
        (no_bias, "bias is missing"),
        (bias_scaled, "bias is scaled"),
        (zero_and_one, "0 and 1"),
        (signs_turned, "wrong way round"),
        (no_minus, "minus is missing"),
        (clip, "CLIP"),
        (log_of_sigmoid, "logsigmoid"),
        (a_number, "expected a tensor"),
        (scale_detached, "radient"),
    ],
    "vit.update_sizes": [
        (beside_the_sum, "after the addition"),
        (lengths_alone, "updates alone"),
        (upside_down, "upside down"),
        (whole_tensor, "whole tensor"),
        (means_divided, "patch by patch"),
        (over_patches, "over the patches"),
        (absolute_values, "absolute values"),
        (summed, "sum over the patches"),
        (squares, "squares"),
        (never_added, "never changed"),
        (not_normalised_first, "normalised copy"),
        (whole_blocks, "apart"),
    ],
    "vit.streaming_attention": [
        (unscaled, "not scaled"),
        (sum_not_shrunk, "sum does not shrink"),
        (mixture_not_shrunk, "mixture does not shrink"),
        (nothing_shrunk, "Neither"),
        (never_divided, "not divided"),
        (wrong_way, "upside down"),
        (own_maximum, "own maximum"),
        (each_block_alone, "softmax of its own"),
        (overwritten, "last block"),
        (early_return, "first block"),
        (rest_left_out, "smaller block"),
        (no_maximum, "largest score"),
        (not_streaming, "grows with all"),
        (keeps_all_scores, "grows with all"),
        (streaming_no_grad, "radient"),
    ],
    "vit.test_attend": [
        (shape_alone, "shape alone"),
        (all_values_equal, "same vector"),
        (one_tensor, "one tensor"),
        (one_key, "single key"),
        (zero_queries, "all zero"),
        (no_assert, "catches"),
        (returns_true, "returns nothing"),
        (wrong_expectation, "attention that is right"),
        (always_false, "attention that is right"),
        (finite, "shape alone"),
        (rows_of_weights, "sum to 1"),
        (order_of_keys, "catches"),
    ],
    "vit.mend_block": [
        (mended_nothing_mended, "as it was"),
        (mended_heads_alone, "eps and the GELU"),
        (mended_gelu_alone, "heads and the eps"),
        (mended_eps_alone, "heads and the GELU"),
        (mended_heads_and_eps, "exact GELU"),
        (mended_heads_and_gelu, "1e-5"),
        (mended_eps_and_gelu, "heads are cut"),
        (mended_one_norm, "second norm"),
        (mended_the_other_norm, "first norm"),
        (mended_eps_written_in, "1e-6"),
        (mended_merged_without_turning, "back"),
        (mended_no_heads, "one wide head"),
        (mended_quick_gelu, "quick GELU"),
        (mended_relu_in_place_of_gelu, "ReLU"),
        (mended_causal, "causal"),
        (mended_unscaled, "head_dim"),
        (mended_post_norm, "behind the addition"),
        (mended_stream_is_normed, "normalised vector"),
        (mended_no_first_residual, "residual connection around attention"),
        (mended_no_second_residual, "residual connection around the MLP"),
        (mended_no_second_norm, "layer_norm2"),
        (mended_no_out_proj, "out_proj"),
        (mended_no_biases, "biases"),
    ],
}
