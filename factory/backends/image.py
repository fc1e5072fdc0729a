"""Backends of images: storage, captions, filters, and how samples are resized and cropped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from factory.backends.encode_mode import EncodeMode, as_mode, check_caption_mode
from factory.backends.pixels import MediaReader, ReadPicture
from factory.catalog.captions.sources import Captions, TextFileCaptions
from factory.catalog.catalog import Catalog
from factory.catalog.crops import OwnCrops
from factory.catalog.decisions import NO_CAPTION, OVER_LIMIT, Decisions, decide
from factory.catalog.facts import SIZE_DIFFERS, Facts
from factory.catalog.row_filters import RowFilter
from factory.catalog.scan.discovery import Discovery
from factory.catalog.scan.journal import Journal
from factory.catalog.scan.media_type import MediaType, Pictures
from factory.catalog.scan.scan import Metadata, Scan
from factory.engine.engine import Engine
from factory.errors import EmptyBackendError, ObjectNotFoundError
from factory.limits import AtLeast, OneOf, check_limits
from factory.media.composite import Composite
from factory.media.decode_limits import DecodeLimits
from factory.media.faces import face_finder
from factory.media.geometry.geometry import Geometry
from factory.media.geometry.validation import CropAspect, CropStyle, ResolutionType
from factory.media.video import Clip
from factory.sampling.active_window import ActiveWindow
from factory.storage.base import Storage
from factory.storage.keys import strip_prefix

# What mends rows of tables, by the reason they are dropped for.
_TABLE_ADVICE = {
    "duplicate row": "nothing, if the first row of each is the right one; remove the others",
    "file missing": "bring these files, or take their rows out of the table",
    "no size in table": (
        "write sizes above 0 into the table, or have the files measured: metadata.width_column="
        "null and metadata.height_column=null"
    ),
    "no frames in table": "write numbers of frames above 0 into the table",
    "no file name": "fill metadata.file_column, or take these rows out of the table",
    "unsafe name": "write names below the prefix into the table",
    "ambiguous name": "write names with their suffixes, and set metadata.extensionless=false",
    "unsafe path": "save the dataset anew with save_to_disk, which embeds its pictures",
}


@dataclass(frozen=True)
class Crop:
    """How a picture is cut to its bucket.

    Attributes:
        aspect: Shape: preserve | square | closest | random (of aspect_buckets).
        style: Place of the cut: center (or centre) | random | corner (top left) | face (the
            largest one, random where there is none).
        aspect_buckets: Width/height ratios that closest and random choose from; for random also
            {aspect: RATIO, weight: SHARE}, with weights that sum to 1.
        max_upscale_threshold: random leaves out ratios whose target has an edge above (1 + this)
            times the sample's; where none is left, the target is a square.
    """

    aspect: CropAspect = "preserve"
    style: CropStyle = "center"
    aspect_buckets: Sequence[float | Mapping[str, float]] = ()
    max_upscale_threshold: Annotated[float | None, AtLeast(0)] = None


@dataclass(frozen=True, kw_only=True)
class SampleBackend:
    """One named source of pictures.

    Attributes:
        name: The backend's name, unique in a run.
        prefix: Folder of the samples in the storage. "" is the root.
        storage: Where the bytes live.
        metadata: How samples are found and measured.
        caption: What the samples say. A text file beside each one, if it is not set.
        crop: How samples are cut to their bucket.
        resolution: Target size; unit set by resolution_type.
        resolution_type: pixel: short edge, px | pixel_area: edge of the square of equal area, px |
            area: MP.
        alignment: Target edges are multiples of this, px.
        minimum_image_size: Smaller samples are dropped; px, or MP with area.
        maximum_image_size: Larger samples are shrunk to target_downsample_size before the cut; px,
            or MP.
        target_downsample_size: Their size then: more of a large sample stays in the cut; px, or MP
            with area.
        minimum_aspect_ratio: Least width/height of a bucket.
        maximum_aspect_ratio: Greatest width/height of a bucket.
        maximum_canvas: Largest area of a target, MP.
        aspect_sizes: Forced targets, px, by the label they replace: {0.75: [768,1024]}.
        max_samples: Keep at most this many samples, chosen by name.
        decode: fast: JPEGs at a reduced scale where that is enough | exact: whole, resized by
            Lanczos; videos are not affected.
        text_embeds: text_embeds backend to use; None means the default one.
        image_embeds: image_embeds backend to use; None: the default one.
        conditioning_image_embeds: conditioning_image_embeds backend its pictures are also encoded
            by; None: the default one, if there is one and the backend is not of type conditioning.
        encode_mode: When pictures are encoded: precompute | on_demand | transient | each_epoch;
            None: as the image_embeds backend says.
        encode_text_mode: When captions are encoded; None: as the text_embeds backend says.
        composite: Which part of each picture is the sample.
        filters: Conditions on the table's columns, as [{column: NAME, minimum: 0.5}]. Rows that
            fail one are dropped.
        limits: What decoding one picture may take.
        what: What one sample is called in messages.
    """

    what: ClassVar[str] = "picture"

    name: str
    prefix: str = ""
    storage: Storage
    metadata: Metadata = field(default_factory=Discovery)
    caption: Captions = field(default_factory=TextFileCaptions)
    crop: Crop = field(default_factory=Crop)
    resolution: float = 1024
    resolution_type: ResolutionType = "pixel_area"
    alignment: int = 64
    minimum_image_size: float | None = None
    maximum_image_size: float | None = None
    target_downsample_size: float | None = None
    minimum_aspect_ratio: float | None = None
    maximum_aspect_ratio: float | None = None
    maximum_canvas: float | None = None
    aspect_sizes: Mapping[str | float, Sequence[int]] | None = None
    max_samples: Annotated[int | None, AtLeast(1)] = None
    decode: Annotated[str, OneOf("fast", "exact")] = "fast"
    text_embeds: str | None = None
    image_embeds: str | None = None
    conditioning_image_embeds: str | None = None
    encode_mode: str | None = None
    encode_text_mode: str | None = None
    composite: Composite = field(default_factory=Composite)
    filters: Sequence[RowFilter] = ()
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def __post_init__(self) -> None:
        """Check the geometry now, so that a mistake is found before any I/O."""
        # As listings spell it: "./photos//raw/" is "photos/raw".
        object.__setattr__(self, "prefix", strip_prefix(self.prefix))
        object.__setattr__(self, "filters", tuple(self.filters))
        self._check_sizes()
        check_limits(self, f"data.backends.{self.name}")
        self._check_modes()
        self._check_faces()

    def _check_modes(self) -> None:
        where = f"data.backends.{self.name}"
        for name in ("encode_mode", "encode_text_mode"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_mode(value, f"{where}.{name}"))
        if self.encode_text_mode is not None:
            check_caption_mode(self.encode_text_mode, f"{where}.encode_text_mode")
        if self.encode_mode == EncodeMode.each_epoch:
            self.check_redraws()

    def check_redraws(self) -> None:
        """Refuse to draw cuts anew in each epoch where none is drawn.

        Raises:
            ValueError: Names the change that mends it.
        """
        if self.geometry.crop_style not in ("random", "face"):
            where = f"data.backends.{self.name}"
            raise ValueError(
                f"{where}.encode_mode=each_epoch draws random cuts anew in each epoch, and with "
                f"{where}.crop.style={self.crop.style} there are none; set {where}.encode_mode="
                f"on_demand, or draw them: data/crop@{where}=random"
            )

    def _check_sizes(self) -> None:
        _ = self.geometry

    def _check_faces(self) -> None:
        if self.geometry.uses_focus and (self.composite or not self.medium.whole):
            raise ValueError(
                f"backend {self.name!r}: crop.style=face looks at whole stored pictures, not at "
                "videos, streams or parts of composites; set another crop.style"
            )

    @property
    def geometry(self) -> Geometry:
        """How targets and cuts follow from sizes."""
        return Geometry(
            resolution=self.resolution,
            resolution_type=str(self.resolution_type),
            alignment=self.alignment,
            crop_aspect=str(self.crop.aspect),
            crop_style=str(self.crop.style),
            crop_aspect_buckets=tuple(self.crop.aspect_buckets),
            max_upscale_threshold=self.crop.max_upscale_threshold,
            minimum_image_size=self.minimum_image_size,
            maximum_image_size=self.maximum_image_size,
            target_downsample_size=self.target_downsample_size,
            minimum_aspect_ratio=self.minimum_aspect_ratio,
            maximum_aspect_ratio=self.maximum_aspect_ratio,
            maximum_canvas=self.maximum_canvas,
            aspect_sizes=self.aspect_sizes or {},
        )

    @property
    def medium(self) -> MediaType:
        """Which files count, and how they are measured."""
        return Pictures(faces=self.geometry.uses_focus, limits=self.limits)

    @property
    def clip(self) -> Clip | None:
        """Which frames of a video are taken; None for still pictures."""
        return None

    @property
    def picture_reader(self) -> ReadPicture:
        """How the bytes of a picture become pixels."""
        return ReadPicture(self.storage, str(self.decode), self.composite, self.limits)

    @property
    def reader(self) -> MediaReader:
        """How samples become pixels."""
        return self.picture_reader

    def scan(self, known: Facts | None, engine: Engine, journal: Journal | None = None) -> Facts:
        """Measure what is new or changed since `known`.

        Raises:
            ObjectNotFoundError: The folder does not exist.
            EmptyBackendError: It holds no picture.
            ConfigError: The captions' filter file is wrong; read before anything is measured.
            MissingExtraError: Faces are looked for, and the package for it is not installed.
        """
        _ = self.caption.edits
        if self.medium.whole:
            face_finder()  # what is not installed is said before anything is listed
        scan = Scan(
            name=self.name,
            storage=self.storage,
            prefix=self.prefix,
            captions=self.caption,
            known=known,
            medium=self.medium,
            columns=tuple(dict.fromkeys(one.column for one in self.filters)),
            journal=journal,
        )
        try:
            facts = self.metadata.scan(scan, engine)
        except ObjectNotFoundError as error:
            error.add_note(
                f"backend {self.name!r} reads data.backends.{self.name}.prefix="
                f"{self.prefix!r} in {self.storage.identity}; "
                f"mend the path, or drop the backend with '~data.backends.{self.name}'"
            )
            raise
        if not len(facts):
            raise EmptyBackendError(
                f"backend {self.name!r}: no {self.what} in {self.prefix or '/'!r} of "
                f"{self.storage.identity}; check data.backends.{self.name}.prefix, and "
                f"{self._suffixes()} or the rows of its table"
                f"{''.join(f'; {line}' for line in facts.left_out.lines())}"
            )
        return facts

    def catalog(self, facts: Facts, seed: int) -> Catalog:
        """Decide about every sample.

        Raises:
            EmptyBackendError: Every sample is dropped; names the reasons, counts and the
                change that keeps some.
        """
        facts = self.of_parts(facts)
        decisions = self.decide(facts, seed)
        if not decisions.kept:
            raise EmptyBackendError(self._all_dropped(facts, decisions))
        return Catalog(facts, decisions, self.caption, OwnCrops(facts, self.geometry, seed))

    def decide(self, facts: Facts, seed: int) -> Decisions:
        """Decide about every sample by the sizes its facts give."""
        return decide(
            facts,
            self.geometry,
            self.caption,
            name=self.name,
            seed=seed,
            max_samples=self.max_samples,
            clip=self.clip,
            filters=self.filters,
        )

    def of_parts(self, facts: Facts) -> Facts:
        """Return facts with the widths of the parts that are used; files keep theirs in store."""
        if not self.composite:
            return facts
        widths = self.composite.widths(facts.column("width"))
        return facts.with_column("width", widths)

    def _suffixes(self) -> str:
        """Name the setting that says which files count."""
        own = self.medium.suffixes is not None
        return f"data.backends.{self.name}.suffixes" if own else "metadata.suffixes"

    def _all_dropped(self, facts: Facts, made: Decisions) -> str:
        """Say why nothing is left: each reason's count and, for the commonest, the mend."""
        dropped = made.dropped()
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        first = next(iter(dropped))
        row = int((made.reason == made.reasons.index(first)).argmax())
        columns = (facts.texts(name, [row])[0] for name in ("error", "text_error"))
        example = next((text for text in columns if text), "")
        key, advice = repr(facts.key(row)), self.advice().get(first)
        if advice is None:
            mend = f"; mend such files as {key} ({example or first})"
        else:
            mend = f", such as {key} ({example}); {advice}" if example else f"; {advice}"
        return f"backend {self.name!r}: all {len(facts)} samples are dropped: {counts}{mend}"

    def advice(self) -> dict[str, str]:
        """Return how to keep samples, by the reason they are dropped for."""
        where = f"data.backends.{self.name}"
        return {
            "minimum_image_size": f"lower {where}.minimum_image_size={self.minimum_image_size}",
            "minimum_aspect_ratio": (
                f"lower {where}.minimum_aspect_ratio={self.minimum_aspect_ratio}"
            ),
            "maximum_aspect_ratio": (
                f"raise {where}.maximum_aspect_ratio={self.maximum_aspect_ratio}"
            ),
            NO_CAPTION: self._caption_advice(where),
            OVER_LIMIT: (
                f"nothing, if {where}.max_samples={self.max_samples} is meant; null keeps all"
            ),
            SIZE_DIFFERS: (
                f"correct the sizes in the table, or have the files measured: {where}.metadata."
                f"width_column=null and {where}.metadata.height_column=null, or metadata@{where}="
                "discovery for columns of a dataset"
            ),
            **_TABLE_ADVICE,
            **{one.reason: f"loosen {where}.filters" for one in self.filters},
        }

    def _caption_advice(self, where: str) -> str:
        """Say how samples get captions; filters may have taken all words of those they had."""
        other = f"choose another data/caption@{where}, such as filename"
        edits = [
            f"{where}.caption.{name}"
            for name in ("filters", "filters_file")
            if getattr(self.caption, name)
        ]
        return f"{other}, or loosen {' and '.join(edits)}" if edits else other


@dataclass(frozen=True, kw_only=True)
class ImageBackend(SampleBackend):
    """Still pictures to train on.

    Attributes:
        probability: Weight in the mixture, relative to other backends.
        repeats: Extra passes over the samples in each epoch.
        window: When the backend takes part.
        batch_size: Samples of its optimizer steps, over all ranks and accumulation; None: the
            run's.
        slider_strength: Above, below or at 0: backends of equal sign form a group, and groups take
            turns as soon as one is not at 0; None: at 0, and batches say nothing.
        conditioning_sampling: Of several conditioning backends, combined: all in every batch |
            random: one for each sample and epoch.
    """

    probability: Annotated[float, AtLeast(0)] = 1.0
    repeats: Annotated[int, AtLeast(0)] = 0
    window: ActiveWindow = field(default_factory=ActiveWindow)
    batch_size: Annotated[int | None, AtLeast(1)] = None
    slider_strength: float | None = None
    conditioning_sampling: Annotated[str, OneOf("combined", "random")] = "combined"


@dataclass(frozen=True, kw_only=True)
class EvalBackend(SampleBackend):
    """Pictures to validate on: every one once, in a fixed order, never trained on.

    Their captions are never dropped, also where the strategy shared with others drops some.

    Attributes:
        conditioning_sampling: As of pictures to train on.
    """

    conditioning_sampling: Annotated[str, OneOf("combined", "random")] = "combined"

    def check_redraws(self) -> None:
        """Refuse to draw cuts anew: validation looks at the same pixels each time."""
        where = f"data.backends.{self.name}"
        raise ValueError(
            f"{where}.encode_mode=each_epoch draws cuts anew, and validation compares the same "
            f"ones over time; set {where}.encode_mode=precompute"
        )

    def __post_init__(self) -> None:
        """Keep every caption."""
        super().__post_init__()
        if self.caption.dropout:
            object.__setattr__(self, "caption", replace(self.caption, dropout=0.0))
