"""What becomes of each key of upstream's format: the source of truth of every import.

Keys inside a block are written with a dot, as `video.num_frames`; a trainer's argument that
bears on data is written `args.NAME`. Where two spellings mean one key, each has its line.
"""

from dataclasses import dataclass
from enum import StrEnum


class Fate(StrEnum):
    """What becomes of a key."""

    carried = "carried"
    needless = "not needed"
    unsupported = "not supported"


@dataclass(frozen=True)
class Key:
    """One line of the table.

    Attributes:
        fate: What becomes of the key.
        targets: Options it fills, each as SCHEMA.FIELD ("backend/image.repeats").
        reason: Why it is not carried, or how it is carried otherwise than one to one.
        secret: Whether its value must never be shown or written.
    """

    fate: Fate
    targets: tuple[str, ...] = ()
    reason: str = ""
    secret: bool = False


def to(*targets: str, reason: str = "", secret: bool = False) -> Key:
    """Return the line of a key that is carried."""
    return Key(Fate.carried, targets, reason, secret)


def needless(reason: str) -> Key:
    """Return the line of a key that nothing here needs."""
    return Key(Fate.needless, reason=reason)


def unsupported(reason: str) -> Key:
    """Return the line of a key that this project has no counterpart for."""
    return Key(Fate.unsupported, reason=reason)


_TENSORS = needless("tensors are kept in content-addressed shards of the image_embeds backend")
_SCAN = needless("facts are measured once, and only new or changed files are read again")
_WORKERS = needless("`engine.workers` sets the threads of all bulk work")
_NO_AUDIO = unsupported("there is no audio here")
_NO_DELETE = unsupported("sources are never written to; what is dropped is listed with its reason")
_FIRST_FRAME = unsupported("no first frame is added to condition on; it is the clip's own first")
_GROUNDING = unsupported("there are no grounding boxes here")
_SHARDS = unsupported("shards on the Hub are not read; download them, or use huggingface")
_MEMORY = needless("memory storage needs no mount; it starts empty and is gone at the end")
_LINKS = "links out of it are followed only with storage.follow_links=true"
_IMAGE_EMBEDS = unsupported(
    "add such a store with data/backend=conditioning_image_embeds, which names its encoder"
)

KEYS: dict[str, Key] = {
    # Every entry.
    "id": to("backend/image.name", reason="characters that Hydra cannot name are replaced"),
    "type": to("backend/image.storage", reason="pins the slot `storage`"),
    "dataset_type": to(reason="chooses the kind of backend"),
    "disabled": to(reason="disabled entries are left out"),
    "disable": to(reason="disabled entries are left out"),
    "compress_cache": needless("tensors are stored as they are, to be gathered by memory map"),
    "preserve_data_backend_cache": _SCAN,
    # Where the samples are.
    "instance_data_dir": to("storage/local.root", reason=_LINKS),
    "instance_data_root": to("storage/local.root", reason=_LINKS),
    "aws_bucket_name": to("storage/s3.bucket"),
    "aws_endpoint_url": to("storage/s3.endpoint_url"),
    "aws_access_key_id": to(reason="read from AWS_ACCESS_KEY_ID", secret=True),
    "aws_secret_access_key": to(reason="read from AWS_SECRET_ACCESS_KEY", secret=True),
    "aws_session_token": to(reason="read from AWS_SESSION_TOKEN", secret=True),
    "aws_region_name": to("storage/s3.region"),
    "aws_data_prefix": to(
        "backend/image.prefix", "storage/s3.prefix", reason="only what is below it is listed"
    ),
    "aws_max_pool_connections": to("storage/s3.max_connections"),
    "csv_file": to("storage/csv.table", "storage/csv.table_storage"),
    "csv_cache_dir": to("storage/csv.cache_dir"),
    "csv_caption_column": to("caption/column.columns"),
    "csv_url_column": to("storage/csv.url_column"),
    "dataset_name": to("storage/huggingface.dataset"),
    "split": to("storage/huggingface.split"),
    "revision": to("storage/huggingface.revision"),
    "image_column": to("storage/huggingface.image_column"),
    "video_column": to("storage/huggingface.image_column"),
    "audio_column": _NO_AUDIO,
    "caption_column": to("caption/column.columns", reason="upstream ignored it outside the block"),
    "streaming": unsupported("upstream never streamed; the rows are read in full"),
    "num_proc": to("storage/huggingface.num_proc"),
    "huggingface": to(reason="its keys are carried one by one"),
    "huggingface.cache_dir": to("storage/huggingface.cache_dir"),
    "huggingface.streaming": unsupported("upstream never streamed; the rows are read in full"),
    "huggingface.num_proc": to("storage/huggingface.num_proc"),
    "huggingface.auto_load": needless("datasets are opened when they are first read"),
    "huggingface.composite_image_config": to("backend/image.composite"),
    "huggingface.composite_image_config.enabled": to(reason="false leaves pictures whole"),
    "huggingface.composite_image_config.image_count": to("backend/image.composite"),
    "huggingface.composite_image_config.select_index": to("backend/image.composite"),
    "huggingface.filter_func": to("backend/image.filters", reason="upstream never applied it"),
    "huggingface.filter_func.collection": to("backend/image.filters"),
    "huggingface.filter_func.quality_thresholds": to("backend/image.filters"),
    "huggingface.filter_func.quality_column": to("backend/image.filters"),
    "huggingface.filter_func.min_width": to("backend/image.filters"),
    "huggingface.filter_func.min_height": to("backend/image.filters"),
    "huggingface.caption_column": to("caption/column.columns"),
    "huggingface.fallback_caption_column": to("caption/column.fallback_columns"),
    "huggingface.width_column": to("backend/image.filters", reason="the column min_width is of"),
    "huggingface.height_column": to("backend/image.filters", reason="the column min_height is of"),
    "huggingface.quality_column": to("backend/image.filters"),
    "huggingface.image_column": to("storage/huggingface.image_column"),
    "huggingface.video_column": to("storage/huggingface.image_column"),
    "huggingface.dataset_name": to("storage/huggingface.dataset"),
    "huggingface.split": to("storage/huggingface.split"),
    "huggingface.revision": to("storage/huggingface.revision"),
    "huggingface.audio_column": _NO_AUDIO,
    "huggingface.description_column": unsupported("name the column in caption.columns instead"),
    "huggingface.bbox_column": _GROUNDING,
    "huggingface.lyrics_column": _NO_AUDIO,
    "huggingface.audio_caption_fields": _NO_AUDIO,
    "huggingface.num_frames_column": needless("frames are counted in each video's own header"),
    "huggingface.fps_column": needless("frames are counted, not seconds"),
    "huggingface.file_extension": needless("a picture's format is told by its bytes"),
    "source": _SHARDS,
    "metadata": _SHARDS,
    "hf_token": to(reason="read from HF_TOKEN", secret=True),
    "subfolder": _SHARDS,
    "webshart": _SHARDS,
    **dict.fromkeys(
        (
            "webshart.cache_dir",
            "webshart.metadata_cache_dir",
            "webshart.shard_cache_dir",
            "webshart.shard_cache_gb",
            "webshart.parallel_downloads",
            "webshart.buffer_size",
            "webshart.max_file_size",
            "webshart.optimize_captions",
            "webshart.source",
            "webshart.metadata",
            "webshart.subfolder",
        ),
        _SHARDS,
    ),
    "webshart.hf_token": to(reason="read from HF_TOKEN", secret=True),
    "memory_filesystem_path": _MEMORY,
    "memory_filesystem_size": _MEMORY,
    "memory_filesystem_sudo": _MEMORY,
    # Stores of embeddings.
    "default": to("backend/text_embeds.default"),
    "cache_dir": to(
        "storage/local.root", reason="tensors go below it; upstream's own .pt files are not read"
    ),
    "caption_filter_list": to("caption/textfile.filters", "caption/textfile.filters_file"),
    "text_encoder_batch_size": to("backend/text_embeds.batch_size"),
    "text_cache_ondemand": to("backend/text_embeds.encode_mode"),
    "text_cache_disable": to("backend/text_embeds.encode_mode"),
    "distillation_type": unsupported("there are no distillation caches here"),
    # Links.
    "text_embeds": to("backend/image.text_embeds"),
    "text_embed_cache": to("backend/image.text_embeds"),
    "image_embeds": to("backend/image.image_embeds"),
    "conditioning_image_embeds": _IMAGE_EMBEDS,
    "cache_dir_conditioning_image_embeds": _IMAGE_EMBEDS,
    "conditioning_image_embed_batch_size": _IMAGE_EMBEDS,
    "conditioning_data": to(
        "backend/conditioning.source", reason="pictures without a partner are dropped"
    ),
    "source_dataset_id": to("backend/conditioning.source"),
    "conditioning_type": to("backend/conditioning.type"),
    "conditioning": to(reason="each block is a set of its own, made from this one's pictures"),
    "conditioning.type": to("backend/conditioning.generate"),
    "conditioning.conditioning_type": to("backend/conditioning.type"),
    "conditioning.instance_data_dir": needless("what is made is kept in the cache"),
    "conditioning.captions": needless("samples have the captions of their source"),
    "conditioning.caption_strategy": needless("samples have the captions of their source"),
    "conditioning.instance_prompt": needless("samples have the captions of their source"),
    "conditioning.downscale_factor": to("generator/superresolution.factor"),
    "conditioning.blur_radius": to("generator/superresolution.blur"),
    "conditioning.blur_type": to("generator/superresolution.blur"),
    "conditioning.noise_level": to("generator/superresolution.noise"),
    "conditioning.add_noise": to("generator/superresolution.noise"),
    "conditioning.quality_mode": to(
        "generator/jpeg_artifacts.low", "generator/jpeg_artifacts.high"
    ),
    "conditioning.quality": to("generator/jpeg_artifacts.low", "generator/jpeg_artifacts.high"),
    "conditioning.quality_range": to(
        "generator/jpeg_artifacts.low", "generator/jpeg_artifacts.high"
    ),
    "conditioning.quality_list": to(
        "generator/jpeg_artifacts.low", "generator/jpeg_artifacts.high"
    ),
    "conditioning.min_coverage": to("generator/random_masks.least"),
    "conditioning.max_coverage": to("generator/random_masks.most"),
    "conditioning.mask_types": to("generator/random_masks.shapes"),
    "conditioning.low_threshold": to("generator/canny.low"),
    "conditioning.high_threshold": to("generator/canny.high"),
    **dict.fromkeys(
        (
            "conditioning.jpeg_quality",
            "conditioning.compression_rounds",
            "conditioning.round_quality_decay",
            "conditioning.subsampling",
            "conditioning.optimize",
            "conditioning.progressive",
            "conditioning.pre_blur",
            "conditioning.pre_blur_radius",
            "conditioning.enhance_blocks",
            "conditioning.block_noise_level",
            "conditioning.edge_blur",
            "conditioning.edge_blur_radius",
            "conditioning.edge_feather",
            "conditioning.output_mode",
            "conditioning.mask_value",
            "conditioning.invert_mask",
        ),
        needless("it changes nothing in this set"),
    ),
    **dict.fromkeys(
        (
            "conditioning.mask_type_weights",
            "conditioning.min_masks",
            "conditioning.max_masks",
            "conditioning.rect_min_size",
            "conditioning.rect_max_size",
            "conditioning.circle_min_radius",
            "conditioning.circle_max_radius",
            "conditioning.brush_min_width",
            "conditioning.brush_max_width",
            "conditioning.brush_min_length",
            "conditioning.brush_max_length",
            "conditioning.irregular_min_points",
            "conditioning.irregular_max_points",
        ),
        unsupported("shapes are as many and as large as the share takes that is drawn"),
    ),
    "s2v_datasets": _NO_AUDIO,
    # Mixture.
    "probability": to("backend/image.probability"),
    "repeats": to("backend/image.repeats"),
    "train_batch_size": to(
        "data.batch_size", "backend/image.batch_size", reason="times GPUs and accumulation"
    ),
    "timestep_sampling_offset": unsupported(
        "batches carry no offset: every set is trained with the timesteps that your model draws"
    ),
    "max_num_samples": to("backend/image.max_samples", reason="other samples may be chosen"),
    "start_epoch": to("backend/image.window"),
    "start_step": to("backend/image.window", reason="in optimizer steps"),
    "end_epoch": to("backend/image.window"),
    "end_step": to("backend/image.window", reason="in optimizer steps"),
    "disable_after_epoch_step": to(
        "backend/image.window", reason="as fade_to_step; upstream never applied it"
    ),
    "slider_strength": to("backend/image.slider_strength", reason="upstream never took turns"),
    # Geometry.
    "resolution": to("backend/image.resolution"),
    "resolution_type": to("backend/image.resolution_type"),
    "crop": to("crop.aspect", reason="pins the slot `crop`"),
    "crop_aspect": to("crop.aspect"),
    "crop_style": to("crop.style"),
    "crop_aspect_buckets": to("crop.aspect_buckets"),
    "minimum_image_size": to("backend/image.minimum_image_size"),
    "maximum_image_size": to("backend/image.maximum_image_size"),
    "target_downsample_size": to("backend/image.target_downsample_size"),
    "minimum_aspect_ratio": to("backend/image.minimum_aspect_ratio"),
    "maximum_aspect_ratio": to("backend/image.maximum_aspect_ratio"),
    "max_upscale_threshold": to("crop.max_upscale_threshold"),
    # Captions.
    "caption_strategy": to("backend/image.caption", reason="pins the slot `caption`"),
    "instance_prompt": to("caption/instance.prompt", "caption/textfile.prepend"),
    "prepend_instance_prompt": to("caption/textfile.prepend"),
    "only_instance_prompt": to("caption/instance.prompt"),
    "disable_multiline_split": to("caption/textfile.split_lines"),
    "caption_shuffle": to("caption/textfile.shuffle"),
    "caption_shuffle.enable": to("caption/textfile.shuffle"),
    "caption_shuffle.count": to("caption/textfile.shuffle"),
    "caption_shuffle.seed": to("caption/textfile.shuffle"),
    "caption_shuffle.split_on": to("caption/textfile.shuffle"),
    "caption_shuffle.position_start": to("caption/textfile.shuffle"),
    "caption_shuffle.include_original": to("caption/textfile.shuffle"),
    # Metadata.
    "metadata_backend": to("backend/image.metadata", reason="parquet pins the slot `metadata`"),
    "parquet": to(reason="its keys are carried one by one"),
    "parquet.path": to("metadata/parquet.path"),
    "parquet.filename_column": to("metadata/parquet.file_column"),
    "parquet.caption_column": to("caption/column.columns"),
    "parquet.fallback_caption_column": to("caption/column.fallback_columns"),
    "parquet.width_column": to("metadata/parquet.width_column"),
    "parquet.height_column": to("metadata/parquet.height_column"),
    "parquet.num_frames_column": to("metadata/parquet.frames_column"),
    "parquet.identifier_includes_extension": to("metadata/parquet.extensionless"),
    "parquet.aspect_ratio_column": needless("the aspect is width over height"),
    "parquet.fps_column": needless("frames are counted, not seconds"),
    "parquet.bbox_column": _GROUNDING,
    "parquet.lyrics_column": _NO_AUDIO,
    "metadata_update_interval": needless("facts are saved as they are measured"),
    # Caches, scans and speed.
    "cache_dir_vae": _TENSORS,
    "vae_cache_ondemand": to("backend/image.encode_mode"),
    "vae_cache_disable": to("backend/image.encode_mode"),
    "vae_cache_clear_each_epoch": to(
        "backend/image.encode_mode", reason="random cuts are drawn anew in each epoch"
    ),
    "vae_cache_scan_behaviour": needless("keys hold everything that shaped a tensor"),
    "disable_vae_cache": needless("refused, as upstream does"),
    "read_batch_size": _WORKERS,
    "write_batch_size": to(
        "backend/text_embeds.write_batch_size",
        reason="of pictures: tensors are written in shards of `cache.shard_mb`",
    ),
    "vae_batch_size": needless("set batch_size of the image_embeds backend"),
    "image_processing_batch_size": _WORKERS,
    "max_workers": _WORKERS,
    "skip_file_discovery": _SCAN,
    "scan_for_errors": needless("`metadata.verify=true` decodes every picture once"),
    "cache_file_suffix": needless("facts of each backend are kept under its name"),
    "delete_unwanted_images": _NO_DELETE,
    "delete_problematic_images": _NO_DELETE,
    "delete_nsfw_images": unsupported("there is no picture classifier here"),
    "hash_filenames": needless("upstream ignores it too"),
    "ignore_epochs": needless("upstream ignores it too"),
    # Video.
    "video": to(reason="its keys are carried one by one"),
    "video.num_frames": to("backend/video.frames"),
    "video.min_frames": needless("videos shorter than a clip are dropped"),
    "video.max_frames": unsupported("long videos are kept: a clip is their middle"),
    "video.bucket_strategy": needless("a bucket is a size and a number of frames"),
    "video.frame_interval": unsupported("every clip has as many frames as `frames` says"),
    "video.is_i2v": _FIRST_FRAME,
    "is_i2v": _FIRST_FRAME,
    # What only upstream's models and other media use.
    "is_regularisation_data": unsupported("batches do not say which backend regularises"),
    "is_regularization_data": unsupported("batches do not say which backend regularises"),
    "disable_validation": needless("only eval backends are validated on"),
    "grounding": _GROUNDING,
    "grounding_data": _GROUNDING,
    "audio": _NO_AUDIO,
    "debug_aspect_buckets": needless("every sample's bucket is in the catalog"),
}

# The trainer's arguments that bear on data.
ARGUMENTS: dict[str, Key] = {
    "seed": to("data.seed"),
    "resolution": to("data.resolution"),
    "resolution_type": to("data.resolution_type"),
    "aspect_bucket_alignment": to("data.alignment"),
    "minimum_image_size": to("backend/image.minimum_image_size"),
    "maximum_image_size": to("backend/image.maximum_image_size"),
    "target_downsample_size": to("backend/image.target_downsample_size"),
    "caption_strategy": to(reason="of entries that set none"),
    "prepend_instance_prompt": to("caption/textfile.prepend", reason="of entries that set none"),
    "only_instance_prompt": to("caption/instance.prompt", reason="of entries that set none"),
    "train_batch_size": to("data.batch_size"),
    "gradient_accumulation_steps": to("run.trainer", reason="in data.batch_size and the command"),
    "data_backend_sampling": to("sampling.weighting", reason="sampling=auto, or uniform"),
    "caption_dropout_probability": to("caption/textfile.dropout"),
    "framerate": to("backend/video.frames", reason="5 s of it, where num_frames is not given"),
    "model_family": to("encoder.image", "encoder.text", reason="and fills {model_family}"),
    "model_flavour": to("encoder.image", "encoder.text"),
    "pretrained_model_name_or_path": to("encoder.image", "encoder.text"),
    "pretrained_vae_model_name_or_path": to("encoder.image"),
    "vae_path": to("encoder.image"),
    "vae_dtype": needless("the image encoder's own `compute_dtype` holds"),
    "vae_enable_tiling": needless("it is off, or there is no autoencoder"),
    "vae_enable_slicing": needless("it is off, or there is no autoencoder"),
    "tokenizer_max_length": needless("the text encoder's own `max_length` holds"),
    "max_train_steps": needless("0: num_train_epochs counts"),
    "num_train_epochs": needless("max_train_steps counts"),
    "output_dir": to(reason="fills {output_dir}"),
    "model_type": needless("only loosens the check of size limits, for deepfloyd"),
    "controlnet": needless("only demands that there is a conditioning set"),
    "eval_dataset_id": needless("every eval backend is validated on"),
    "conditioning_multidataset_sampling": to("data.conditioning_sampling"),
    "data_backend_config": needless("the file that is imported"),
    "dataloader_prefetch": needless("`prefetch.mode` is thread already"),
    "dataloader_prefetch_qlen": needless("`prefetch.batches` counts batches kept ready"),
    "aspect_bucket_rounding": needless("a bucket is a target size, not a rounded ratio"),
    "aspect_bucket_worker_count": _WORKERS,
    "enable_multiprocessing": _WORKERS,
    "compress_disk_cache": needless("tensors are stored as they are, to be gathered by memory map"),
    "aws_max_pool_connections": to("storage/s3.max_connections"),
    "allow_dataset_oversubscription": needless("short buckets are filled, and the table says so"),
    "override_dataset_config": needless("no stored config overrules the one you give"),
    "disable_bucket_pruning": needless("no bucket is pruned"),
    "aspect_bucket_disable_rebuild": needless("buckets are never rebuilt between epochs"),
    "ignore_missing_files": needless("facts of files that are gone are forgotten"),
    "text_encoder_batch_size": to("backend/text_embeds.batch_size"),
    "print_sampler_statistics": needless("the mixture is printed before the first step"),
    "max_grounding_entities": _GROUNDING,
    "cache_dir": needless("the cache is where `cache.storage` and `cache.prefix` say"),
    "cache_dir_text": needless("the cache is where `cache.storage` and `cache.prefix` say"),
    "cache_dir_vae": needless("the cache is where `cache.storage` and `cache.prefix` say"),
    "vae_cache_ondemand": to("backend/image.encode_mode"),
    "vae_cache_disable": to("backend/image.encode_mode"),
    "text_cache_ondemand": to("backend/text_embeds.encode_mode"),
    "text_cache_disable": to("backend/text_embeds.encode_mode"),
    "vae_cache_scan_behaviour": needless("keys hold everything that shaped a tensor"),
    "vae_batch_size": needless("set batch_size of the image_embeds backend"),
    "read_batch_size": _WORKERS,
    "write_batch_size": needless("tensors are written in shards of `cache.shard_mb`"),
    "image_processing_batch_size": _WORKERS,
    "max_workers": _WORKERS,
    "metadata_update_interval": needless("facts are saved as they are measured"),
    "preserve_data_backend_cache": _SCAN,
    "delete_unwanted_images": _NO_DELETE,
    "delete_problematic_images": _NO_DELETE,
}
# Any key of these blocks, and any that starts so, has the block's fate.
WHOLE_BLOCKS = ("audio", "grounding")
AUDIO_PREFIXES = ("audio_", "parquet.audio_", "lyrics_")
# Blocks whose keys are looked up one by one.
BLOCKS = (
    "video", "parquet", "huggingface", "webshart", "caption_shuffle",
    "huggingface.filter_func", "huggingface.composite_image_config",
)  # fmt: skip
# Keys that name a place or a credential: the only ones that read `{env:NAME}`.
PLACES = frozenset(
    {
        *(name for name, key in KEYS.items() if key.secret),
        "instance_data_dir", "instance_data_root", "aws_bucket_name", "aws_endpoint_url",
        "aws_region_name", "aws_data_prefix", "csv_file", "csv_cache_dir", "cache_dir",
        "cache_dir_vae", "cache_dir_conditioning_image_embeds", "memory_filesystem_path",
        "caption_filter_list", "dataset_name", "split", "revision", "source", "metadata",
        "subfolder", "parquet.path", "huggingface.dataset_name", "huggingface.split",
        "huggingface.revision", "huggingface.cache_dir", "webshart.source", "webshart.metadata",
        "webshart.subfolder", "webshart.cache_dir", "webshart.metadata_cache_dir",
        "webshart.shard_cache_dir",
    }
)  # fmt: skip


def look_up(name: str) -> Key | None:
    """Return the line of an entry's key, in dotted form; None where the key is unknown."""
    if name in KEYS:
        return KEYS[name]
    if name.startswith(AUDIO_PREFIXES):
        return _NO_AUDIO
    block = name.partition(".")[0]
    return KEYS[block] if block in WHOLE_BLOCKS and "." in name else None
