"""values, time, attention, level, meta."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanovlm.trace import trace, tracing
from nanovlm.trace.record.watchers import attention_weights
from tests.trace.zoo import ZOO, MiniVLM, seeded, token_ids


def entry(name):
    return next(e for e in ZOO if e.name == name)


class MHA(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x)[0]


class TestValues:
    def test_statistics_of_each_step(self):
        t = trace(lambda x: x * 2, torch.tensor([1.0, 2.0, 3.0]), values=True)
        stats = t["mul"].stats
        assert stats["mean"] == 4 and stats["min"] == 2 and stats["max"] == 6
        assert stats["std"] == pytest.approx(math.sqrt(8 / 3))

    def test_a_layer_has_the_statistics_of_its_result(self):
        t = trace(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2), values=True)
        assert t["0"].stats == t["linear"].stats == t.root.stats is not None
        assert " ± " in str(t)

    def test_the_first_nan_is_found(self):
        def model(x):
            x = x - 1
            x = x.log()
            return (x * 0).exp()

        t = trace(model, torch.tensor([0.5, 2.0]), values=True)
        assert t.first_nan().name == "log" and t.first_inf() is None
        assert "1 nan" in str(t)
        assert trace(lambda x: x / 0, torch.ones(2), values=True).first_inf().name == "div"

    def test_json_can_hold_them(self):
        t = trace(lambda x: x.log(), torch.full((2,), -1.0), values=True)
        found = json.loads(t.to_json(), parse_constant=pytest.fail)["root"]  # NaN is no JSON
        assert found["stats"]["mean"] == "nan" and found["stats"]["nan"] == 2

    def test_float64_is_not_squeezed_into_float32(self):
        stats = trace(lambda x: x * 1e300, torch.ones(2, dtype=torch.float64), values=True).root.stats
        assert stats["mean"] == stats["max"] == 1e300 and stats["inf"] == 0

    def test_where_nobody_may_look_the_run_goes_on(self):
        model, x = nn.Linear(3, 4), torch.ones(2, 3)
        t = trace(lambda x: torch.vmap(lambda row: model(row).relu())(x), x, values=True)
        assert t["relu"].stats is None and t["relu"].shape == (4,)
        assert trace(lambda x: x.to_sparse() * 2, x, values=True)["mul"].stats is None
        assert trace(lambda x: x.to(torch.float8_e4m3fn), x, values=True)["to"].stats["mean"] == 1

    def test_without_values_there_is_nothing_to_ask(self):
        with pytest.raises(ValueError, match="values=True"):
            trace(lambda x: x + 1, torch.ones(2)).first_nan()

    def test_values_change_nothing(self):
        model = MiniVLM().eval()
        args = seeded(2, 3, 16, 16), token_ids(2, 5)
        expected, found = model(*args)["logits"], []
        trace(lambda: found.append(model(*args)["logits"]), values=True)
        assert torch.equal(found[0], expected)


class TestTime:
    def test_seconds_nest(self):
        t = trace(MiniVLM(), seeded(2, 3, 16, 16), token_ids(2, 5), time=True)
        assert t["vision_encoder"].seconds >= t["vision_encoder.blocks.0"].seconds > 0
        assert " ms" in str(t)

    def test_a_training_step(self):
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tracing(model, time=True) as t:
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
        assert t["backward"].seconds > 0 and t["SGD.step"].seconds > 0

    def test_what_comes_after_a_step_that_raised_is_shown(self):
        model = nn.Linear(4, 2)
        broken = torch.optim.LBFGS(model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.ones(3, 4)
        with tracing(model) as t:
            with pytest.raises(TypeError):
                broken.step()  # it wants a closure
            model(x).sum().backward()
            optimizer.step()
        assert [row.kind for row in t.root.children] == ["optimizer", "module", "op", "backward", "optimizer"]
        assert [row.error for row in t.root.children] == ["did not finish", None, None, None, None]


class TestAten:
    def test_what_a_layer_becomes(self):
        t = trace(nn.Linear(4, 2), torch.zeros(3, 4), level="aten")
        names = [row.name for row in t.rows if row.kind == "aten"]
        assert any("addmm" in name for name in names)
        assert all(row.parent.name == "linear" for row in t.rows if row.kind == "aten")
        assert t.flops == 2 * 3 * 4 * 2

    def test_backward_has_an_inside(self):
        model = nn.Linear(4, 2)
        for start in (lambda: trace(model, seeded(1, 2), level="Aten"), lambda: tracing(model, level="Aten")):
            with pytest.raises(ValueError, match="got 'Aten'"):
                start()
        with tracing(model, level="aten") as t:
            model(torch.ones(3, 4)).sum().backward()
        assert any("mm" in row.name for row in t["backward"].children)


class TestAttention:
    @given(
        *(st.sampled_from([1, 2]), st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.integers(1, 6), st.integers(1, 6)),
        st.sampled_from(["none", "causal", "bool", "float", "blind"]),
        st.sampled_from([None, 0.3]),
    )
    def test_weights_times_values_are_the_output(self, batch, heads, queries, keys, kind, scale):
        torch.manual_seed(queries + 10 * keys)
        q, k, v = (
            torch.randn(batch, h, n, 8)
            for h, n in zip((heads[0], heads[1], heads[1]), (queries, keys, keys), strict=True)
        )
        mask = None
        if kind in ("bool", "blind"):
            mask = torch.rand(batch, 1, queries, keys) > 0.4
            mask[..., 0] = True
            if kind == "blind":
                mask[:, :, 0] = False
        elif kind == "float":
            mask = torch.randn(queries, keys)
        options = {"attn_mask": mask, "is_causal": kind == "causal", "scale": scale, "enable_gqa": heads[0] != heads[1]}
        with sdpa_kernel(SDPBackend.MATH):
            expected = F.scaled_dot_product_attention(q, k, v, **options)
        weights = attention_weights(q, k, v, **options)
        value = v.repeat_interleave(heads[0] // heads[1], dim=1)
        torch.testing.assert_close(weights @ value, expected.nan_to_num(), atol=1e-6, rtol=1e-5)

    def test_only_the_layers_that_are_asked_for(self):
        t = trace(MiniVLM(), seeded(2, 3, 16, 16), token_ids(2, 5), attention=["decoder.blocks.0", "vision_encoder"])
        assert [w.shape for w in t.attention["decoder.blocks.0"]] == [(2, 2, 9, 9)]
        assert [w.shape for w in t.attention["vision_encoder"]] == [(2, 2, 16, 16)] * 3
        for weights in t.attention["vision_encoder"]:
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 16))
            assert not weights.requires_grad and weights.device.type == "cpu"

    def test_a_module_that_is_not_there_is_named(self):
        with pytest.raises(ValueError, match=r"no module 'decoder\.block\.0'\. Near it: 'decoder\.blocks\.0'"):
            trace(MiniVLM(), seeded(2, 3, 16, 16), token_ids(2, 5), attention=["decoder.block.0"])
        with pytest.raises(ValueError, match="no module 'encoder'"), tracing(MiniVLM(), attention=["encoder"]):
            pass
        for wrong in (True, "decoder.blocks.0"):  # a string would be taken for a list of letters
            with pytest.raises(TypeError, match="a list of module paths"):
                trace(MiniVLM(), seeded(2, 3, 16, 16), token_ids(2, 5), attention=wrong)

    def test_llama_with_sdpa_gives_what_its_eager_attention_gives(self):
        e = entry("Llama, padded")
        model = e.model()
        t = trace(model, *e.args(), attention=["model.layers.1"], **e.kwargs())
        model.set_attn_implementation("eager")
        with torch.no_grad():
            expected = model(*e.args(), output_attentions=True, **e.kwargs()).attentions[1]
        found = t.attention["model.layers.1"][0]
        real = e.kwargs()["attention_mask"].bool()[:, None, :, None].expand_as(found)
        torch.testing.assert_close(found[real], expected[real], atol=1e-6, rtol=1e-5)

    def test_attention_that_is_written_out_is_caught_at_its_softmax(self):
        e = entry("Llama")
        model = e.model()
        model.set_attn_implementation("eager")
        t = trace(model, *e.args(), attention=["model.layers.0"])
        assert t.attention["model.layers.0"][0].shape == (2, 4, 7, 7)

    def test_the_weights_are_those_before_the_model_writes_into_its_own(self):
        t = trace(lambda x: x.softmax(-1).zero_(), seeded(1, 2, 3, 3), attention=[""])
        torch.testing.assert_close(t.attention[""][0].sum(-1), torch.ones(1, 2, 3))

    @pytest.mark.parametrize("need_weights", [True, False])
    def test_torchs_own_multi_head_attention_is_caught_by_head(self, need_weights):
        layer, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), seeded(3, 5, 8)
        _, expected = layer(x, x, x, average_attn_weights=False)
        t = trace(layer, x, x, x, need_weights=need_weights, attention=[""])
        torch.testing.assert_close(t.attention[""], [expected.detach()])
        assert t.remark is None
        assert trace(layer, x[0], x[0], x[0], attention=[""]).attention[""][0].shape == (1, 2, 5, 5)

    def test_a_softmax_over_another_dim_is_no_attention(self):
        pixels = seeded(1, 2, 3, 3)
        for segment in (lambda x: x.softmax(1), lambda x: F.softmax(x, dim=1), nn.Softmax(1), nn.Softmax2d()):
            assert trace(segment, pixels, attention=[""]).attention[""] == []
        for attend in (lambda x: x.softmax(3), lambda x: F.softmax(x, dim=-1), nn.Softmax(-1)):
            assert len(trace(attend, pixels, attention=[""]).attention[""]) == 1

    def test_where_nothing_is_caught_the_remark_says_so(self):
        class OneHead(nn.Module):
            def forward(self, x):
                return (x @ x.mT).softmax(-1) @ x

        model, x = nn.Sequential(nn.Linear(8, 8), OneHead(), OneHead(), MHA()), seeded(3, 5, 8)
        t = trace(model, x, attention=["0", "1", "3"], dims={"B": 3})
        assert t.attention["0"] == t.attention["1"] == [] and len(t.attention["3"]) == 1
        assert t.remark == (
            "no attention weights were seen in '0', '1': no scaled_dot_product_attention ran there, and no softmax of "
            "[B, num_heads, queries, keys]"
        )
        assert str(t.stages()[-1].info) == "[B, 5, 8]"
        with tracing(model, attention=["1"]) as t:
            model(x)
        assert "seen in '1':" in t.remark
        with tracing(model[1], attention=[""]) as t:
            model[1](x)
        assert "seen in the model:" in t.remark

    def test_one_list_entry_a_generated_token(self):
        e = entry("Llama")
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        t = trace(e.model().generate, *e.args(), attention=["model.layers.0"], **options)
        assert [w.shape for w in t.attention["model.layers.0"]] == [(2, 4, 7, 7), (2, 4, 1, 8), (2, 4, 1, 9)]


class TestMeta:
    def test_a_real_model_runs_without_its_weights(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        for p in model.parameters():
            p.data.fill_(float("nan"))  # whoever computed with them would show it
        t = trace(model, torch.zeros(5, 4), device="meta")
        assert t.root.shape == (5, 2) and t.root.out.device == "meta"

    def test_the_values_of_ids_and_masks_can_be_read(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(10, 4)

            def forward(self, ids):
                x = self.embedding(ids)
                where = ids == 3
                if where.any():
                    x = x.clone()
                    x[where] = torch.zeros(int(where.sum()), 4)
                return x[~where]

        t = trace(Model(), torch.tensor([[1, 3, 3, 2]]), device="meta")
        assert t.root.shape == (2, 4)
        assert t.find("setitem")

    def test_a_step_that_needs_values_says_so(self):
        def model(x):
            return x if x.sum().item() > 0 else -x

        with pytest.raises(RuntimeError, match="On the meta device tensors have no values, and `item` needs them"):
            trace(model, torch.ones(2), device="meta")

    def test_a_mask_without_values_is_taken_to_pick_everything(self):
        t = trace(lambda x: x[x > 0], torch.ones(3, 2), device="meta")
        assert t.root.shape == (6,) and "pick everything" in t.remark

    def test_moves_between_devices_stay_on_meta(self):
        model = nn.Linear(4, 2)
        t = trace(lambda x: model(x.to("cpu")).to(model.weight.device).cpu() + 1, torch.zeros(1, 4), device="meta")
        assert t["add"].out.device == "meta"

    def test_backward_on_meta(self):
        model = nn.Linear(4, 2)
        t = trace(lambda x: model(x).sum().backward(), torch.zeros(3, 4), device="meta")
        assert t["backward"].kind == "backward"
        assert model.weight.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
class TestCuda:
    def test_the_device_rule_on_real_devices(self):
        with pytest.raises(RuntimeError, match=r"x \[1, 4\] is on cpu.*x\.to\('cuda:0'\)"):
            trace(nn.Linear(4, 2).cuda(), torch.zeros(1, 4))

    def test_attention_comes_back_to_the_cpu(self):
        model = MiniVLM().cuda()
        t = trace(model, seeded(2, 3, 16, 16).cuda(), token_ids(2, 5).cuda(), attention=["decoder"], time=True)
        assert t.attention["decoder"][0].device.type == "cpu"
