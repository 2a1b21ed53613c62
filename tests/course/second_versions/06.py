"""Chapter 06 once more, written another way."""

from __future__ import annotations

from math import prod

import einops
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.models.vision_language_model import VisionLanguageModel, VLMOutput


def merge_image_tokens(embeddings: Tensor, image_tokens: Tensor, is_placeholder: Tensor) -> Tensor:
    """Place by place, with a counter."""
    size = image_tokens.shape[1]
    line = list(image_tokens.flatten(0, 1))
    rows = []
    for vectors, mask in zip(embeddings, is_placeholder.tolist(), strict=True):
        if sum(mask) % size or sum(mask) > len(line):
            raise ValueError("This row's placeholders and the pictures do not fit.")
        row = [line.pop(0).to(vectors.dtype) if taken else vector for vector, taken in zip(vectors, mask, strict=True)]
        rows.append(torch.stack(row))
    if line:
        raise ValueError("There are more pictures than placeholders.")
    return torch.stack(rows)


def embed(self, input_ids: Tensor, images: Tensor | None, attention_mask: Tensor | None):
    """No placeholder is the case of an id that no token has; a new line is filled from both ends."""
    words = self.decoder.token_embedding(input_ids)
    marker = -1 if self.config.image_token_id is None else self.config.image_token_id
    holds = input_ids.eq(marker)
    count = 0 if images is None else len(images)
    if not count:
        if int(holds.sum()):
            raise ValueError("Where is the picture?")
        return words, attention_mask, 0
    tokens = self.projector(self.vision_encoder(images))
    if int(holds.sum()):
        return merge_image_tokens(words, tokens, holds), attention_mask, 0
    batch, length, dim = words.shape
    n = tokens.shape[1]
    line = words.new_zeros(batch, n + length, dim)
    line[:, :n], line[:, n:] = tokens, words
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask.new_ones(batch, n), attention_mask], 1)
    return line, attention_mask, n


def answer_loss(head, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """One position after the other."""
    num_prefix = x.shape[1] - targets.shape[1]
    logits, losses = [], []
    for row, places in enumerate(targets.tolist()):
        for position, target in enumerate(places):
            if target >= 0:
                logits.append(head(x[row, num_prefix + position]))
                losses.append(-logits[-1].log_softmax(0)[target])
    if not losses:
        raise ValueError("Nothing to learn from.")
    return torch.stack(logits), torch.stack(losses).mean()


def forward(
    self,
    input_ids,
    images=None,
    attention_mask=None,
    targets=None,
    document_ids=None,
    output_hidden_states=False,
    cache=None,
):
    """The states are always collected; the loss comes from the loop above."""
    x, mask, num_prefix = embed(self, input_ids, images, attention_mask)
    if num_prefix > 0 and document_ids is not None:
        raise ValueError("Whose picture is it?")
    states: list[Tensor] = []
    x = self.decoder(x, attention_mask=mask, document_ids=document_ids, cache=cache, hidden_states=states)
    logits, loss = (self.decoder.head(x), None) if targets is None else answer_loss(self.decoder.head, x, targets)
    return VLMOutput(logits=logits, loss=loss, hidden_states=states if output_hidden_states else None)


def moved(logits: Tensor, other: Tensor) -> Tensor:
    """What did not move is what the two have in common."""
    return 1 - torch.minimum(logits.softmax(1), other.softmax(1)).sum(1)


def parameters_by_part(config) -> dict[str, int]:
    """Every tensor as its shape."""
    v, m, p = config.vision, config.language, config.projector
    d, i = v.hidden_dim, v.inter_dim
    block = [(3 * d, d), (3 * d,), (d, d), (d,), (i, d), (i,), (d, i), (d,), *[(d,)] * 4]
    vision = [(d, 3, v.patch_size, v.patch_size), (d,), (v.grid_size**2, d), *block * v.num_blocks, (d,), (d,)]
    d, i, kv = m.hidden_dim, m.inter_dim, m.hidden_dim * m.num_kv_heads // m.num_heads
    block = [(d, d), (kv, d), (kv, d), (d, d), (i, d), (i, d), (d, i), (d,), (d,)]
    decoder = [(m.vocab_size, d), *block * m.num_blocks, (d,), *([] if m.tie_weights else [(m.vocab_size, d)])]
    factor = p.pixel_shuffle_factor
    parts = {"vision_encoder": vision, "projector": [(d, p.vision_dim, factor, factor)], "decoder": decoder}
    return {name: sum(map(prod, shapes)) for name, shapes in parts.items()}


# -- more styles -------------------------------------------------------------------------------------------------------


def _fits(embeddings, image_tokens, is_placeholder) -> None:
    counts = is_placeholder.long().sum(dim=-1)
    if counts.remainder(image_tokens.shape[1]).any():
        raise ValueError("a row holds part of a picture")
    if counts.sum() != image_tokens.shape[0] * image_tokens.shape[1]:
        raise ValueError("placeholders and image tokens differ in number")


def merge_by_index(embeddings, image_tokens, is_placeholder):
    _fits(embeddings, image_tokens, is_placeholder)
    out = embeddings.clone()
    out[is_placeholder] = image_tokens.flatten(0, 1).to(out)
    return out


def merge_by_index_put(embeddings, image_tokens, is_placeholder):
    _fits(embeddings, image_tokens, is_placeholder)
    tokens = einops.rearrange(image_tokens, "p n d -> (p n) d").type_as(embeddings)
    return embeddings.index_put(is_placeholder.nonzero(as_tuple=True), tokens)


def merge_by_where(embeddings, image_tokens, is_placeholder):
    """Each place looks up its token: how many placeholders there are up to it."""
    _fits(embeddings, image_tokens, is_placeholder)
    if not is_placeholder.any():
        return embeddings.clone()
    number = is_placeholder.flatten().cumsum(0).sub(1).clamp(min=0).view_as(is_placeholder)
    tokens = image_tokens.reshape(-1, image_tokens.shape[-1]).to(embeddings.dtype)
    return torch.where(is_placeholder.unsqueeze(-1), tokens[number], embeddings)


def merge_row_by_row(embeddings, image_tokens, is_placeholder):
    size, used, rows = image_tokens.size(1), 0, []
    for vectors, mask in zip(embeddings, is_placeholder, strict=True):
        pictures, rest = divmod(int(mask.sum()), size)
        if rest:
            raise ValueError("part of a picture")
        own = image_tokens[used : used + pictures].reshape(-1, vectors.shape[-1]).to(vectors.dtype)
        used += pictures
        if len(own) != pictures * size:
            raise ValueError("too few pictures")
        row = vectors.clone()
        row[mask] = own
        rows.append(row)
    if used != len(image_tokens):
        raise ValueError("too many pictures")
    return torch.stack(rows)


def merge_into_flat_copy(embeddings, image_tokens, is_placeholder):
    _fits(embeddings, image_tokens, is_placeholder)
    places = torch.nonzero(is_placeholder.reshape(-1)).squeeze(1)
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    return flat.index_copy(0, places, image_tokens.reshape(-1, flat.shape[-1]).to(flat.dtype)).view_as(embeddings)


def embed_by_cases(self, input_ids, images, attention_mask):
    vectors = self.decoder.token_embedding(input_ids)
    marker = self.config.image_token_id
    seats = torch.zeros_like(input_ids, dtype=torch.bool) if marker is None else input_ids == marker
    pictures = 0 if images is None else images.shape[0]
    match bool(seats.any()), pictures > 0:
        case True, False:
            raise ValueError("no picture came")
        case False, False:
            return vectors, attention_mask, 0
        case True, True:
            return merge_by_index(vectors, self.projector(self.vision_encoder(images)), seats), attention_mask, 0
    tokens = self.projector(self.vision_encoder(images))
    if attention_mask is not None:
        ones = torch.ones(len(tokens), tokens.shape[1], dtype=attention_mask.dtype)
        attention_mask = torch.hstack([ones, attention_mask])
    return torch.hstack([tokens, vectors]), attention_mask, tokens.shape[1]


def embed_with_einops(self, input_ids, images, attention_mask):
    words, n = self.decoder.token_embedding(input_ids), 0
    token = self.config.image_token_id
    is_placeholder = torch.full_like(input_ids, False, dtype=torch.bool) if token is None else input_ids.eq(token)
    if images is None or images.numel() == 0:
        if is_placeholder.any():
            raise ValueError("where is the picture?")
    else:
        tokens = self.projector(self.vision_encoder(images))
        if is_placeholder.any():
            words = merge_by_where(words, tokens, is_placeholder)
        else:
            words, n = einops.pack([tokens, words], "b * d")[0], tokens.shape[1]
    mask = attention_mask if attention_mask is None or n == 0 else F.pad(attention_mask, [n, 0], "constant", 1)
    return words, mask, n


def embed_with_sets(self, input_ids, images, attention_mask):
    """Python's own tools ask whether there is a placeholder; a list is a fine result."""
    words = self.decoder.token_embedding(input_ids)
    has = self.config.image_token_id in set(input_ids.flatten().tolist())
    if images is None or not len(images):
        if has:
            raise ValueError
        return [words, attention_mask, 0]
    tokens = self.projector(self.vision_encoder(images))
    if has:
        return [merge_row_by_row(words, tokens, input_ids == self.config.image_token_id), attention_mask, 0]
    if attention_mask is not None:
        attention_mask = torch.cat((torch.ones_like(tokens[..., 0]).to(attention_mask), attention_mask), dim=-1)
    return [torch.cat((tokens, words), dim=-2), attention_mask, tokens.size(1)]


def loss_by_ignore_index(head, x, targets):
    """torch's own ignore_index, on the places that were picked already."""
    last = x[:, -targets.shape[1] :].flatten(0, 1)
    wanted = targets.flatten()
    keep = wanted.ne(-100).nonzero().squeeze(1)
    if keep.numel() == 0:
        raise ValueError("nothing to learn")
    logits = head(last.index_select(0, keep))
    return logits, F.cross_entropy(logits, wanted[keep], ignore_index=-100)


def loss_by_log_softmax(head, x, targets):
    keep = targets >= 0
    if not keep.any():
        raise ValueError("no target")
    logits = head(x.narrow(1, x.shape[1] - targets.shape[1], targets.shape[1])[keep])
    return logits, -logits.log_softmax(-1).gather(1, targets[keep].unsqueeze(1)).mean()


def loss_in_float64(head, x, targets):
    keep = targets != -100
    if keep.sum() == 0:
        raise ValueError("no target")
    logits = head(x[:, x.size(1) - targets.size(1) :][keep]).double()
    return logits, torch.logsumexp(logits, 1).sub(logits[torch.arange(len(logits)), targets[keep]]).mean()


def loss_as_module(head, x, targets):
    pairs = [
        (x[b, t - targets.shape[1]], i)
        for b, row in enumerate(targets.tolist())
        for t, i in enumerate(row)
        if i != -100
    ]
    if not pairs:
        raise ValueError("no target")
    logits = head(torch.stack([vector for vector, _ in pairs]))
    return [logits, torch.nn.CrossEntropyLoss()(logits, torch.tensor([i for _, i in pairs]))]


def loss_by_sum(head, x, targets):
    T = targets.shape[1]
    rows, columns = torch.where(targets != -100)
    if len(rows) == 0:
        raise ValueError("no target")
    logits = head(x[:, -T:][rows, columns])
    return logits, F.cross_entropy(logits, targets[rows, columns], reduction="sum") / len(rows)


def _forward_with(loss, keywords=False, padded=False):
    def forward(self, input_ids, images=None, attention_mask=None, targets=None, document_ids=None,
                output_hidden_states=False, cache=None):  # fmt: skip
        x, mask, prefix = self.embed(input_ids, images, attention_mask)
        if document_ids is not None and prefix:
            raise ValueError("whose picture?")
        states = [] if output_hidden_states else None
        if keywords:
            x = self.decoder(x=x, attention_mask=mask, document_ids=document_ids, cache=cache, hidden_states=states)
        else:
            x = self.decoder(x, mask, document_ids, cache, states)
        if targets is None:
            return VLMOutput(logits=self.decoder.head(x), loss=None, hidden_states=states)
        if padded:  # image tokens are never supervised
            targets = F.pad(targets, (prefix, 0), value=-100)
        logits, mean = loss(self.decoder.head, x, targets)
        return VLMOutput(logits, mean, states)

    return forward


def forward_unbound(self, *args, **kwargs):
    """The package's own method, called as a function."""
    return VisionLanguageModel.forward(self, *args, **kwargs)


def moved_by_gains(logits, other):
    return (torch.softmax(other, 1) - torch.softmax(logits, 1)).clamp(min=0).sum(1)


def moved_by_norm(logits, other):
    return torch.linalg.vector_norm(logits.softmax(-1) - other.softmax(-1), ord=1, dim=-1).div(2)


def moved_in_loops(logits, other):
    rows = []
    for a, b in zip(*((y - y.amax(1, True)).exp() for y in (logits, other)), strict=True):
        rows.append(sum(abs(x / a.sum() - y / b.sum()) for x, y in zip(a, b, strict=True)) / 2)
    return torch.stack(rows)


def moved_by_cdist(logits, other):
    return torch.cdist(logits.softmax(-1)[:, None], other.softmax(-1)[:, None], p=1).flatten() * 0.5


def moved_with_einops(logits, other):
    return 0.5 * einops.reduce((F.softmax(logits, 1) - F.softmax(other, 1)).abs(), "b v -> b", "sum")


def moved_in_float64(logits, other):
    return (logits.double().softmax(-1) - other.double().softmax(-1)).abs().sum(-1) / 2


def count_on_meta(config):
    with torch.device("meta"):
        model = VisionLanguageModel(config)
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def linear(n_in, n_out, bias=True):
    return n_in * n_out + n_out * bias


def count_by_layers(config):
    v, p, m = config.vision, config.projector, config.language
    d, kv = m.hidden_dim, m.num_kv_heads * m.head_dim
    encoder = linear(3 * v.patch_size**2, v.hidden_dim) + v.num_patches * v.hidden_dim + 2 * v.hidden_dim
    for _ in range(v.num_blocks):
        encoder += linear(v.hidden_dim, 3 * v.hidden_dim) + linear(v.hidden_dim, v.hidden_dim) + 4 * v.hidden_dim
        encoder += linear(v.hidden_dim, v.inter_dim) + linear(v.inter_dim, v.hidden_dim)
    decoder = d + d * m.vocab_size
    if not m.tie_weights:
        decoder += d * m.vocab_size
    for _ in range(m.num_blocks):
        decoder += 2 * linear(d, d, False) + 2 * linear(d, kv, False) + 3 * linear(d, m.inter_dim, False) + 2 * d
    return {
        "vision_encoder": encoder,
        "projector": linear(p.vision_dim * p.pixel_shuffle_factor**2, d, False),
        "decoder": decoder,
    }


def count_in_float(config):
    """A power of 0.5 and a division that leave whole numbers, taken as whole numbers at the end."""
    counts = count_by_layers(config)
    return {name: int(value / 2 * 2) for name, value in counts.items()}


def count_backwards(config):
    return dict(reversed(count_by_layers(config).items()))


def positions_by_padding(attention_mask, num_image_tokens):
    """Every token, less the padding in front of it."""
    mask = torch.cat([torch.ones(len(attention_mask), num_image_tokens).to(attention_mask), attention_mask], dim=1)
    return mask, torch.arange(mask.shape[1]) - mask.eq(0).cumsum(1)


def positions_in_loops(attention_mask, num_image_tokens):
    rows, masks = [], []
    for row in attention_mask.tolist():
        row = [1] * num_image_tokens + row
        rows.append([sum(row[:i]) for i in range(len(row))])
        masks.append(row)
    return [torch.tensor(masks), torch.tensor(rows, dtype=torch.int32)]


def positions_by_matrix(attention_mask, num_image_tokens):
    mask = F.pad(attention_mask, [num_image_tokens, 0, 0, 0], "constant", 1)
    before = torch.ones(mask.shape[1], mask.shape[1], dtype=mask.dtype).triu(1)
    return mask, mask @ before


def positions_in_place(attention_mask, num_image_tokens):
    mask = attention_mask.new_ones(len(attention_mask), num_image_tokens + attention_mask.shape[1])
    mask[:, num_image_tokens:] = attention_mask
    positions = mask.cumsum(-1)
    positions -= 1
    positions[mask == 0] = 7
    return mask, positions


def positions_from_two_parts(attention_mask, num_image_tokens):
    picture = torch.arange(num_image_tokens).expand(len(attention_mask), num_image_tokens)
    text = num_image_tokens - 1 + attention_mask.cumsum(1)
    return torch.hstack([torch.ones_like(picture), attention_mask]), torch.hstack([picture, text])


def _throws(merge, texts, count):
    try:
        merge(texts, torch.ones(count, 2, 1), texts[..., 0] > 50)
    except ValueError:
        return True
    return False


def test_with_one_row_each(merge):
    a, b = torch.tensor([[1.0, 60, 60, 2], [60, 60, 3, 4]]), torch.tensor([[60.0, 60, 5, 6]])
    out = merge(a[..., None], torch.tensor([[[7.0], [8]], [[9], [10]]]), a > 50)
    assert torch.equal(out[..., 0], torch.tensor([[1.0, 7, 8, 2], [9, 10, 3, 4]]))
    two = torch.tensor([[60.0, 60, 60, 60], [1, 2, 60, 60]])
    out = merge(two[..., None], torch.arange(6.0).view(3, 2, 1), two > 50)
    assert out.flatten().tolist() == [0, 1, 2, 3, 1, 2, 4, 5]
    assert _throws(merge, two[..., None], 2)
    assert _throws(merge, b[..., None], 2) and not _throws(merge, b[..., None], 1)
    assert _throws(merge, torch.tensor([[60.0, 1, 2], [60, 60, 60]])[..., None], 2)


def test_against_a_loop(merge):
    texts = torch.full((3, 6, 1), 5.0)
    texts[0, 1:3] = texts[0, 4:] = texts[2, :2] = 99.0
    images = torch.arange(6.0).reshape(3, 2, 1) + 20
    wanted, tokens = texts.clone(), iter(images.flatten())
    for b in range(3):
        for t in range(6):
            if texts[b, t] > 50:
                wanted[b, t] = next(tokens)
    assert torch.equal(merge(texts, images, texts[..., 0] > 50), wanted)
    assert _throws(merge, texts, 2) and _throws(merge, texts, 4)
    texts[0, 5] = 5.0
    texts[1, 0] = 99.0
    assert _throws(merge, texts, 3), "a picture in two rows"


def test_in_plain_ifs(merge):
    texts = torch.tensor([[60.0, 60, 60, 60], [60, 60, 1, 2]])[..., None]
    out = merge(texts, torch.arange(6.0).view(3, 2, 1), texts[..., 0] > 50)
    if out.flatten().tolist() != [0, 1, 2, 3, 4, 5, 1, 2]:
        raise AssertionError("wrong places")
    uneven = torch.tensor([[60.0, 60, 60], [60, 1, 2]])[..., None]
    for inputs in ((texts, 2), (texts, 4), (uneven, 2)):
        if not _throws(merge, *inputs):
            raise AssertionError(f"{inputs[1]} pictures went through")


def test_by_reference(merge):
    """The package's own function says what is right."""
    from nanovlm.models.vision_language_model import merge_image_tokens as right

    for seats, count in (("w##w##,##wwww", 3), ("###w,w#ww", 2), ("w##w,wwww", 2), ("####,####", 3)):
        mask = torch.tensor([[letter == "#" for letter in row] for row in seats.split(",")])
        texts, images = torch.rand(*mask.shape, 2), torch.rand(count, 2, 2)
        try:
            wanted = right(texts, images, mask)
        except ValueError:
            wanted = None
        try:
            out = merge(texts, images, mask)
        except ValueError:
            out = None
        assert (wanted is None) == (out is None)
        assert wanted is None or torch.equal(wanted, out)


def test_with_bare_numbers(merge):
    mask = torch.tensor([[False, True, True, True, True], [True, True, False, False, False]])
    texts = torch.arange(10.0).reshape(2, 5, 1)
    out = merge(texts, -torch.arange(1.0, 7).reshape(3, 2, 1), mask)
    assert [int(x) for x in out.flatten()] == [0, -1, -2, -3, -4, -5, -6, 7, 8, 9]
    refused = 0
    mask_2 = torch.tensor([[False, True, True, True, False], [True, False, False, False, False]])
    for images, where in ((2, mask), (4, mask), (2, mask_2)):
        try:
            merge(texts, torch.zeros(images, 2, 1), where)
        except ValueError:
            refused += 1
    assert refused == 3


def test_with_pytest(merge):
    """pytest.raises ends a test by an exception of its own, which is no Exception."""
    embeddings, images = torch.arange(1.0, 13.0).reshape(2, 6, 1), torch.arange(100.0, 106.0).reshape(3, 2, 1)
    places = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 0, 0]]).bool()
    out = merge(embeddings, images, places)
    assert out[:, :, 0].tolist() == [[1, 100, 101, 4, 102, 103], [7, 104, 105, 10, 11, 12]]
    torn = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    for wrong in ((embeddings, images[:2], places), (embeddings, images[[0, 1, 2, 0]], places)):
        with pytest.raises(ValueError):
            merge(*wrong)
    with pytest.raises(ValueError):
        merge(embeddings, images[:2], torn)


VERSIONS = {
    "fusion.merge_image_tokens": (
        merge_image_tokens,
        merge_by_index,
        merge_by_index_put,
        merge_by_where,
        merge_row_by_row,
        merge_into_flat_copy,
    ),
    "fusion.embed": (embed, embed_by_cases, embed_with_einops, embed_with_sets, VisionLanguageModel.embed),
    "fusion.answer_loss": (
        answer_loss,
        loss_by_ignore_index,
        loss_by_log_softmax,
        loss_in_float64,
        loss_as_module,
        loss_by_sum,
    ),
    "fusion.forward": (
        forward,
        forward_unbound,
        _forward_with(loss_by_ignore_index, keywords=True),
        _forward_with(loss_as_module, padded=True),
        _forward_with(loss_by_sum),
    ),
    "fusion.moved": (
        moved,
        moved_by_gains,
        moved_by_norm,
        moved_in_loops,
        moved_by_cdist,
        moved_with_einops,
        moved_in_float64,
    ),
    "fusion.batch_positions": (
        positions_by_padding,
        positions_in_loops,
        positions_by_matrix,
        positions_in_place,
        positions_from_two_parts,
    ),
    "fusion.test_merge": (
        test_with_pytest,
        test_with_one_row_each,
        test_against_a_loop,
        test_in_plain_ifs,
        test_by_reference,
        test_with_bare_numbers,
    ),
    "fusion.parameters_222m": (parameters_by_part, count_on_meta, count_by_layers, count_in_float, count_backwards),
}
