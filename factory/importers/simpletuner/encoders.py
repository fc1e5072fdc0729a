"""The model's encoders and the length of a run, from the trainer's arguments.

Upstream's model brings its autoencoder and text encoders; here they are options of their own,
without which the demo's toys would encode. What cannot be carried is said first of all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from factory.importers.simpletuner.arguments import Arguments, as_number
from factory.importers.simpletuner.dataset import KeyNote, Outcome
from factory.importers.simpletuner.entry import as_switch
from factory.untrusted_text import without_interpolation

# Text options of this project: what is set in them, below `text`.
_CLIP = {"max_length": 77, "pooled": "none", "attend_padding": True}
_T5 = {"pooled": "none"}
# A single text model in the folders that pipelines of diffusers have.
_FOLDERS = {"subfolder": "text_encoder", "tokenizer_subfolder": "tokenizer"}
_TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_SINGLE_FILES = (".safetensors", ".ckpt", ".gguf")
_SET_IMAGE = "encoder/image=autoencoder_kl encoder.image.model=MODEL"
_SET_TEXT = "encoder/text=transformers encoder.text.model=MODEL"


@dataclass(frozen=True)
class Family:
    """What upstream's model of one `model_family` encodes with.

    Attributes:
        repositories: The model on the Hub of each `model_flavour`; the first is the default.
        image: Option of `encoder/image`; "" where there is none.
        text: Option of `encoder/text`; "" where there is none.
        length: Tokens of a caption, for a single text model.
        more: What else is set below `text`.
        takes_length: Whether upstream heeds `tokenizer_max_length`.
    """

    repositories: Mapping[str, str]
    image: str = "autoencoder_kl"
    text: str = ""
    length: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    takes_length: bool = False


def _wan(size: str) -> str:
    return f"Wan-AI/Wan{size}-Diffusers"


FAMILIES: dict[str, Family] = {
    "sdxl": Family(
        {
            "base-1.0": "stabilityai/stable-diffusion-xl-base-1.0",
            "base-0.9": "stabilityai/stable-diffusion-xl-base-0.9",
        },
        text="clip_and_clip",
    ),
    "flux": Family(
        {
            "krea": "black-forest-labs/FLUX.1-Krea-dev",
            "dev": "black-forest-labs/FLUX.1-dev",
            "schnell": "black-forest-labs/FLUX.1-schnell",
            "kontext": "black-forest-labs/FLUX.1-Kontext-dev",
            "fluxbooru": "terminusresearch/fluxbooru-v0.3",
            "libreflux": "jimmycarter/LibreFlux-SimpleTuner",
        },
        text="clip_and_t5",
    ),
    "sd1x": Family(
        {
            "dreamshaper": "Lykon/dreamshaper-8",
            "1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "1.4": "CompVis/stable-diffusion-v1-4",
        },
        text="transformers",
        more=_CLIP,
    ),
    "sd2x": Family(
        {
            "pseudoflex-v2": "bghira/pseudo-flex-v2",
            "digitaldiffusion": "Junglerally/Digital-Diffusion",
            "pseudojourney": "bghira/pseudo-journey-v2",
            "2.1": "stabilityai/stable-diffusion-2-1",
            "2.0": "stabilityai/stable-diffusion-2-0",
        },
        text="transformers",
        more=_CLIP,
    ),
    "pixart_sigma": Family(
        {
            "900M-1024-v0.6": "terminusresearch/pixart-900m-1024-ft-v0.6",
            "900M-1024-v0.7-stage1": "terminusresearch/pixart-900m-1024-ft-v0.7-stage1",
            "900M-1024-v0.7-stage2": "terminusresearch/pixart-900m-1024-ft-v0.7-stage2",
            "600M-512": "PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
            "600M-1024": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
            "600M-2048": "PixArt-alpha/PixArt-Sigma-XL-2-2K-MS",
        },
        text="transformers",
        length=300,
        more=_T5,
    ),
    "chroma": Family(
        {
            "base": "lodestones/Chroma1-Base",
            "hd": "lodestones/Chroma1-HD",
            "flash": "lodestones/Chroma1-Flash",
        },
        text="transformers",
        length=512,
        more=_T5,
        takes_length=True,
    ),
    "auraflow": Family(
        {
            "v0.3": "terminusresearch/auraflow-v0.3",
            "v0.2": "fal/AuraFlow-v0.2",
            "v0.1": "fal/AuraFlow",
        },
        text="transformers",
        length=120,
        more={**_T5, "zero_mask": True},
        takes_length=True,
    ),
    "deepfloyd": Family(
        {
            "i-medium-400m": "DeepFloyd/IF-I-M-v1.0",
            "i-large-900m": "DeepFloyd/IF-I-L-v1.0",
            "i-xlarge-4.3b": "DeepFloyd/IF-I-XL-v1.0",
        },
        image="none",
        text="transformers",
        length=77,
        more=_T5,
    ),
    "ltxvideo": Family(
        {"0.9.5": "Lightricks/LTX-Video-0.9.5", "0.9.0": "Lightricks/LTX-Video"},
        image="video_autoencoder",
        text="transformers",
        length=226,
        more=_T5,
    ),
    "wan": Family(
        {
            "t2v-480p-1.3b-2.1": _wan("2.1-T2V-1.3B"),
            "t2v-480p-14b-2.1": _wan("2.1-T2V-14B"),
            "i2v-14b-2.1": _wan("2.1-I2V-14B-480P"),
            "i2v-14b-2.1-720p": _wan("2.1-I2V-14B-720P"),
            "i2v-14b-2.2-high": _wan("2.2-I2V-A14B"),
            "i2v-14b-2.2-low": _wan("2.2-I2V-A14B"),
            "ti2v-5b-2.2": _wan("2.2-TI2V-5B"),
        },
        image="video_autoencoder",
        text="transformers",
        length=512,
        more={**_T5, "zero_mask": True},
    ),
    # Of these the text models take templates, or are more than there is an option for.
    "sd3": Family(
        {
            "medium": "stabilityai/stable-diffusion-3.5-medium",
            "large": "stabilityai/stable-diffusion-3.5-large",
        }
    ),
    "hidream": Family(
        {
            "full": "HiDream-ai/HiDream-I1-Full",
            "dev": "HiDream-ai/HiDream-I1-Dev",
            "fast": "HiDream-ai/HiDream-I1-Fast",
        }
    ),
    "kolors": Family({"1.0": "terminusresearch/kwai-kolors-1.0"}),
    "lumina2": Family({"2.0": "Alpha-VLLM/Lumina-Image-2.0"}),
    "z_image": Family(
        {"turbo": "TONGYI-MAI/Z-Image-Turbo", "base": "TONGYI-MAI/Z-Image"},
    ),
    "omnigen": Family({"v1": "Shitao/OmniGen-v1-diffusers"}),
    "sana": Family(
        {
            "sana1.5-4.8b-1024": "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
            "sana1.5-1.6b-1024": "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
            "sana1.0-1.6b-2048": "Efficient-Large-Model/Sana_1600M_2Kpx_BF16_diffusers",
            "sana1.0-1.6b-1024": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
            "sana1.0-600m-1024": "Efficient-Large-Model/Sana_600M_1024px_diffusers",
            "sana1.0-600m-512": "Efficient-Large-Model/Sana_600M_512px_diffusers",
        },
        image="autoencoder",
    ),
}


@dataclass
class Encoders:
    """What a run encodes with, and for how long it trains.

    Attributes:
        image: Option of `encoder/image` to build on, and what is set in it; None for the demo's.
        text: The same of `encoder/text`.
        trainer: Overrides of the trainer.
        warnings: What the run would do otherwise than upstream's, to be said first.
        notes: What came of each argument.
    """

    image: tuple[str, dict[str, Any]] | None = None
    text: tuple[str, dict[str, Any]] | None = None
    trainer: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, KeyNote] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Arguments, *, clips: bool) -> "Encoders":
        """Choose them by the trainer's arguments.

        Args:
            arguments: The trainer's arguments.
            clips: Whether all that is trained on are videos.
        """
        made = cls()
        made._image(arguments, clips=clips)
        made._text(arguments)
        made._warn(arguments)
        made._length(arguments)
        return made

    def _image(self, arguments: Arguments, *, clips: bool) -> None:
        family, repository = _family(arguments), _repository(arguments)
        named = next(
            (n for n in ("pretrained_vae_model_name_or_path", "vae_path") if arguments[n]), ""
        )
        option = family.image if family else ""
        if named and option in ("", "none"):
            option = "video_autoencoder" if clips else "autoencoder"
        if (option == "video_autoencoder") != clips and option != "none":
            return  # an autoencoder of clips takes no pictures, nor one of pictures clips
        if option == "none":
            self.image = ("none", {})
            return
        model = str(arguments[named]) if named else repository
        if not option or not model:
            return
        values: dict[str, Any] = {
            "model": without_interpolation(model),
            "subfolder": _vae_folder(model, repository),
        }
        if option == "autoencoder_kl":
            values["sample"] = "sample"  # as upstream draws them
        kind = _TYPES.get(str(arguments["vae_dtype"]))
        if kind:
            values["compute_dtype"] = kind
            self._note_carry("vae_dtype", "encoder.image.compute_dtype")
        for name in ("tiling", "slicing"):
            if as_switch(arguments[f"vae_enable_{name}"]):
                values[name] = True
                self._note_carry(f"vae_enable_{name}", f"encoder.image.{name}")
        if named:
            self._note_carry(named, "encoder.image.model")
        self.image = (option, values)

    def _text(self, arguments: Arguments) -> None:
        family, repository = _family(arguments), _repository(arguments)
        if family is None or not family.text or not repository:
            return
        model = without_interpolation(repository)
        if family.text == "clip_and_clip":
            values: dict[str, Any] = {"parts": {"small": {"model": model}}}
        elif family.text == "clip_and_t5":
            values = {"parts": {"clip": {"model": model}}}
            if arguments["model_flavour"] == "schnell":
                values["parts"]["t5"] = {"max_length": 256}
        else:
            given = as_number(arguments["tokenizer_max_length"])
            length = int(given) if family.takes_length and given else family.length
            values = {"model": model, **_FOLDERS, **family.more}
            if length is not None:
                values["max_length"] = length
        self.text = (family.text, values)
        if family.takes_length:
            self._note_carry("tokenizer_max_length", "encoder.text.max_length")
        else:
            what = "upstream sets the length of this family's captions itself"
            self.notes["tokenizer_max_length"] = KeyNote(Outcome.needless, what)

    def _warn(self, arguments: Arguments) -> None:
        """Say which toys would encode, and what became of the arguments that name a model."""
        name = arguments["model_family"]
        why = f"model_family={name} has no option of its own for them"
        if not name:
            why = "no model_family is given (--args names the trainer's config.json)"
        elif str(name) not in FAMILIES:
            why = f"nothing is known here of model_family={name}"
        lost = [
            (what, toy, setting)
            for what, toy, setting, found in (
                ("pictures", "block DCT", _SET_IMAGE, self.image),
                ("captions", "hashed text", _SET_TEXT, self.text),
            )
            if found is None
        ]
        if lost:
            toys = " and ".join(f"{what} by its {toy}" for what, toy, _ in lost)
            settings = " ".join(setting for *_, setting in lost)
            self.warnings.append(
                f"toy encoders: this run would encode {toys}, which are the demo's; {why}; "
                f"set {settings}"
            )
        for key in ("model_family", "model_flavour", "pretrained_model_name_or_path"):
            places = [f"`encoder.{n}`" for n in ("image", "text") if getattr(self, n) is not None]
            outcome = Outcome.carried if len(places) == len(("image", "text")) else Outcome.changed
            text = f"to {' and '.join(places)}" + (
                "; fills {model_family}" if "family" in key else ""
            )
            if places:
                self.notes[key] = KeyNote(outcome, text)
            else:
                self.notes[key] = KeyNote(Outcome.left_out, f"{why}; its encoders have to be set")
        self.warnings.append(
            "the model itself is not imported: train.py trains the demo's small one until "
            "model._target_ names yours"
        )

    def _length(self, arguments: Arguments) -> None:
        steps, epochs = (
            as_number(arguments[name]) for name in ("max_train_steps", "num_train_epochs")
        )
        if steps and steps > 0:
            self.trainer.append(f"trainer.max_steps={int(steps)}")
            self._note_carry("max_train_steps", "trainer.max_steps")
        elif epochs and epochs > 0:
            self.trainer += ["trainer.max_steps=-1", f"trainer.max_epochs={int(epochs)}"]
            self._note_carry("num_train_epochs", "trainer.max_epochs")
        else:
            self.warnings.append(
                "no max_train_steps is given: the run ends after the demo's number of steps; set "
                "trainer.max_steps=N"
            )

    def _note_carry(self, key: str, place: str) -> None:
        self.notes[key] = KeyNote(Outcome.carried, f"to `{place}`")


def _family(arguments: Arguments) -> Family | None:
    return FAMILIES.get(str(arguments["model_family"]))


def _repository(arguments: Arguments) -> str:
    """Return the model that upstream takes its parts from; "" where none is known."""
    given = arguments["pretrained_model_name_or_path"]
    # A checkpoint of one file has no folders; upstream takes the rest from the usual model.
    if given and not str(given).endswith(_SINGLE_FILES):
        return str(given)
    family = _family(arguments)
    if family is None:
        return ""
    usual = next(iter(family.repositories.values()))
    flavour = arguments["model_flavour"]
    return family.repositories.get(str(flavour), "") if flavour else usual


def _vae_folder(model: str, repository: str) -> str:
    """Return the folder of an autoencoder: of a whole pipeline it is vae."""
    known = {name.lower() for each in FAMILIES.values() for name in each.repositories.values()}
    whole = model.lower() in known or model == repository or (Path(model) / "vae").is_dir()
    return "vae" if whole else ""
