"""The table of keys knows every key of upstream's format, and every option it names is there."""

import pytest

from factory.importers.simpletuner.keys import ARGUMENTS, KEYS, Fate, look_up
from factory.importers.simpletuner.project_options import PLANNED, is_option

# Every key that upstream's documentation and code name, by the part of an entry it is found in.
COMMON = "id type dataset_type disabled disable compress_cache preserve_data_backend_cache"
STORAGE = """
instance_data_dir instance_data_root aws_bucket_name aws_endpoint_url aws_access_key_id
aws_secret_access_key aws_region_name aws_session_token aws_data_prefix aws_max_pool_connections
csv_file csv_cache_dir csv_caption_column csv_url_column dataset_name split revision image_column
video_column audio_column huggingface streaming num_proc caption_column source metadata hf_token
subfolder webshart cache_dir memory_filesystem_path memory_filesystem_size memory_filesystem_sudo
huggingface.cache_dir huggingface.streaming huggingface.num_proc huggingface.auto_load
huggingface.composite_image_config huggingface.composite_image_config.enabled
huggingface.composite_image_config.image_count huggingface.composite_image_config.select_index
huggingface.filter_func huggingface.filter_func.collection
huggingface.filter_func.quality_thresholds huggingface.filter_func.quality_column
huggingface.filter_func.min_width huggingface.filter_func.min_height
huggingface.caption_column huggingface.fallback_caption_column huggingface.width_column
huggingface.height_column huggingface.quality_column huggingface.description_column
huggingface.bbox_column huggingface.lyrics_column huggingface.audio_caption_fields
huggingface.num_frames_column huggingface.fps_column huggingface.file_extension
webshart.cache_dir webshart.metadata_cache_dir webshart.shard_cache_dir webshart.shard_cache_gb
webshart.parallel_downloads webshart.buffer_size webshart.max_file_size webshart.optimize_captions
"""
KINDS = """
default caption_filter_list write_batch_size text_encoder_batch_size text_cache_ondemand
text_cache_disable vae_cache_clear_each_epoch text_embeds text_embed_cache image_embeds
conditioning_image_embeds conditioning_data s2v_datasets source_dataset_id distillation_type
probability repeats train_batch_size timestep_sampling_offset max_num_samples
metadata_update_interval video video.num_frames video.min_frames video.max_frames video.is_i2v
video.bucket_strategy video.frame_interval audio audio.bucket_strategy audio.duration_interval
audio.max_duration_seconds audio.truncation_mode audio.channels audio.sample_rate
audio.auto_split audio.source_from_video audio.allow_zero_audio audio.audio_only
audio.lyrics_column audio_duration_interval lyrics_column
"""
SAMPLES = """
resolution resolution_type crop crop_aspect crop_style crop_aspect_buckets minimum_image_size
maximum_image_size target_downsample_size minimum_aspect_ratio maximum_aspect_ratio
max_upscale_threshold caption_strategy instance_prompt prepend_instance_prompt
only_instance_prompt disable_multiline_split caption_shuffle metadata_backend parquet start_epoch
start_step end_epoch end_step disable_after_epoch_step slider_strength cache_dir_vae
cache_dir_conditioning_image_embeds conditioning_image_embed_batch_size conditioning_type
conditioning vae_cache_ondemand vae_cache_disable vae_cache_scan_behaviour disable_vae_cache
read_batch_size vae_batch_size image_processing_batch_size max_workers skip_file_discovery
scan_for_errors cache_file_suffix delete_unwanted_images delete_problematic_images
delete_nsfw_images is_regularisation_data is_regularization_data disable_validation is_i2v
grounding grounding.anything grounding_data hash_filenames ignore_epochs debug_aspect_buckets
caption_shuffle.enable caption_shuffle.count caption_shuffle.seed caption_shuffle.split_on
caption_shuffle.position_start caption_shuffle.include_original
parquet.path parquet.filename_column parquet.caption_column parquet.fallback_caption_column
parquet.width_column parquet.height_column parquet.aspect_ratio_column parquet.num_frames_column
parquet.fps_column parquet.bbox_column parquet.identifier_includes_extension
parquet.audio_duration_column
"""
READ_ARGUMENTS = """
data_backend_config data_backend_sampling dataloader_prefetch dataloader_prefetch_qlen
aspect_bucket_alignment aspect_bucket_rounding aspect_bucket_worker_count enable_multiprocessing
compress_disk_cache aws_max_pool_connections conditioning_multidataset_sampling
allow_dataset_oversubscription override_dataset_config disable_bucket_pruning
aspect_bucket_disable_rebuild ignore_missing_files caption_dropout_probability
text_encoder_batch_size print_sampler_statistics max_grounding_entities framerate seed output_dir
cache_dir cache_dir_text cache_dir_vae gradient_accumulation_steps eval_dataset_id resolution
resolution_type minimum_image_size maximum_image_size target_downsample_size caption_strategy
prepend_instance_prompt only_instance_prompt train_batch_size vae_cache_ondemand vae_cache_disable
vae_batch_size read_batch_size write_batch_size image_processing_batch_size max_workers
metadata_update_interval vae_cache_scan_behaviour delete_unwanted_images model_family
delete_problematic_images controlnet
"""


@pytest.mark.parametrize("key", f"{COMMON} {STORAGE} {KINDS} {SAMPLES}".split())
def test_every_key_has_a_line_that_says_enough(key: str) -> None:
    line = look_up(key)
    assert line is not None
    assert line.targets or line.reason


@pytest.mark.parametrize("name", READ_ARGUMENTS.split())
def test_every_argument_has_a_line_that_says_enough(name: str) -> None:
    line = ARGUMENTS[name]
    assert line.targets or line.reason


def test_what_is_not_carried_says_why() -> None:
    for key, line in {**KEYS, **ARGUMENTS}.items():
        assert line.fate is Fate.carried or (line.reason and not line.targets), key


def test_every_target_is_an_option_or_planned() -> None:
    targets = {name for line in (*KEYS.values(), *ARGUMENTS.values()) for name in line.targets}
    assert not {name for name in targets if not is_option(name) and name not in PLANNED}


def test_only_credentials_are_secret() -> None:
    secret = {key.rpartition(".")[2] for key, line in KEYS.items() if line.secret}
    assert secret == {
        "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "hf_token",
    }  # fmt: skip


def test_unknown_keys_have_no_line() -> None:
    assert look_up("repeat") is None
    assert look_up("video.frames") is None
    assert look_up("instance_data_dir.x") is None
