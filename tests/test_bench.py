"""`nanovlm bench`: what it compares is equal, what it counts is right, what it reports is whole. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanovlm import cli
from nanovlm.bench import contest, search
from nanovlm.bench.contenders import (
    Setting,
    our_generation,
    our_training_step,
    their_generation,
    their_training_step,
)
from nanovlm.bench.contest import check_equal, run_bench
from nanovlm.bench.growth import growth, straightness
from nanovlm.bench.results_table import table, verdict
from nanovlm.bench.search import best, search_theirs, try_setting
from nanovlm.bench.sizes import SUPERVISED, Size, make_batch, make_prompts, quarter_vlm, sizes
from nanovlm.bench.timing import Timing, interleave, median_ratio
from nanovlm.config import VLMConfig, pocket_vlm
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from nanovlm.training.step_cost import generation_flops, training_flops
from tests.tiny import tiny_config, tiny_model

PLAIN = Setting("fp32", "eager", "sdpa")


def shallow_quarter() -> VLMConfig:
    """The quarter's widths. The formulas multiply by the number of blocks, which the others test with more."""
    config = quarter_vlm()
    config.vision.num_blocks, config.language.num_blocks = 2, 3
    return config


CONFIGS = {"tiny": tiny_config, "pocket": pocket_vlm, "quarter": shallow_quarter}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> VLMConfig:
    return CONFIGS[request.param]()


@pytest.fixture
def tiny_size() -> Size:
    return Size(
        "tiny", "for tests", tiny_config(), batch_size=2, length=24, prompt_length=8, generation_batches=(1, 2),
        new_tokens=4,
    )  # fmt: skip


def parts_on_meta(config: VLMConfig, batch_size: int) -> tuple[VisionLanguageModel, torch.Tensor]:
    """The model and its image tokens on the meta device, where shapes are known and nothing is computed."""
    with torch.device("meta"):
        model = VisionLanguageModel(config)
        side = config.vision.image_size
        image_tokens = model.projector(model.vision_encoder(torch.zeros(batch_size, 3, side, side)))
    return model, image_tokens


def test_training_formula_is_what_torch_counts(config: VLMConfig) -> None:
    rows, words, supervised = 3, 11, 17
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model, image_tokens = parts_on_meta(config, rows)
        text = model.decoder.token_embedding(torch.zeros(rows, words, dtype=torch.long, device="meta"))
        x = model.decoder(torch.cat([image_tokens, text], dim=1))
        model.decoder.head(x.flatten(0, 1)[:supervised]).sum().backward()
    length = config.num_image_tokens + words
    assert training_flops(config, rows, length, supervised) == counter.get_total_flops()


def test_generation_formula_is_what_torch_counts(config: VLMConfig) -> None:
    from nanovlm.models.language_model import KVCache

    rows, words, new_tokens = 2, 5, 4
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model, image_tokens = parts_on_meta(config, rows)
        decoder = model.decoder
        text = decoder.token_embedding(torch.zeros(rows, words, dtype=torch.long, device="meta"))
        prompt_length = config.num_image_tokens + words
        cache = KVCache(config.language, rows, prompt_length + new_tokens, like=text)
        decoder.head(decoder(torch.cat([image_tokens, text], dim=1), cache=cache)[:, -1])
        for _ in range(new_tokens - 1):
            decoder.head(decoder(text[:, :1], cache=cache)[:, -1])
    assert generation_flops(config, rows, prompt_length, new_tokens) == counter.get_total_flops()


def test_formulas_hold_for_the_real_step_and_the_real_answer() -> None:
    """Where the parts are joined by the model itself: what runs is what is counted."""
    model = tiny_model()
    batch = make_batch(model.config, 2, 40)
    supervised = int((batch["targets"] != IGNORE).sum())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    assert training_flops(model.config, 2, 40, supervised) == counter.get_total_flops()
    model.config.eos_token_id = -1
    prompts = make_prompts(model.config, 2, 8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.generate(**prompts, max_new_tokens=5)
    assert generation_flops(model.config, 2, 8, 5) == counter.get_total_flops()


def test_the_quarter_is_about_a_quarter() -> None:
    def count(config: VLMConfig) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in VisionLanguageModel(config).parameters())

    assert count(quarter_vlm()) / count(VLMConfig()) == pytest.approx(0.25, abs=0.04)


def test_batches_are_those_of_training_on_answers() -> None:
    for size in sizes().values():
        batch = make_batch(size.config, 16, size.length)
        ids, targets = batch["input_ids"], batch["targets"]
        asked = targets != IGNORE
        assert (asked.sum(dim=1) >= SUPERVISED[0]).all()
        assert (asked.sum(dim=1) <= SUPERVISED[1]).all()
        assert asked.sum(dim=1).unique().numel() > 1
        assert (targets[:, :-1][asked[:, :-1]] == ids[:, 1:][asked[:, :-1]]).all()
        assert not asked[:, -1].any(), "nothing follows the last token"
        assert ((ids == size.config.image_token_id).sum(dim=1) == size.config.num_image_tokens).all()


def test_the_two_models_compute_the_same() -> None:
    model = tiny_model()
    batch = make_batch(model.config, 2, 40)
    assert check_equal(model, batch) < 1e-5
    ours, theirs = (make(model, batch, PLAIN) for make in (our_training_step, their_training_step))
    mine, peers = ([step() for _ in range(3)] for step in (ours, theirs))
    assert mine == pytest.approx(peers, rel=0.02), "the same weights, batch and optimizer should learn alike"
    assert mine[2] < mine[0]
    prompts = make_prompts(model.config, 2, 8)
    answers = [make(model, prompts, 6, PLAIN)() for make in (our_generation, their_generation)]
    assert answers[0].tolist() == answers[1].tolist()
    assert answers[0].shape == (2, 6), "no token ends the answer"


def test_models_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_model(seed=1)
    build = contest.build_peer
    monkeypatch.setattr(contest, "build_peer", lambda _, attention: build(other, attention))
    model = tiny_model()
    with pytest.raises(RuntimeError, match="disagree"):
        check_equal(model, make_batch(model.config, 2, 40))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_eager_setting_of_theirs_runs(precision: str, attention: str) -> None:
    model = tiny_model()
    setting = Setting(precision, "eager", attention)
    loss = their_training_step(model, make_batch(model.config, 2, 40), setting)()
    assert loss == pytest.approx(their_training_step(model, make_batch(model.config, 2, 40), PLAIN)(), rel=0.05)
    assert their_generation(model, make_prompts(model.config, 1, 8), 3, setting)().shape == (1, 3)


def test_contenders_leave_the_model_as_it_was() -> None:
    model = tiny_model()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    eos = model.config.eos_token_id
    our_training_step(model, make_batch(model.config, 2, 40), Setting("bf16"))()
    our_generation(model, make_prompts(model.config, 1, 8), 2, Setting("bf16"))()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.config.eos_token_id == eos


def test_a_setting_that_fails_is_reported_and_never_the_best() -> None:
    def start(setting: Setting):
        if setting.precision == "bf16":
            raise NotImplementedError("no such kernel\nand a trace")
        return lambda: None

    trials = [try_setting(start, Setting(precision), rounds=2) for precision in ("bf16", "fp32")]
    assert trials[0].timing is None
    assert trials[0].failure == "NotImplementedError: no such kernel"
    assert best(trials) == Setting("fp32")

    def silent(setting: Setting):
        raise AssertionError

    assert try_setting(silent, Setting("fp32"), rounds=2).failure == "AssertionError"
    with pytest.raises(RuntimeError, match="no such kernel"):
        best(trials[:1])


@pytest.fixture(params=[True, False], ids=["bfloat16 products", "no bfloat16 products"])
def with_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU with and a CPU without instructions for products of bfloat16 numbers, whichever this one is."""
    monkeypatch.setattr("nanovlm.device._cpu_multiplies_bf16", lambda: request.param)
    return request.param


def test_bfloat16_is_tried_where_the_processor_multiplies_it(with_bf16: bool) -> None:
    tried: list[str] = []

    def start(setting: Setting) -> Any:
        tried.append(setting.precision)
        return lambda: None

    search_theirs(start, ("whole",), rounds=1, note=lambda trial: None)
    tried += [setting.precision for setting in search.our_settings(compiled=True)]
    assert set(tried) == ({"fp32", "bf16", "autocast"} if with_bf16 else {"fp32"})


def test_a_precision_that_never_runs_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "bfloat16_pays", lambda: True)

    def start(setting: Setting):
        if setting.precision == "bf16":
            raise NotImplementedError("no such kernel")
        return lambda: None

    trials = search_theirs(start, ("whole",), rounds=2, note=lambda trial: None)
    assert [t.setting.precision for t in trials if t.setting.compiled == "whole"] == ["fp32", "autocast"]


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "abbaab"
    assert [len(timings[name].seconds) for name in "ab"] == [3, 3]


def test_the_ratio_compares_neighbours_in_time() -> None:
    slow, fast = Timing([2.0, 20.0, 2.2]), Timing([1.0, 10.0, 1.0])  # the machine was busy in the second round
    assert median_ratio(slow, fast) == 2.0
    assert fast.median == 1.0
    assert Timing([1.0, 1.0, 1.0]).spread == 0.0
    assert slow.spread > 1.0


def test_straightness() -> None:
    assert straightness({1: 2.0, 2: 4.0, 4: 8.0}) == 1.0
    assert straightness({1: 1.0, 2: 4.0, 4: 16.0}) == 2.0


@pytest.mark.long
def test_a_run_reports_everything(tiny_size: Size, with_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "sizes", lambda: {"tiny": tiny_size})
    monkeypatch.setattr(contest, "growth", lambda size, setting, rounds: growth(size, setting, 1, steps=103))
    monkeypatch.setattr(contest, "matmul_rate", lambda dtype: 1e9)
    said: list[str] = []
    # How cost grows is measured in one setting: once is enough, in float32.
    results = run_bench(("tiny",), quick=True, compiled=False, with_growth=not with_bf16, say=said.append)
    results = json.loads(json.dumps(results))  # nothing that JSON cannot hold
    size = results["sizes"]["tiny"]
    assert [result["what"] for result in size["results"]] == ["training step", "generate, batch 1", "generate, batch 2"]
    for result in size["results"]:
        assert result["flops"] > 0
        assert result["ratio"] > 0
        formats = {trial["setting"].partition(",")[0] for trial in result["transformers"]["tried"]}
        assert formats == ({"fp32", "bf16", "autocast"} if with_bf16 else {"fp32"})
        assert len(result["transformers"]["tried"]) == 2 * len(formats), "two kinds of attention"
        for who in ("nanovlm", "transformers"):
            side = result[who]
            fastest = min(side["tried"], key=lambda trial: trial["median_s"])
            assert side["setting"] == fastest["setting"]
    text = table(results)
    for expected in ("training step", "generate, batch 2", "GFLOP/s", "share"):
        assert expected in text
    assert ("growth" in text) == ("MiB from step 100" in text) == (not with_bf16)
    assert any("only float32 is tried" in line for line in said) != with_bf16
    assert ("bf16" in text.splitlines()[1]) == with_bf16


def test_verdict() -> None:
    assert verdict({"ratio": 1.62, "target": 1.5}) == "nanovlm is 1.62 times as fast; the target is 1.5: met."
    assert verdict({"ratio": 1.4, "target": 1.5}).endswith("missed.")
    assert verdict({"ratio": 1.4, "target": None}) == "nanovlm is 1.40 times as fast."


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match=r"no size 'huge'.*pocket, quarter"):
        run_bench(("huge",))


def test_command_refuses_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contest, "run_size", None)
    assert cli.main(["bench", "--json", str(tmp_path / "results.txt")]) == 2
    assert ".json" in capsys.readouterr().err
