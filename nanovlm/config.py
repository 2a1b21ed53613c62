"""Every size and every recipe, as plain dataclasses. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints

from nanovlm.settings import LARGEST, fits, shown, words

IGNORE = -100  # a target that is not supervised; torch's own default

T = TypeVar("T")


def config_from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Build a config dataclass, nested ones included; a key that it does not have is an error that names the key."""
    _require(isinstance(values, Mapping), f"The settings of a {cls.__name__} are an object, not {shown(values)}.")
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"{cls.__name__} has no setting named {', '.join(map(shown, unknown[:5]))}. It has: {', '.join(known)}."
        )
    missing = [
        n
        for n, f in known.items()
        if n not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{cls.__name__} needs a value for {', '.join(map(repr, missing))}.")
    nested = {"vision": ViTConfig, "projector": ProjectorConfig, "language": LMConfig, "tiling": TilingConfig}
    arguments = {
        k: config_from_dict(nested[k], v) if k in nested and isinstance(v, dict) else v for k, v in values.items()
    }
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _check_values(config: Any, sizes: bool = False) -> None:
    """Every value is what its annotation says. `sizes`: whole numbers are 1 or more, other numbers above 0."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        wanted, right = words(hint), fits(value, hint)
        if sizes and hint is int:
            wanted, right = f"{wanted}, 1 to {LARGEST}", right and 1 <= value <= LARGEST
        elif sizes and hint is float:
            wanted, right = f"{wanted} above 0", right and value > 0
        _require(right, f"{name} must be {wanted}; it is {shown(value)}.")


@dataclass
class ViTConfig:
    """The SigLIP vision transformer. The defaults are SigLIP-B/16-224."""

    hidden_dim: int = 768
    inter_dim: int = 3072
    num_blocks: int = 12
    num_heads: int = 12
    image_size: int = 224  # pixels, square
    patch_size: int = 16
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_values(self, sizes=True)
        # Not a multiple is fine: SigLIP-SO400M cuts 384 pixels into 27 patches of 14 and leaves out the last 6.
        _require(self.image_size <= 16_384, f"image_size is 16384 pixels at most; it is {self.image_size}.")
        _require(
            self.patch_size <= self.image_size,
            f"A picture of {self.image_size} pixels holds no patch of {self.patch_size}.",
        )
        _require(
            self.hidden_dim % self.num_heads == 0,
            f"ViT hidden_dim {self.hidden_dim} does not divide into {self.num_heads} heads.",
        )

    @property
    def grid_size(self) -> int:
        """Patches along one side of the picture."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid_size**2


@dataclass
class ProjectorConfig:
    """Pixel shuffle, then one linear layer. The defaults join SigLIP-B/16 to SmolLM2-135M."""

    vision_dim: int = 768
    language_dim: int = 576
    pixel_shuffle_factor: int = 2

    def __post_init__(self) -> None:
        _check_values(self, sizes=True)
        factor = self.pixel_shuffle_factor
        _require(factor <= 64, f"pixel_shuffle_factor is 64 at most; it is {factor}.")


@dataclass
class LMConfig:
    """The Llama-style decoder. The defaults are SmolLM2-135M."""

    hidden_dim: int = 576
    inter_dim: int = 1536
    num_blocks: int = 30
    num_heads: int = 9
    num_kv_heads: int = 3
    vocab_size: int = 49152
    max_positions: int = 8192
    rope_base: float = 100_000.0
    rms_norm_eps: float = 1e-5
    tie_weights: bool = True  # the output head is the token embedding

    def __post_init__(self) -> None:
        _check_values(self, sizes=True)
        _require(
            self.hidden_dim % self.num_heads == 0,
            f"LM hidden_dim {self.hidden_dim} does not divide into {self.num_heads} heads.",
        )
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads evenly.",
        )
        _require(self.head_dim % 2 == 0, f"RoPE rotates pairs, so head_dim must be even; it is {self.head_dim}.")

    @property
    def head_dim(self) -> int:
        return self.hidden_dim // self.num_heads


@dataclass
class TilingConfig:
    """How a picture larger than one tile (vision.image_size) is shown: cut into tiles, beside a view of the whole.

    The defaults never enlarge a picture by more than the rest of its last tile: a small icon stays one tile. SmolVLM
    enlarges everything to max_side (`upscale`), so that an icon becomes 17 tiles.
    """

    layout: Literal["smolvlm", "nanovlm"] = "smolvlm"  # whose rule for sizes, and whose tokens around the tiles
    max_side: int | None = 2048  # pixels: a picture with a longer side is shrunk to this first; None: never
    upscale: bool = False  # enlarge until the longer side is max_side
    split: bool = True  # False: the view of the whole alone
    global_view: bool = True  # False: the tiles alone (nanoVLM's first tiled models)

    def __post_init__(self) -> None:
        _check_values(self)
        _require(self.max_side is None or self.max_side >= 1, f"max_side must be at least 1; it is {self.max_side}.")
        limit = {"smolvlm": 4096, "nanovlm": 16_384}[self.layout]
        _require(
            self.max_side is None or self.max_side <= limit,
            f"The {self.layout} layout allows {limit} pixels at most; max_side is {self.max_side}.",
        )
        _require(not self.upscale or self.max_side is not None, "upscale needs max_side: the size to enlarge to.")
        _require(self.split or self.global_view, "Without split and global_view nothing of the picture is shown.")
        _require(
            self.layout == "nanovlm" or self.global_view,
            "The smolvlm layout always shows the view of the whole: set global_view, or use the nanovlm layout.",
        )


@dataclass
class VLMConfig:
    """The three parts, and how pictures and prompts reach them. The defaults are nanoVLM's 222M model."""

    vision: ViTConfig = field(default_factory=ViTConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    language: LMConfig = field(default_factory=LMConfig)
    image_token_id: int | None = None  # None: image tokens go in front of the text
    eos_token_id: int = 0
    stop_token_ids: tuple[int, ...] = ()  # further tokens that end an answer
    pixel_range: Literal["signed", "unit"] = "signed"  # [-1, 1] as SigLIP was trained; nanoVLM's checkpoints: [0, 1]
    prompt_format: Literal["chat", "question_answer"] = "chat"
    tokenizer: str | None = None  # Hub id, where the model directory does not hold a tokenizer
    tiling: TilingConfig | None = None  # None: every picture is squashed to one tile

    def __post_init__(self) -> None:
        _check_values(self)
        factor = self.projector.pixel_shuffle_factor
        _require(
            self.vision.grid_size % factor == 0,
            f"A grid of {self.vision.grid_size}x{self.vision.grid_size} patches cannot be shuffled by {factor}.",
        )
        _require(
            self.projector.vision_dim == self.vision.hidden_dim,
            f"The projector expects vision_dim {self.projector.vision_dim}, the ViT gives {self.vision.hidden_dim}.",
        )
        _require(
            self.projector.language_dim == self.language.hidden_dim,
            f"The projector gives language_dim {self.projector.language_dim}, "
            f"the decoder expects {self.language.hidden_dim}.",
        )
        for name in ("image_token_id", "eos_token_id"):
            token, size = getattr(self, name), self.language.vocab_size
            _require(token is None or 0 <= token < size, f"{name} {token} is outside the vocabulary of {size}.")
        _require(
            all(isinstance(token, int) and 0 <= token < self.language.vocab_size for token in self.stop_token_ids),
            f"stop_token_ids {list(self.stop_token_ids)} must be ids of the vocabulary of {self.language.vocab_size}.",
        )
        _require(
            self.tiling is None or self.image_token_id is not None,
            "A picture in tiles needs image placeholders between their position tokens: set image_token_id.",
        )

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one picture (one tile) becomes."""
        return (self.vision.grid_size // self.projector.pixel_shuffle_factor) ** 2

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "nanovlm-course", **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VLMConfig:
        return config_from_dict(cls, {k: v for k, v in values.items() if k != "model_type"})


Part = Literal["vision_encoder", "projector", "decoder"]
SAMPLE_COUNTS = ("dataset_size", "val_size", "max_val_samples", "data_cutoff_idx", "max_steps")
MOST_SAMPLES = 2**28  # an order of so many samples takes 2 GB


def _is_file_name(name: str) -> bool:
    """Whether a name stands for one file in its directory, on every system."""
    return (
        name.strip(" .") == name != ""
        and len(name.encode(errors="replace")) <= 200
        and name.isprintable()
        and (not set(name) & set('/\\:*?"<>|'))
    )


@dataclass
class TrainConfig:
    """One training run. A preset says what differs from these values."""

    # data
    dataset_path: str = "thimble"  # "thimble", a Hub id, a directory of parquet files, or your own (data/own_data.py)
    dataset_names: tuple[str, ...] = ("shapes",)  # mixed; Thimble: shapes charts glyphs choice captions american
    dataset_weights: tuple[float, ...] = ()  # one a name: the parts of the mixture; default: in proportion to size
    dataset_size: int = 100_000  # Thimble only: training pictures per subset
    val_size: int = 200  # Thimble: validation pictures per subset; a stream: validation samples in all
    val_ratio: float = 0.01  # other data: the share held out for validation
    max_val_samples: int = 2_000  # but not more than so many
    data_cutoff_idx: int | None = None  # use only so many samples (of a stream, the first): a quick run
    stream: bool = False  # read the data set as a stream instead of downloading it first
    shuffle_buffer_mb: int = 256  # of a stream: memory for samples, still encoded, among which it is shuffled
    revision: str | None = None  # of a data set on the Hub: a commit, tag or branch
    max_length: int = 128  # tokens per row, image tokens included
    packing: bool = False  # several samples per row, with document boundaries
    max_images: int | None = None  # pictures (tiles) per sample; one with more is skipped. None: as fit into a row
    min_ratings: dict[str, int] = field(default_factory=dict)  # FineVision's: name -> lowest to keep; see `messages_of`
    num_workers: int = 0
    # optimisation
    batch_size: int | Literal["auto"] = 32  # rows per forward; auto: the most that fit, found by trying
    gradient_accumulation_steps: int = 1
    max_steps: int = 1_000  # optimizer steps
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr_projector: float = 2e-3
    lr_backbones: float = 1e-4
    lr_vision: float | None = None  # the encoder's own; None: lr_backbones
    lr_muon: float = 0.02  # hidden matrices, with optimizer="muon"
    weight_decay: float = 0.01
    warmup_fraction: float = 0.03
    min_lr_fraction: float = 0.1  # the cosine ends at this share of the peak
    max_grad_norm: float = 1.0
    # what is trained (adapt/): all, unless it says otherwise
    freeze: tuple[Part, ...] = ()  # parts whose weights stay
    trainable_tokens: tuple[str, ...] = ()  # train their embeddings alone, as of ' colo': new words for an old model
    lora_rank: int = 0  # more than 0: only low-rank adapters are trained, at lr_projector, since they are new
    lora_alpha: float | None = None  # the adapters' difference counts alpha / rank; None: alpha is twice the rank
    lora_modules: tuple[str, ...] = ("q_proj", "v_proj")  # the linear layers that get one
    lora_4bit: bool = False  # keep the matrices below the adapters in four bits (QLoRA)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: all weights in each process, or dealt out to them
    gradient_checkpointing: bool = False
    # the run
    seed: int = 0  # of the first weights and of the order of the data
    log_every: int = 10  # steps between lines of metrics.jsonl
    eval_every: int = 250  # steps between validations
    save_every: int = 250  # steps between checkpoints
    accuracy_images: int = 32  # at each evaluation, ask the short questions about so many validation pictures
    output_dir: str = "runs"
    run_name: str | None = None  # default: made from sizes, rates and date
    resume: bool = False  # go on from the newest checkpoint of run_name, or of the run that saved last
    wandb: bool = False

    def __post_init__(self) -> None:
        _require(
            not isinstance(self.dataset_names, str),
            f"dataset_names is a list of names, such as [{self.dataset_names!r}], not a single one.",
        )
        _check_values(self)
        self.dataset_names = tuple(self.dataset_names)
        self.dataset_weights = tuple(self.dataset_weights)
        _require(
            not self.dataset_weights or len(self.dataset_weights) == len(self.dataset_names),
            "dataset_weights needs one number for each of dataset_names, which are then named one by one.",
        )
        _require(all(weight > 0 for weight in self.dataset_weights), "dataset_weights are all more than 0.")
        _require(
            self.run_name is None or _is_file_name(self.run_name),
            f"run_name {shown(self.run_name)} names no directory in output_dir: leave out slashes, dots alone and odd "
            "characters.",
        )
        numbers = vars(self) | ({"batch_size": 1} if self.batch_size == "auto" else {})
        counts = ("batch_size", "gradient_accumulation_steps", "max_steps", "max_length", "max_val_samples")
        for name in (*counts, "log_every", "eval_every", "save_every", "shuffle_buffer_mb"):
            _require(numbers[name] >= 1, f"{name} must be at least 1; it is {numbers[name]}.")
        for name, kind in get_type_hints(TrainConfig).items():
            if kind in (int, int | None, int | Literal["auto"]) and name != "seed":
                value, most = numbers[name], MOST_SAMPLES if name in SAMPLE_COUNTS else LARGEST
                _require(value is None or value <= most, f"{name} is {most:,} at most; it is {value}.")
        _require(0 <= self.seed < 2**62, f"seed is a whole number from 0 to 2^62 - 1; it is {self.seed}.")
        _require(self.accuracy_images >= 0, f"accuracy_images is 0 or more; it is {self.accuracy_images}.")
        for name in ("warmup_fraction", "min_lr_fraction", "val_ratio"):
            _require(0 <= getattr(self, name) <= 1, f"{name} is a share between 0 and 1; it is {getattr(self, name)}.")
        self.freeze, self.lora_modules = tuple(self.freeze), tuple(self.lora_modules)
        self.trainable_tokens = tuple(self.trainable_tokens)
        _require(
            not self.trainable_tokens or not (self.freeze or self.lora_rank or self.parallel == "fsdp"),
            "trainable_tokens freezes all else, in one process or with ddp: leave out freeze, lora_rank and fsdp.",
        )
        _require(self.lora_rank >= 0, f"lora_rank is 0 or more; it is {self.lora_rank}.")
        _require(
            not self.lora_4bit or self.lora_rank > 0, "lora_4bit keeps a base in four bits: set lora_rank as well."
        )
        for name in ("lr_projector", "lr_backbones", "lr_vision", "lr_muon", "weight_decay"):
            rate = getattr(self, name)
            _require(rate is None or 0 <= rate <= 1e6, f"{name} is 0 or more, and 1e6 at most; it is {rate}.")
        _require(self.num_workers >= 0, f"num_workers is 0 or more; it is {self.num_workers}.")
        _require(self.max_grad_norm > 0, f"max_grad_norm must be more than 0; it is {self.max_grad_norm}.")
        _require(
            self.parallel == "ddp" or self.optimizer == "adamw",
            "Muon looks at whole matrices, and parallel fsdp deals them out: use optimizer adamw, or parallel ddp.",
        )
        _require(
            self.data_cutoff_idx is None or self.data_cutoff_idx >= 1,
            f"data_cutoff_idx is a number of samples, 1 or more; it is {self.data_cutoff_idx}.",
        )


@dataclass
class Preset:
    """A model and the recipe that trains it."""

    vlm: VLMConfig
    train: TrainConfig
    # Weights to start from: Hub ids or directories. None: random weights.
    vision_backbone: str | None = None
    language_backbone: str | None = None


def pocket_vlm() -> VLMConfig:
    """About 1.4 M parameters: 64-pixel pictures, 16 image tokens, a vocabulary of a few hundred."""
    return VLMConfig(
        vision=ViTConfig(hidden_dim=128, inter_dim=512, num_blocks=2, num_heads=4, image_size=64, patch_size=8),
        projector=ProjectorConfig(vision_dim=128, language_dim=128, pixel_shuffle_factor=2),
        language=LMConfig(
            hidden_dim=128,
            inter_dim=384,
            num_blocks=4,
            num_heads=4,
            num_kv_heads=2,
            vocab_size=444,
            max_positions=512,
            rope_base=10_000.0,
        ),
        image_token_id=4,
        eos_token_id=1,
    )


# The subsets of the_cauldron (HuggingFaceM4/the_cauldron, 50 in all) that the published 222M was trained on. Left out,
# as there (huggingface/nanoVLM, models/config.py at 340fd5f): clevr_math, mimic_cgd, nlvr2, okvqa, spot_the_diff.
CAULDRON = tuple(
    (  # noqa: SIM905 - forty-five lines otherwise
        "ai2d aokvqa chart2text chartqa clevr cocoqa datikz diagram_image_to_text docvqa dvqa figureqa finqa geomverse "
        "hateful_memes hitab iam iconqa infographic_vqa intergps localized_narratives mapqa multihiertt ocrvqa plotqa "
        "raven rendered_text robut_sqa robut_wikisql robut_wtq scienceqa screen2words st_vqa tabmwp tallyqa tat_qa "
        "textcaps textvqa tqa vistext visual7w visualmrc vqarad vqav2 vsr websight"
    ).split()
)


def presets() -> dict[str, Preset]:
    """Name -> a fresh preset (fresh, because configs can be edited)."""
    small = {
        "vision_backbone": "google/siglip-base-patch16-224",
        "language_backbone": "HuggingFaceTB/SmolLM2-135M",
    }
    # As published: no system message, which would take a third of a row of 128 tokens.
    vlm_222m = {"tokenizer": "HuggingFaceTB/SmolLM2-135M-Instruct", "prompt_format": "question_answer"}
    cauldron = {"dataset_path": "HuggingFaceM4/the_cauldron", "dataset_names": CAULDRON}
    rare = {"eval_every": 2_000, "save_every": 2_000}  # steps: a validation and a checkpoint of 2.7 GB take their time
    return {
        "pocket": Preset(
            pocket_vlm(),
            TrainConfig(
                dataset_names=("shapes",),
                batch_size=64,
                dataset_size=50_000,
                max_steps=640,
                optimizer="muon",
                weight_decay=0.1,  # Muon's step has one length: a matrix that grows turns less and less (LOG.md)
                lr_projector=2e-3,
                lr_backbones=2e-3,
                eval_every=100,
                save_every=100,
            ),
        ),
        # A T4 with 15 GB, in one session; two CPU cores read and decode.
        "colab": Preset(
            VLMConfig(**vlm_222m),
            TrainConfig(
                **cauldron,
                stream=True,
                val_size=900,
                num_workers=2,
                batch_size=16,
                gradient_accumulation_steps=16,
                max_steps=3_000,
                eval_every=500,
                save_every=250,
            ),
            **small,
        ),
        # The published 222M: five epochs of 1.7 million samples.
        "h100": Preset(
            VLMConfig(**vlm_222m),
            TrainConfig(**cauldron, **rare, num_workers=16, batch_size=256, max_steps=32_700, compile=True),
            **small,
        ),
        # The generation with tiles: 512-pixel views, 64 tokens each, several samples to a row of 4,096. Muon would not
        # do: it degrades pretrained backbones (arXiv:2605.10468).
        "460m": Preset(
            VLMConfig(
                vision=ViTConfig(image_size=512),
                projector=ProjectorConfig(language_dim=960, pixel_shuffle_factor=4),
                language=LMConfig(hidden_dim=960, inter_dim=2560, num_blocks=32, num_heads=15, num_kv_heads=5),
                tokenizer="HuggingFaceTB/SmolLM2-360M-Instruct",
                image_token_id=0,  # the real one is the tokenizer's, once it is here
                tiling=TilingConfig(layout="nanovlm"),
            ),
            TrainConfig(
                **rare,
                dataset_path="HuggingFaceM4/FineVisionMax",
                dataset_names=("default",),
                stream=True,
                val_size=2_000,
                packing=True,
                max_length=4_096,
                max_images=64,
                num_workers=16,
                batch_size=8,
                gradient_accumulation_steps=8,
                max_steps=20_000,
                lr_projector=5.12e-3,
                lr_backbones=5e-5,
                gradient_checkpointing=True,
                compile=True,
            ),
            vision_backbone="google/siglip2-base-patch16-512",
            language_backbone="HuggingFaceTB/SmolLM2-360M-Instruct",
        ),
    }
