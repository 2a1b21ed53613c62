"""Chapter 06: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nanovlm.models.vision_language_model import VLMOutput


def named(name, version):
    """A wrong answer under a name of its own: most of these differ in one expression."""
    version.__name__ = name
    return version


# -- fusion.merge_image_tokens -----------------------------------------------------------------------------------------


def _counted(embeddings, images, mask):
    counts, size = mask.sum(1).tolist(), images.shape[1]
    if any(count % size for count in counts) or sum(counts) != len(images) * size:
        raise ValueError("placeholders and pictures do not fit")
    return embeddings, images, mask


def _fill(change=lambda embeddings, images, mask: (embeddings, images, mask)):
    """The right answer about inputs that were changed once they had been counted."""

    def merge(embeddings, image_tokens, is_placeholder):
        embeddings, images, mask = change(*_counted(embeddings, image_tokens, is_placeholder))
        return embeddings.masked_scatter(mask[:, :, None], images.to(embeddings.dtype))

    return merge


def counts_nothing(embeddings, image_tokens, is_placeholder):
    return embeddings.masked_scatter(is_placeholder.unsqueeze(-1), image_tokens.to(embeddings.dtype))


def counts_the_batch(embeddings, image_tokens, is_placeholder):
    if is_placeholder.sum().item() != image_tokens[:, :, 0].numel():
        raise ValueError("not equal")
    return counts_nothing(embeddings, image_tokens, is_placeholder)


def refuses_too_few_only(embeddings, image_tokens, is_placeholder):
    size = image_tokens.shape[1]
    if (is_placeholder.sum(1) % size).any() or is_placeholder.sum() < size * len(image_tokens):
        raise ValueError("too few")
    return counts_nothing(embeddings, image_tokens, is_placeholder)


def asserts_the_counts(embeddings, image_tokens, is_placeholder):
    size = image_tokens.shape[1]
    assert not (is_placeholder.sum(1) % size).any()
    assert is_placeholder.sum() == size * len(image_tokens)
    return counts_nothing(embeddings, image_tokens, is_placeholder)


def returns_the_error(embeddings, image_tokens, is_placeholder):
    try:
        return _fill()(embeddings, image_tokens, is_placeholder)
    except ValueError as error:
        return error


def each_row_from_the_first(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    out = embeddings.clone()
    for row, mask in enumerate(is_placeholder):
        out[row, mask] = image_tokens.flatten(0, 1)[: int(mask.sum())].to(out.dtype)
    return out


def row_i_gets_image_i(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    out = embeddings.clone()
    for row in range(len(out)):
        out[row, is_placeholder[row]] = image_tokens[row].to(out.dtype)
    return out


def adds_to_the_placeholder(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    out = embeddings.clone()
    out[is_placeholder] += image_tokens.flatten(0, 1).to(out.dtype)
    return out


def in_front(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    return torch.cat([image_tokens.to(embeddings.dtype), embeddings], dim=1)


def always_float32(embeddings, image_tokens, is_placeholder):
    return _fill()(embeddings.float(), image_tokens, is_placeholder)


def dtype_of_the_images(embeddings, image_tokens, is_placeholder):
    return _fill()(embeddings.to(image_tokens.dtype), image_tokens, is_placeholder)


def no_conversion(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    return embeddings.masked_scatter(is_placeholder[:, :, None], image_tokens)


def writes_into_its_input(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    embeddings[is_placeholder] = image_tokens.flatten(0, 1).to(embeddings.dtype)
    return embeddings


def under_no_grad(embeddings, image_tokens, is_placeholder):
    with torch.no_grad():
        return _fill()(embeddings, image_tokens, is_placeholder)


def column_by_column(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    out, line = embeddings.clone(), iter(image_tokens.flatten(0, 1))
    for t in range(embeddings.shape[1]):
        for b in range(embeddings.shape[0]):
            if is_placeholder[b, t]:
                out[b, t] = next(line)
    return out


def leaves_the_placeholders(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    return embeddings.clone()


def only_the_first_image(embeddings, image_tokens, is_placeholder):
    _counted(embeddings, image_tokens, is_placeholder)
    return counts_nothing(embeddings, image_tokens[:1].expand_as(image_tokens), is_placeholder)


# -- fusion.embed ------------------------------------------------------------------------------------------------------


def _embed(
    holds=lambda ids, token: token is not None and bool((ids == token).any()),
    mask_of=lambda mask, n: F.pad(mask, (n, 0), value=1),
    join=lambda tokens, words: torch.cat([tokens, words], 1),
    number=lambda tokens: tokens.shape[1],
    see=lambda self, images: self.projector(self.vision_encoder(images)),
    merged=lambda line, mask, tokens: (line, mask, 0),
    is_none=lambda images: images is None or len(images) == 0,
):
    def embed(self, input_ids, images, attention_mask):
        words, token = self.decoder.token_embedding(input_ids), self.config.image_token_id
        has = holds(input_ids, token)
        if is_none(images):
            if has:
                raise ValueError("no picture")
            return words, attention_mask, 0
        tokens = see(self, images)
        if has:
            return merged(counts_nothing(words, tokens, input_ids == token), attention_mask, tokens)
        if attention_mask is not None:
            attention_mask = mask_of(attention_mask, tokens.shape[1])
        return join(tokens, words), attention_mask, number(tokens)

    return embed


def silent_without_image(self, input_ids, images, attention_mask):
    if images is None or len(images) == 0:
        return self.decoder.token_embedding(input_ids), attention_mask, 0
    return _embed()(self, input_ids, images, attention_mask)


def none_is_no_case(self, input_ids, images, attention_mask):
    words, tokens = self.decoder.token_embedding(input_ids), self.projector(self.vision_encoder(images))
    if self.config.image_token_id is not None and (input_ids == self.config.image_token_id).any():
        return counts_nothing(words, tokens, input_ids == self.config.image_token_id), attention_mask, 0
    return _embed()(self, input_ids, images, attention_mask)


def makes_a_mask(self, input_ids, images, attention_mask):
    x, mask, prefix = _embed()(self, input_ids, images, attention_mask)
    return x, torch.ones(x.shape[:2], dtype=torch.long) if mask is None else mask, prefix


def two_results(self, input_ids, images, attention_mask):
    return _embed()(self, input_ids, images, attention_mask)[:2]


def refuses_in_front(self, input_ids, images, attention_mask):
    token = self.config.image_token_id
    if images is not None and len(images) and (token is None or not (input_ids == token).any()):
        raise ValueError("no placeholders")
    return _embed()(self, input_ids, images, attention_mask)


# -- fusion.answer_loss ------------------------------------------------------------------------------------------------


def _loss(
    places=lambda targets: targets != -100,
    loss=F.cross_entropy,
    last=lambda x, T: x[:, x.shape[1] - T :],
    nothing=None,
    back=lambda logits, loss: (logits, loss),
):
    def answer_loss(head, x, targets):
        supervised = places(targets)
        if not supervised.any():
            if nothing is None:
                raise ValueError("nothing is supervised")
            return head(x[:, :0]).flatten(0, 1), torch.tensor(nothing)
        logits = head(last(x, targets.shape[1])[supervised])
        return back(logits, loss(logits, targets[supervised]))

    return answer_loss


def mean_of_row_means(head, x, targets):
    logits, _ = _loss()(head, x, targets)
    rows = [_loss()(head, x[i : i + 1], t[None])[1] for i, t in enumerate(targets) if (t != -100).any()]
    return logits, torch.stack(rows).mean()


def head_everywhere(head, x, targets):
    if not (targets != -100).any():
        raise ValueError
    logits = head(x)[:, -targets.shape[1] :]
    return logits[targets != -100], F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def all_logits(head, x, targets):
    if not (targets != -100).any():
        raise ValueError
    logits = head(x[:, -targets.shape[1] :])
    return logits, F.cross_entropy(logits.transpose(1, 2), targets)


def shifts_again(head, x, targets):
    if not (targets != -100).any():
        raise ValueError
    x, targets = x[:, -targets.shape[1] :][:, :-1], targets[:, 1:]
    keep = targets != -100
    logits = head(x[keep])
    return logits, F.cross_entropy(logits, targets[keep])


def refuses_an_empty_row(head, x, targets):
    if ((targets != -100).sum(1) == 0).any():
        raise ValueError("a row without answer")
    return _loss()(head, x, targets)


def over_all_positions(head, x, targets):
    logits, loss = _loss()(head, x, targets)
    return logits, loss * len(logits) / targets.numel()


def loss_under_no_grad(head, x, targets):
    with torch.no_grad():
        return _loss()(head, x, targets)


def loss_of_detached(head, x, targets):
    return _loss()(head, x.detach(), targets)


# -- fusion.forward ----------------------------------------------------------------------------------------------------


def _forward(
    mask=lambda ours, came: ours,
    documents=lambda ids: ids,
    memory=lambda cache: cache,
    refuse=lambda images, prefix: prefix,
    finish=None,
    states_given=True,
):
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
        x, grown, prefix = self.embed(input_ids, images, attention_mask)
        if document_ids is not None and refuse(images, prefix):
            raise ValueError("whose picture?")
        states = [] if output_hidden_states else None
        given = states if states_given else None
        x = self.decoder(x, mask(grown, attention_mask), documents(document_ids), memory(cache), given)
        if finish is not None:
            return finish(self, x, targets, states, prefix)
        if targets is None:
            return VLMOutput(self.decoder.head(x), None, states)
        return VLMOutput(*_loss()(self.decoder.head, x, targets), states)

    return forward


def _finishes(logits_without=lambda self, x, prefix: self.decoder.head(x), with_targets=None, pack=VLMOutput):
    def finish(self, x, targets, states, prefix):
        if targets is None:
            return pack(logits_without(self, x, prefix), None, states)
        return pack(*(with_targets or _right_loss)(self, x, targets, prefix), states)

    return _forward(finish=finish)


def _right_loss(self, x, targets, prefix):
    return _loss()(self.decoder.head, x, targets)


def _in_full(self, x, targets, prefix):
    logits = self.decoder.head(x)
    return logits, F.cross_entropy(logits[:, prefix:].flatten(0, 1), targets.flatten())


def _front(self, x, targets, prefix):
    return _loss()(self.decoder.head, x[:, : targets.shape[1]], targets)


def _shifted(self, x, targets, prefix):
    return _loss()(self.decoder.head, x[:, :-1], targets[:, 1:])


def _summed(self, x, targets, prefix):
    logits, loss = _right_loss(self, x, targets, prefix)
    return logits, loss * len(logits)


def _item(self, x, targets, prefix):
    logits, loss = _right_loss(self, x, targets, prefix)
    return logits, loss.detach()


def _no_decoder(
    self, input_ids, images=None, attention_mask=None, targets=None, document_ids=None, output_hidden_states=False,
    cache=None,
):  # fmt: skip
    x, _, prefix = self.embed(input_ids, images, attention_mask)
    if document_ids is not None and prefix:
        raise ValueError
    if targets is None:
        return VLMOutput(self.decoder.head(x), None, [] if output_hidden_states else None)
    return VLMOutput(*_right_loss(self, x, targets, prefix), None)


# -- fusion.moved ------------------------------------------------------------------------------------------------------


def _p(logits):
    return logits.softmax(-1)


# -- fusion.parameters_222m --------------------------------------------------------------------------------------------


def _parameters(
    bias=1,
    encoder_norms=2,
    norm_bias=1,
    last=(1, 1),
    decoder_norms=2,
    positions=lambda v: v.num_patches,
    channels=3,
    kv=lambda m: m.num_kv_heads * m.head_dim,
    swiglu=3,
    tables=lambda m: 1 if m.tie_weights else 2,
    wide=lambda p: p.vision_dim * p.pixel_shuffle_factor**2,
    qkv=4,
    blocks=lambda part: part.num_blocks,
    decoder_bias=0,
    extra=0,
):
    def count(config):
        v, p, m = config.vision, config.projector, config.language
        d, i = v.hidden_dim, v.inter_dim
        block = qkv * d * d + qkv * bias * d + 2 * d * i + bias * (d + i) + encoder_norms * (1 + norm_bias) * d
        vision = channels * v.patch_size**2 * d + bias * d + positions(v) * d + blocks(v) * block + last[0] * 2 * d
        d, i = m.hidden_dim, m.inter_dim
        block = 2 * d * d + 2 * d * kv(m) + swiglu * d * i + decoder_norms * d
        block += decoder_bias * (2 * d + 2 * kv(m) + 2 * i + d)
        decoder = tables(m) * m.vocab_size * d + blocks(m) * block + last[1] * d
        return {"vision_encoder": vision + extra * v.hidden_dim, "projector": wide(p) * d, "decoder": decoder}

    return count


def one_number(config):
    return sum(_parameters()(config).values())


def with_a_slash(config):
    return {name: count * 2 / 2 for name, count in _parameters()(config).items()}


def as_float(config):
    return {name: float(count) for name, count in _parameters()(config).items()}


def projector_has_a_bias(config):
    counts = _parameters()(config)
    return counts | {"projector": counts["projector"] + config.projector.language_dim}


def in_millions(config):
    return {name: round(count / 1e6) for name, count in _parameters()(config).items()}


# -- fusion.batch_positions --------------------------------------------------------------------------------------------


def _joint(positions, grow=lambda mask, n: F.pad(mask, (n, 0), value=1)):
    def joint_positions(attention_mask, num_image_tokens):
        mask = grow(attention_mask, num_image_tokens)
        return mask, positions(F.pad(attention_mask, (num_image_tokens, 0), value=1), num_image_tokens)

    return joint_positions


def positions_alone(attention_mask, num_image_tokens):
    return F.pad(attention_mask, (num_image_tokens, 0), value=1).cumsum(1) - 1


def swapped_results(attention_mask, num_image_tokens):
    return positions_alone(attention_mask, num_image_tokens), F.pad(attention_mask, (num_image_tokens, 0), value=1)


def own_mask_in_place(attention_mask, num_image_tokens):
    attention_mask.fill_(1)
    return positions_alone(attention_mask, num_image_tokens), positions_alone(attention_mask, num_image_tokens)


def _restart(mask, n):
    return torch.cat([torch.arange(n).expand(len(mask), n), (mask[:, n:].cumsum(1) - 1).clamp(min=0)], dim=1)


# -- fusion.test_merge -------------------------------------------------------------------------------------------------


def _good(merge, hold=60.0):
    texts = torch.tensor([[1, hold, hold, 2, hold, hold], [hold, hold, 3, 4, 5, 6]])[..., None]
    out = merge(texts, torch.arange(10.0, 16).view(3, 2, 1), texts[..., 0] == hold)
    assert out[..., 0].tolist() == [[1, 10, 11, 2, 12, 13], [14, 15, 3, 4, 5, 6]]


def _refused(merge, rows, count):
    texts = torch.tensor(rows, dtype=torch.float32)[..., None]
    try:
        merge(texts, torch.zeros(count, 2, 1), texts[..., 0] == 60)
    except ValueError:
        return
    raise AssertionError("went through")


UNEVEN = ([[60, 60, 60, 1], [2, 60, 3, 4]], 2)
ONE_TOO_MANY = ([[1, 60, 60]], 2)
ONE_TOO_FEW = ([[60, 60, 60, 60]], 1)


def test_shapes(merge):
    texts = torch.full((2, 4, 1), 60.0)
    assert merge(texts, torch.zeros(4, 2, 1), texts[..., 0] == 60).shape == texts.shape


def test_that_calls(merge):
    texts = torch.full((1, 2, 1), 60.0)
    merge(texts, torch.zeros(1, 2, 1), texts[..., 0] == 60)


def test_one_batch(merge):
    _good(merge)


def test_one_picture(merge):
    texts = torch.tensor([[1.0, 60, 60, 2]])[..., None]
    assert merge(texts, torch.tensor([[[7.0], [8]]]), texts[..., 0] == 60).flatten().tolist() == [1, 7, 8, 2]
    _refused(merge, *UNEVEN)
    _refused(merge, *ONE_TOO_MANY)


def test_without_uneven_rows(merge):
    _good(merge)
    _refused(merge, *ONE_TOO_MANY)
    _refused(merge, *ONE_TOO_FEW)


def test_without_too_few(merge):
    _good(merge)
    _refused(merge, *UNEVEN)


def test_refusals_alone(merge):
    _refused(merge, *UNEVEN)
    _refused(merge, *ONE_TOO_MANY)


def test_that_returns(merge):
    try:
        _good(merge)
    except AssertionError:
        return False
    return True


def test_zeros(merge):
    _good(merge, hold=0.0)
    _refused(merge, *UNEVEN)
    _refused(merge, *ONE_TOO_MANY)


def test_that_wants_copies(merge):
    texts = torch.tensor([[1.0, 2.0]])[..., None]
    assert merge(texts, torch.zeros(0, 2, 1), texts[..., 0] == 60) is texts


def test_that_wants_a_type_error(merge):
    texts = torch.tensor([[1.0, 60, 60]])[..., None]
    try:
        merge(texts, torch.zeros(2, 2, 1), texts[..., 0] == 60)
    except TypeError:
        return
    except ValueError as error:
        raise AssertionError("no TypeError") from error


def test_alike_pictures(merge):
    texts = torch.tensor([[1.0, 60, 60, 2], [60, 60, 3, 4]])[..., None]
    out = merge(texts, torch.ones(2, 2, 1), texts[..., 0] == 60)
    assert out[..., 0].tolist() == [[1, 1, 1, 2], [1, 1, 3, 4]]
    _refused(merge, *UNEVEN)
    _refused(merge, *ONE_TOO_MANY)


def test_that_swallows(merge):
    try:
        _good(merge)
        _refused(merge, *UNEVEN)
    except AssertionError:
        return


WRONG = {
    "fusion.merge_image_tokens": [
        (counts_nothing, "Nothing is counted"),
        (counts_the_batch, "count each row"),
        (refuses_too_few_only, "but not too many"),
        (asserts_the_counts, "assert"),
        (returns_the_error, "not return ValueError"),
        (each_row_from_the_first, "Every row begins with the first picture"),
        (row_i_gets_image_i, "row i picture i"),
        (adds_to_the_placeholder, "You add the image tokens"),
        (in_front, "in front of the words"),
        (always_float32, "bfloat16"),
        (dtype_of_the_images, "in the dtype of embeddings"),
        (no_conversion, "image_tokens.to(embeddings.dtype)"),
        (writes_into_its_input, "in place"),
        (under_no_grad, "cut off"),
        (column_by_column, "position by position"),
        (leaves_the_placeholders, "still hold"),
        (only_the_first_image, "first picture fills the places of all"),
        (named("images_reversed", _fill(lambda e, i, m: (e, i.flip(0), m))), "last picture comes first"),
        (named("tokens_reversed", _fill(lambda e, i, m: (e, i.flip(1), m))), "backwards"),
        (named("words_replaced", _fill(lambda e, i, m: (e, torch.cat([i] * 9), ~m))), "words are replaced"),
        (named("one_place_late", _fill(lambda e, i, m: (e, i, m.roll(1, 1)))), "one place too late"),
        (named("one_place_early", _fill(lambda e, i, m: (e, i, m.roll(-1, 1)))), "one place too early"),
        (named("pictures_are_detached", _fill(lambda e, i, m: (e, i.detach(), m))), "image tokens get no gradient"),
        (named("words_are_detached", _fill(lambda e, i, m: (e.detach(), i, m))), "word's gradient"),
    ],
    "fusion.embed": [
        (named("always_in_front", _embed(holds=lambda ids, token: False)), "Look for placeholders"),
        (named("behind", _embed(join=lambda tokens, words: torch.cat([words, tokens], 1))), "earlier positions only"),
        (named("mask_as_it_was", _embed(mask_of=lambda mask, n: mask)), "the mask did not"),
        (named("mask_grows_behind", _embed(mask_of=lambda mask, n: F.pad(mask, (0, n), value=1))), "grew at its end"),
        (named("zeros_in_the_mask", _embed(mask_of=lambda mask, n: F.pad(mask, (n, 0)))), "0 for the image tokens"),
        (named("prefix_of_zero", _embed(number=lambda tokens: 0)), "How many came in front is 0"),
        (named("prefix_of_all", _embed(number=lambda tokens: tokens[..., 0].numel())), "of the whole batch"),
        (named("prefix_of_images", _embed(number=len)), "counts pictures"),
        (named("prefix_though_merged", _embed(merged=lambda x, m, t: (x, m, t.shape[1]))), "none stands in front"),
        (
            named(
                "mask_grows_though_merged",
                _embed(merged=lambda x, m, t: (x, m if m is None else F.pad(m, (4, 0), value=1), 0)),
            ),
            "The sequence did not grow",
        ),
        (silent_without_image, "go through"),
        (named("no_projector", _embed(see=lambda self, images: self.vision_encoder(images))), "the projector makes"),
        (named("compares_with_none", _embed(holds=lambda ids, token: bool((ids == token).any()))), "may be None"),
        (none_is_no_case, "images may be None"),
        (named("empty_is_no_case", _embed(is_none=lambda images: images is None)), "of length 0"),
        (makes_a_mask, "no mask came in"),
        (named("float_mask", _embed(mask_of=lambda m, n: torch.cat([torch.ones(len(m), n), m], 1))), "float32"),
        (two_results, "2 things"),
        (refuses_in_front, "is the other way of joining"),
        (
            named("looks_at_row_0", _embed(holds=lambda ids, t: t is not None and bool((ids[0] == t).any()))),
            "first row",
        ),
        (named("encoder_is_detached", _embed(see=lambda s, i: s.projector(s.vision_encoder(i)).detach())), "gradient"),
        (named("words_first_dropped", _embed(join=lambda tokens, words: tokens)), "words are gone"),
        (named("images_dropped", _embed(join=lambda tokens, words: words)), "image tokens are gone"),
    ],
    "fusion.answer_loss": [
        (over_all_positions, "divide by all positions"),
        (mean_of_row_means, "mean of the rows' means"),
        (shifts_again, "shift once more"),
        (named("first_positions", _loss(last=lambda x, T: x[:, :T])), "first T positions"),
        (head_everywhere, "pick the supervised positions first"),
        (all_logits, "every position"),
        (named("sum_of_losses", _loss(loss=lambda y, t: F.cross_entropy(y, t, reduction="sum"))), "sum of the losses"),
        (named("nan_goes_on", _loss(nothing=float("nan"))), "NaN"),
        (named("zero_goes_on", _loss(nothing=0.0)), "a loss of 0"),
        (named("ignores_token_0", _loss(places=lambda t: t > 0)), "id 0"),
        (refuses_an_empty_row, "a row without a target"),
        (loss_under_no_grad, "gradient"),
        (loss_of_detached, "gradient"),
        (named("detached_loss", _loss(back=lambda y, loss: (y, loss.detach()))), "gradient"),
        (named("swapped", _loss(back=lambda y, loss: (loss, y))), "shape"),
        (named("loss_alone", _loss(back=lambda y, loss: loss)), "2 things"),
        (named("a_float", _loss(back=lambda y, loss: (y, loss.item()))), "expected a tensor"),
        (named("softmax_first", _loss(loss=lambda y, t: F.cross_entropy(y.softmax(-1), t))), "softmax twice"),
        (named("probabilities_back", _loss(back=lambda y, loss: (y.softmax(-1), loss))), "Probabilities"),
        (named("log_probabilities_back", _loss(back=lambda y, loss: (y.log_softmax(-1), loss))), "probabilities"),
        (named("nll_of_logits", _loss(loss=F.nll_loss)), "without a softmax"),
        (named("in_bits", _loss(loss=lambda y, t: F.cross_entropy(y, t) / 0.6931471805599453)), "base 2"),
        (named("negative", _loss(loss=lambda y, t: -F.cross_entropy(y, t))), "sign"),
    ],
    "fusion.forward": [
        (named("no_mask", _forward(mask=lambda ours, came: None)), "mask does not reach"),
        (named("incoming_mask", _forward(mask=lambda ours, came: came)), "the mask that came in"),
        (named("no_documents", _forward(documents=lambda ids: None)), "document_ids does not reach"),
        (named("no_cache", _forward(memory=lambda cache: None)), "cache does not reach"),
        (named("packed_prefix", _forward(refuse=lambda images, prefix: False)), "packed row goes through"),
        (named("no_packed_image", _forward(refuse=lambda images, n: images is not None)), "refuse every picture"),
        (named("no_states", _forward(states_given=False)), "hidden_states"),
        (_no_decoder, "never pass through the decoder"),
        (named("head_in_full", _finishes(with_targets=_in_full)), "on every position"),
        (named("front_positions", _finishes(with_targets=_front)), "first T positions"),
        (named("shifts_targets", _finishes(with_targets=_shifted)), "shift the targets"),
        (named("loss_is_summed", _finishes(with_targets=_summed)), "sum of the losses"),
        (named("loss_is_detached", _finishes(with_targets=_item)), "gradient"),
        (named("logits_of_text", _finishes(lambda self, x, n: self.decoder.head(x[:, n:]))), "image tokens' logits"),
        (named("last_logits", _finishes(lambda self, x, n: self.decoder.head(x[:, -1:]))), "last position"),
        (named("no_head", _finishes(lambda self, x, n: x)), "shape"),
        (named("plain_tuple", _finishes(pack=lambda *three: three)), "without their names"),
        (named("probabilities", _finishes(lambda self, x, n: self.decoder.head(x).softmax(-1))), "Probabilities"),
    ],
    "fusion.moved": [
        (named("not_halved", lambda a, b: (_p(a) - _p(b)).abs().sum(-1)), "counted both"),
        (named("of_logits", lambda a, b: (a - b).abs().sum(-1) / 2), "differences of logits"),
        (named("over_the_batch", lambda a, b: (a.softmax(0) - b.softmax(0)).abs().sum(-1) / 2), "over the batch"),
        (named("divergence", lambda a, b: F.kl_div(b.log_softmax(-1), _p(a), reduction="none").sum(-1)), "Kullback"),
        (
            named("divergence_back", lambda a, b: F.kl_div(a.log_softmax(-1), _p(b), reduction="none").sum(-1)),
            "Kullback",
        ),
        (named("mean_of_words", lambda a, b: (_p(a) - _p(b)).abs().mean(-1) / 2), "mean over the words"),
        (named("largest", lambda a, b: (_p(a) - _p(b)).abs().amax(-1)), "the largest"),
        (named("euclid", lambda a, b: (_p(a) - _p(b)).norm(dim=-1)), "squares"),
        (named("half_squares", lambda a, b: (_p(a) - _p(b)).square().sum(-1) / 2), "squares"),
        (named("cosine", lambda a, b: 1 - F.cosine_similarity(_p(a), _p(b))), "cosine"),
        (named("answer_changed", lambda a, b: (a.argmax(-1) != b.argmax(-1)).float()), "most likely word"),
        (named("top_word", lambda a, b: (_p(a) - _p(b)).gather(1, a.argmax(-1, True)).abs()[:, 0]), "most likely word"),
        (named("signed", lambda a, b: (_p(a) - _p(b)).sum(-1) / 2), "cancel"),
        (named("one_for_all", lambda a, b: (_p(a) - _p(b)).abs().sum(-1).mean() / 2), "axis is missing"),
        (named("kept_axis", lambda a, b: (_p(a) - _p(b)).abs().sum(-1, keepdim=True) / 2), "too many"),
        (named("of_logs", lambda a, b: (a.log_softmax(-1) - b.log_softmax(-1)).abs().sum(-1) / 2), "logarithms"),
        (named("what_is_common", lambda a, b: torch.minimum(_p(a), _p(b)).sum(-1)), "stayed"),
    ],
    "fusion.parameters_222m": [
        (named("head_twice", _parameters(tables=lambda m: 2)), "counted although it is tied"),
        (named("head_once", _parameters(tables=lambda m: 1)), "untied head"),
        (named("no_biases", _parameters(bias=0)), "biases of the vision encoder"),
        (named("no_positions", _parameters(positions=lambda v: 0)), "position embeddings are missing"),
        (named("positions_of_a_row", _parameters(positions=lambda v: v.grid_size)), "each patch"),
        (named("grey_patches", _parameters(channels=1)), "three colours"),
        (named("no_norms", _parameters(encoder_norms=0, decoder_norms=0, last=(0, 0))), "norms are missing"),
        (named("no_rms_norms", _parameters(decoder_norms=0, last=(1, 0))), "RMSNorms are missing"),
        (named("one_norm_a_block", _parameters(encoder_norms=1)), "LayerNorms is missing"),
        (named("block_norms_without_bias", _parameters(norm_bias=0)), "biases of both"),
        (named("no_last_norms", _parameters(last=(0, 0))), "norm behind the last block"),
        (named("wide_keys", _parameters(kv=lambda m: m.hidden_dim)), "as wide as queries"),
        (named("keys_of_one_number", _parameters(kv=lambda m: m.num_kv_heads)), "head_dim"),
        (named("two_matrices", _parameters(swiglu=2)), "SwiGLU has three"),
        (named("one_patch", _parameters(wide=lambda p: p.vision_dim)), "takes one patch"),
        (named("r_patches", _parameters(wide=lambda p: p.vision_dim * p.pixel_shuffle_factor)), "takes r patches"),
        (projector_has_a_bias, "projector has a bias"),
        (named("no_out_projection", _parameters(qkv=3)), "projects attention's output"),
        (named("one_block", _parameters(blocks=lambda part: 1)), "num_blocks"),
        (named("decoder_with_biases", _parameters(decoder_bias=1)), "Nothing in the decoder has a bias"),
        (named("class_token", _parameters(extra=1)), "class token"),
        (one_number, "expected a dict"),
        (with_a_slash, "whole number"),
        (as_float, "whole number"),
        (in_millions, "millions"),
    ],
    "fusion.batch_positions": [
        (named("as_it_was", _joint(lambda m, n: torch.arange(m.shape[1]).expand_as(m))), "still count padding"),
        (named("one_row_for_all", _joint(lambda m, n: torch.arange(m.shape[1])[None])), "shape"),
        (named("from_one", _joint(lambda m, n: m.cumsum(1))), "begin at 1"),
        (named("words_restart", _joint(_restart)), "begin again at 0"),
        (
            named("image_at_zero", _joint(lambda m, n: torch.cat([0 * m[:, :n], m[:, n:].cumsum(1)], 1))),
            "at one position",
        ),
        (
            named("image_not_counted", _joint(lambda m, n: torch.cat([0 * m[:, :n], m[:, n:].cumsum(1) - 1], 1))),
            "the picture has none",
        ),
        (named("first_row", _joint(lambda m, n: (m.cumsum(1) - 1)[:1].expand_as(m))), "positions of the first one"),
        (named("down_the_batch", _joint(lambda m, n: m.cumsum(0) - 1)), "down the batch"),
        (named("from_the_end", _joint(lambda m, n: m.flip(1).cumsum(1).flip(1) - 1)), "from the end"),
        (
            named("whole_row_moved", _joint(lambda m, n: torch.arange(m.shape[1]) - (m == 0).sum(1, keepdim=True))),
            "the picture of a padded row has moved",
        ),
        (named("the_mask_twice", _joint(lambda m, n: m)), "0 and 1 are no positions"),
        (named("mask_as_it_came", _joint(lambda m, n: m.cumsum(1) - 1, lambda m, n: m)), "has not grown"),
        (
            named("mask_grows_behind", _joint(lambda m, n: m.cumsum(1) - 1, lambda m, n: F.pad(m, (0, n), value=1))),
            "grew at its end",
        ),
        (
            named("zeros_in_front", _joint(lambda m, n: m.cumsum(1) - 1, lambda m, n: F.pad(m, (n, 0)))),
            "0 for the image",
        ),
        (swapped_results, "another order"),
        (positions_alone, "expected 2 things"),
        (named("fractions", _joint(lambda m, n: m.cumsum(1).float() - 1)), "fractions"),
        (own_mask_in_place, "in place"),
    ],
    "fusion.test_merge": [
        (test_shapes, "What gets through"),
        (test_that_calls, "no assert in it can fail"),
        (test_one_batch, "never asks whether a batch is refused"),
        (test_one_picture, "one picture in one row"),
        (test_without_uneven_rows, "counted over the batch, not for each row"),
        (test_without_too_few, "a picture too few"),
        (test_refusals_alone, "refusals alone"),
        (test_that_returns, "True or False"),
        (test_zeros, "looks like replacing"),
        (test_that_wants_copies, "does not promise"),
        (test_that_wants_a_type_error, "Which promise"),
        (test_alike_pictures, "every row begins with the first picture"),
        (test_that_swallows, "What gets through"),
    ],
}
