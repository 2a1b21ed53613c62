"""transformers' models, small and random, given what they do not take, or with a part exchanged."""

from torch import nn

from tests.trace.planted.cases import floats, ids, planted


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=4))


def siglip() -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **sizes))


@planted(
    (ids(1, 6, high=60) + 50,), ("input_ids [1, 6]", "[50, 32]"), ("at least 56 rows",), "self.embed_tokens(input_ids)"
)
def llama_with_another_tokenizer():
    return llama()


@planted((ids(1, 6),), ("[1, 6, 32]", "in_features = 64"), ("nn.Linear(32, 50)",), "self.lm_head(")
def llama_with_another_head():
    model = llama()
    model.lm_head = nn.Linear(64, 50)
    return model


@planted((ids(1, 6),), ("[1, 6, 32]", "in_features = 48"), ("nn.Linear(32, 32)",), "self.q_proj(hidden_states)")
def llama_with_another_query():
    model = llama()
    model.model.layers[0].self_attn.q_proj = nn.Linear(48, 32)
    return model


@planted((ids(1, 6),), ("[1, 6, 48]", "[32]"), (), "hidden_states")
def llama_with_another_table():
    model = llama()
    model.model.embed_tokens = nn.Embedding(50, 48)
    return model


@planted((ids(1, 20),), ("[1, 20]", "16 rows"), ("cut the sequence to 16",), "self.wpe(position_ids)")
def gpt2_with_a_long_text():
    return gpt2()


@planted(
    (floats(2, 1, 32, 32),),
    ("pixel_values", "[2, 1, 32, 32]", "in_channels = 3"),
    ("expand(-1, 3, -1, -1)",),
    "self.patch_embedding(",
)
def siglip_of_a_grey_image():
    return siglip()


@planted((floats(2, 3, 48, 48),), ("[2, 36, 32]", "[1, 16, 32]"), ("interpolate",), "self.position_embedding(")
def siglip_of_a_larger_image():
    return siglip()
