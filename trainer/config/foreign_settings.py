"""What other trainers call the settings: kohya's sd-scripts and their GUI, musubi-tuner, ai-toolkit, OneTrainer,
diffusion-pipe and SimpleTuner. Tables alone; import_settings.py reads them.
"""

from __future__ import annotations

from typing import Any

_NO_MODEL = "the model is the one that is connected"
_DATASET = "set it on the dataset nodes"
_SAMPLES = "set it on the Sample Settings node"
_SAVE = "set it on the Save LoRA node"
_MEMORY = "Memory Settings at auto decides by what is free"
_ENCODED = "Encode Dataset keeps everything on disk"
_STEPS = "checkpoints and validation are counted in steps here"
_NO_TEXT_ENCODER = "Train LoRA has it: the text encoder is trained where a CLIP is connected"
_OUTSIDE = "nothing is sent or loaded from elsewhere"

# Their key -> our setting
ALIASES = {
    **dict.fromkeys(("r", "lora_rank", "network_dim", "dim", "linear", "linear_dim"), "rank"),
    **dict.fromkeys(("lora_alpha", "network_alpha", "linear_alpha"), "alpha"),
    **dict.fromkeys(("lora_dropout", "network_dropout", "dropout_probability"), "dropout"),
    **dict.fromkeys(("lr", "unet_lr"), "learning_rate"),
    **dict.fromkeys(("max_train_steps", "train_steps", "num_steps", "max_steps"), "steps"),
    **dict.fromkeys(("train_batch_size", "batch", "micro_batch_size_per_gpu"), "batch_size"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulation_steps"), "gradient_accumulation"),
    **dict.fromkeys(("lr_warmup_steps", "num_warmup_steps", "learning_rate_warmup_steps"), "warmup_steps"),
    **dict.fromkeys(
        ("lr_scheduler", "lr_scheduler_type", "scheduler", "learning_rate_scheduler"), "schedule"
    ),
    **dict.fromkeys(("lr_scheduler_num_cycles", "learning_rate_cycles"), "schedule_cycles"),
    **dict.fromkeys(("optimizer_type", "optim"), "optimizer"),
    **dict.fromkeys(("gradient_clipping", "clip_grad_norm"), "max_grad_norm"),
    **dict.fromkeys(
        (
            "save_every_n_steps",
            "checkpointing_steps",
            "checkpoint_step_interval",
            "save_steps",
            "save_every",
        ),
        "checkpoint_every",
    ),
    **dict.fromkeys(("max_step_saves_to_keep", "checkpoints_total_limit"), "keep_checkpoints"),
    **dict.fromkeys(("discrete_flow_shift", "flow_schedule_shift", "timestep_shift"), "shift"),
    **dict.fromkeys(
        ("timestep_type", "timestep_sample_method", "timestep_distribution"), "timestep_sampling"
    ),
    **dict.fromkeys(("loss_type", "loss_fn"), "loss"),
    **dict.fromkeys(("LoRA_type", "peft_type", "lora_type", "network_module", "algo"), "kind"),
    **dict.fromkeys(("fp8_base", "quantize"), "base_precision"),
    "lr_scheduler_power": "schedule_power",
    "scale_weight_norms": "max_weight_norm",
    "sigmoid_scale": "logit_std",  # sigmoid(scale * n), the same as a logit-normal of that width
    "offset_noise_weight": "noise_offset",
    "guidance_scale": "guidance",
    "blocks_to_swap": "level",
    "loraplus_lr_ratio": "lora_plus_ratio",
    "prior_loss_weight": "regularisation_weight",
    "diff_output_preservation_multiplier": "preservation_weight",
    "conv_dim": "conv_rank",
    "text_encoder_lr": "text_encoder_learning_rate",
    "min_noising_strength": "min_timestep",
    "max_noising_strength": "max_timestep",
    "validate_every_n_steps": "every",
    "warmup": "warmup_ratio",
    "use_rslora": "rank_stabilised",
    "snr_gamma": "min_snr_gamma",
}

# Section and key, where the key alone says too little -> our setting
IN_SECTION = {
    ("adapter", "type"): "kind",
    ("network", "type"): "kind",
    ("optimizer", "type"): "optimizer",
    ("optimizer", "optimizer"): "optimizer",
    ("model", "timestep_sample_method"): "timestep_sampling",
    ("model", "transformer_dtype"): "base_precision",
    ("model", "min_t"): "min_timestep",
    ("model", "max_t"): "max_timestep",
    ("model", "quantize"): "base_precision",
}

# What stands in such a section is not for training -> why
SECTIONS = {
    **dict.fromkeys(("model", "base_model", "unet", "prior", "vae", "transformer", "decoder"), _NO_MODEL),
    **dict.fromkeys(("datasets", "dataset", "concepts", "subsets", "directory", "data"), _DATASET),
    **dict.fromkeys(("sample", "samples", "sampling"), _SAMPLES),
    **dict.fromkeys(("save",), _SAVE),
    "slider": "write it into Slider Targets",
    **dict.fromkeys(("monitoring", "logging", "meta", "metadata", "secrets"), _OUTSIDE),
    **dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3", "embedding"), _NO_TEXT_ENCODER),
}

# Keys that change nothing here -> why
NOT_NEEDED = {
    **dict.fromkeys(
        ("mixed_precision", "train_dtype", "dtype", "full_bf16", "full_fp16", "lora_weight_dtype"),
        "the model's own precision is used, the LoRA is trained in fp32",
    ),
    **dict.fromkeys(("image_size", "max_resolution"), "set it on the Encode Dataset node"),
    **dict.fromkeys(
        (
            *("model", "pretrained_model_name_or_path", "name_or_path", "arch", "model_type", "dit", "task"),
            *(
                "vae",
                "t5",
                "clip",
                "text_encoder",
                "text_encoder1",
                "text_encoder2",
                "model_family",
                "ckpt_path",
            ),
            *(
                "model_flavour",
                "base_model_name",
                "model_name",
                "sdxl",
                "v2",
                "v_parameterization",
                "clip_l",
                "t5xxl",
                "ae",
            ),
            *("model_list", "pretrained_model", "flux1_checkbox", "vae_path", "transformer_path"),
        ),
        _NO_MODEL,
    ),
    **dict.fromkeys(
        (
            *(
                "output_dir",
                "output_name",
                "save_precision",
                "save_dtype",
                "save_model_as",
                "training_folder",
            ),
            *("output_model_destination", "output_model_format", "output_dtype", "save_state", "logging_dir"),
        ),
        _SAVE,
    ),
    **dict.fromkeys(
        (
            *(
                "train_data_dir",
                "dataset_config",
                "dataset",
                "folder_path",
                "concept_file_name",
            ),
            *("caption_extension", "caption_ext"),
            *(
                "random_crop",
                "data_backend_config",
            ),
        ),
        _DATASET,
    ),
    **dict.fromkeys(
        (
            *("cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs", "latent_caching"),
            *("cache_text_encoder_outputs_to_disk", "vae_batch_size", "caching_batch_size", "cache_dir"),
            *("cache_text_embeddings", "cache_clip_vision_to_disk"),
            *(
                "enable_bucket",
                "bucket_no_upscale",
                "bucket_reso_steps",
                "min_bucket_reso",
                "max_bucket_reso",
            ),
            *("aspect_ratio_bucketing",),
        ),
        _ENCODED,
    ),
    **dict.fromkeys(
        (
            *(
                "gradient_checkpointing",
                "activation_checkpointing",
                "lowvram",
                "low_vram",
                "layer_offload_fraction",
            ),
            *("enable_activation_offloading", "enable_async_offloading", "offload_optimizer_device"),
            *(
                "base_model_precision",
                "gradient_checkpointing_offload",
                "fp8_scaled",
                "fp8_t5",
                "quantize_te",
                "layer_offloading",
                "offload_inactive_dit",
                "unload_text_encoder",
            ),
        ),
        _MEMORY,
    ),
    **dict.fromkeys(
        ("sdpa", "xformers", "flash_attn", "mem_eff_attn", "attention_mechanism", "split_attn"),
        "the host chooses the attention",
    ),
    **dict.fromkeys(
        (
            *(
                "sample_every_n_steps",
                "sample_every_n_epochs",
                "sample_prompts",
                "sample_sampler",
                "sample_after",
            ),
            *("sample_at_first", "validation_prompt", "skip_first_sample", "disable_sampling"),
        ),
        _SAMPLES,
    ),
    **dict.fromkeys(
        (
            "save_every_n_epochs",
            "checkpoint_every_n_epochs",
            "eval_every_n_epochs",
        ),
        _STEPS,
    ),
    **dict.fromkeys(
        (
            *("train_text_encoder", "network_train_text_encoder_only", "clip_skip"),
            *("max_token_length", "stop_text_encoder_training"),
        ),
        _NO_TEXT_ENCODER,
    ),
    **dict.fromkeys(
        ("network_train_unet_only", "train_unet"),
        "the model alone is trained where no CLIP is connected",
    ),
    **dict.fromkeys(
        (
            *("push_to_hub", "report_to", "log_with", "enable_wandb", "wandb_api_key", "huggingface_repo_id"),
            *("hf_repo_id", "hf_private", "wandb_tracker_name", "wandb_run_name", "log_tracker_name"),
        ),
        _OUTSIDE,
    ),
    **dict.fromkeys(
        (
            *("num_processes", "num_machines", "num_cpu_threads_per_process", "pipeline_stages", "device"),
            *("max_data_loader_n_workers", "persistent_data_loader_workers", "dynamo_backend", "gpu_ids"),
            *("dataloader_threads", "train_device", "temp_device", "partition_method", "steps_per_print"),
        ),
        "the host chooses the device; several are for headless.py under accelerate",
    ),
    **dict.fromkeys(
        ("job", "name", "type", "version", "training_method", "use_ema", "ema"),
        "it says nothing about how is trained",
    ),
    **dict.fromkeys(
        (
            *("decouple", "use_bias_correction", "safeguard_warmup", "d_coef", "scale_parameter", "eps"),
            *("relative_step", "warmup_init", "clip_threshold", "optimizer_eps", "eps2", "decay_rate"),
            "stochastic_rounding",
        ),
        "arguments of an optimizer beyond weight decay and betas keep their defaults",
    ),
    **dict.fromkeys(
        (
            *("layer_filter", "layer_filter_preset", "layer_filter_regex"),
            *("train_blocks", "include_patterns", "exclude_patterns"),
        ),
        "layers are chosen by target_modules on Adapter Settings",
    ),
    **dict.fromkeys(
        (
            *("eval_before_first_step", "eval_micro_batch_size_per_gpu", "eval_gradient_accumulation_steps"),
            *("eval_every_n_steps", "validation_step_interval", "validation_steps"),
        ),
        "see Validation Settings",
    ),
    **dict.fromkeys(
        ("diff_output_preservation", "diff_output_preservation_class"),
        "write the class into class_word on Caption Template, which switches it on",
    ),
    **dict.fromkeys(
        ("blank_prompt_preservation", "blank_prompt_preservation_multiplier"),
        "the model is kept as it was for a class, not for the empty caption; see class_word on Caption Template",
    ),
    **dict.fromkeys(("compile", "torch_compile"), "set compile_blocks on Memory Settings"),
    **dict.fromkeys(("weight_dtype", "offload_fraction"), _MEMORY),
    **dict.fromkeys(
        (
            *("enable_ar_bucket", "min_ar", "max_ar", "num_ar_buckets", "frame_buckets"),
            *("size_buckets", "ar_buckets", "video_clip_mode"),
        ),
        "set it on the dataset nodes and on Encode Dataset",
    ),
    **dict.fromkeys(
        ("checkpoint_every_n_minutes", "save_last_n_steps", "save_last_n_steps_state", "backup_after"),
        "set checkpoint_every and keep_checkpoints on the training node",
    ),
    "noise_scheduler": "the model says how it is trained",
    "resume_from_checkpoint": "choose it on the training node",
    "resume": "choose it on the training node",
}

_CONTROLS = "put the folder of the control pictures into control_folders on Load Dataset"
_FIRST_FRAME = "choose first_frame on Encode Dataset"
_FIRST_FRAME_DROPOUT = "set first_frame_dropout on Encode Dataset"
_VISION = "connect clip_vision to Encode Dataset"
_FRAMES = "set max_frames and fps on Encode Dataset"
_CAPTION_DROPOUT = "set dropout on Caption Augment"
_TAGS_DROPOUT = "tags are kept whole here; Caption Augment leaves out whole captions and shuffles tags"
_MASKS = "put masks into a folder named masks beside the items; see masks on Load Dataset"
_EXPERTS = (
    "each expert of Wan 2.2 has a Train LoRA of its own, with its preset on Objective Settings; see the template "
    "for both experts"
)
_START_FROM = "choose the file in start_from on Train LoRA"
_BEFORE = "load that LoRA onto the model that goes into Train LoRA; it stays frozen"
_PAIR_OF_PICTURES = "pairs of pictures make no slider here; Slider Targets makes one of words"

ELSEWHERE = {
    **dict.fromkeys(
        (
            *("control_path", "control_path_1", "control_path_2", "control_path_3", "control_directory"),
            *("conditioning_data_dir", "conditioning_data", "custom_conditioning_image", "control_suffix"),
            *("control_image_path", "inpaint_path", "clip_image_path"),
        ),
        _CONTROLS,
    ),
    **dict.fromkeys(
        (
            *("control_resolution", "no_resize_control", "resize_control_to_image_size"),
            *("resize_control_to_official_size", "full_size_control_images", "match_target_res"),
        ),
        "control pictures are cut like their targets here",
    ),
    **dict.fromkeys(
        (
            *("do_i2v", "i2v", "i2v_mode", "i2v_do_start_frame", "first_frame_conditioning"),
            *("is_i2v", "conditioning_type", "dit_in_channels"),
        ),
        _FIRST_FRAME,
    ),
    "first_frame_conditioning_p": "choose first_frame on Encode Dataset; its first_frame_dropout is 1 less this share",
    **dict.fromkeys(("control_image_dropout", "image_dropout", "cond_dropout"), _FIRST_FRAME_DROPOUT),
    **dict.fromkeys(("image_encoder_path", "clip_vision_path"), _VISION),
    **dict.fromkeys(
        (
            *("num_frames", "target_frames", "frame_extraction", "max_frames", "frame_rate", "source_fps"),
            *("shrink_video_to_frames", "auto_frame_count"),
        ),
        _FRAMES,
    ),
    **dict.fromkeys(
        (
            *("caption_dropout_rate", "caption_dropout_every_n_epochs", "prompt_dropout_prob"),
            *("caption_dropout_probability", "uncond_probability"),
        ),
        _CAPTION_DROPOUT,
    ),
    **dict.fromkeys(
        ("token_dropout_rate", "caption_tag_dropout_rate", "tag_dropout_enable", "tag_dropout_probability"),
        _TAGS_DROPOUT,
    ),
    **dict.fromkeys(
        ("shuffle_caption", "shuffle_tokens", "keep_tokens", "enable_tag_shuffling", "keep_tags_count"),
        "set shuffle_tags and keep_first on Caption Augment",
    ),
    **dict.fromkeys(
        ("mask_path", "mask_directory", "alpha_mask", "masked_loss", "masked_training", "mask_file"), _MASKS
    ),
    **dict.fromkeys(
        ("is_reg", "reg_data_dir", "prior_reg"),
        "give that folder the role regularisation on Combine Datasets",
    ),
    **dict.fromkeys(("flip_x", "flip_aug", "enable_random_flip"), "set horizontal_flip on Augment Dataset"),
    **dict.fromkeys(("color_aug",), "set color_jitter on Augment Dataset"),
    **dict.fromkeys(("trigger_word", "trigger"), "write it into trigger_word on Caption Template"),
    "class_tokens": "write the class into class_word on Caption Template, or captions beside the pictures",
    **dict.fromkeys(("num_repeats", "dataset_repeats"), "set repeats on Load Dataset"),
    **dict.fromkeys(
        (
            *("dit_high_noise", "timestep_boundary", "switch_boundary_every", "split_multistage_loras"),
            *("train_high_noise", "train_low_noise"),
        ),
        _EXPERTS,
    ),
    **dict.fromkeys(
        (
            *("network_weights", "dim_from_weights", "init_from_existing", "pretrained_lora_path"),
            *("lora_model_name", "init_lora"),
        ),
        _START_FROM,
    ),
    **dict.fromkeys(
        (
            *("base_weights", "base_weights_multiplier", "assistant_lora_path", "inference_lora_path"),
            *("merge_adapters", "fuse_adapters"),
        ),
        _BEFORE,
    ),
    **dict.fromkeys(("validation_split", "validation_split_num"), "set validation_share on Load Dataset"),
    "eval_datasets": "set validation_folder on Load Dataset",
    **dict.fromkeys(("anchor_class", "anchors"), "write what stays into preserve on Slider Targets"),
    **dict.fromkeys(("pos_folder", "neg_folder", "pair_folder"), _PAIR_OF_PICTURES),
    **dict.fromkeys(
        ("min_denoising_steps", "max_denoising_steps"),
        "set min_timestep and max_timestep on Objective Settings; these count down from the most noise",
    ),
    **dict.fromkeys(
        ("fused_backward_pass", "fused_back_pass"), "set update_in_backward on Optimizer Settings"
    ),
    "no_metadata": "switch embed_metadata off on Train LoRA",
}
"""Keys of what belongs on another input of ours -> where, whatever section they stand in."""

NAMES_A_MODEL = {"task", "arch", "model_type"}
"""Keys whose value says whether the model begins with a picture: i2v-14B, wan22_14b_i2v."""

RESOLUTIONS = {"resolution", "resolutions"}
"""Keys of one or more sizes of training."""

EPOCHS = {"epochs", "epoch", "max_train_epochs", "num_train_epochs"}
"""Keys of a run's length in epochs. Where there are steps, too, these count, but for sd-scripts' and musubi-tuner's
max_train_epochs, which goes before max_train_steps there."""

UNAVAILABLE = None
"""In VALUES: known, and not to be had here."""

# Our setting -> their value in lower case -> ours; values that are not listed are taken as they are
VALUES: dict[str, dict[Any, Any]] = {
    "schedule": {
        "cosine_with_warmup": "cosine",
        "constant_with_warmup": "constant",
        "cosine_with_hard_restarts": "cosine_with_restarts",
        **dict.fromkeys(
            (
                *("adafactor", "rex", "piecewise_constant", "inverse_sqrt", "cosine_with_min_lr", "custom"),
                "warmup_stable_decay",
            ),
            UNAVAILABLE,
        ),
    },
    "optimizer": {
        **dict.fromkeys(
            ("adamw8bit", "adamw_8bit", "pagedadamw8bit", "adamw8bitkahan", "adam8bit"), "adamw_8bit"
        ),
        **dict.fromkeys(("adamw", "adamw_optimi", "adamw_torch", "pagedadamw", "adamw_bf16"), "adamw"),
        **dict.fromkeys(("prodigy", "prodigyopt"), "prodigy"),
        **dict.fromkeys(("automagic", "came8bit", "adv_optm"), UNAVAILABLE),
    },
    "kind": {
        **dict.fromkeys(
            ("lora", "standard", "networks.lora", "flux1", "locon", "kohya locon", "lycoris/locon"), "lora"
        ),
        **dict.fromkeys(("lokr", "lycoris/lokr"), "lokr"),
        **dict.fromkeys(("loha", "lycoris/loha"), "loha"),
        **dict.fromkeys(("oft", "oft_2"), "oft"),
        "dora": "dora",
        **dict.fromkeys(
            ("lycoris.kohya", "lycoris", "lycoris/ia3", "lora-fa"),
            UNAVAILABLE,
        ),
    },
    "timestep_sampling": {
        **dict.fromkeys(("sigmoid", "shift", "logit_normal", "logit-normal"), "logit_normal"),
        **dict.fromkeys(("linear", "uniform"), "uniform"),
        **dict.fromkeys(("flux_shift", "qwen_shift", "flux2_shift", "lumina2_shift"), "auto"),
        **dict.fromkeys(
            ("weighted", "sigma", "logsnr", "content", "style", "beta", "inverted_parabola"), UNAVAILABLE
        ),
    },
    "loss": {"mse": "l2", "mae": "l1", "smooth_l1": UNAVAILABLE, "pseudo_huber": "huber"},
    "base_precision": {
        **dict.fromkeys((True, "true", "float8", "fp8", "qfloat8", "float_8", "float8_e4m3fn"), "fp8"),
        **dict.fromkeys((False, "false", "bfloat16", "float16", "float32", "bf16"), "as it is"),
        **dict.fromkeys(("nf4", "nfloat_4", "int4"), "nf4"),
    },
}

NO_SHIFT = {"timestep_type", "timestep_sample_method", "timestep_distribution"}
"""Their keys for how noise levels are drawn, where nothing said of a shift means none; ours would take the family's."""

CONVOLUTIONS = {"conv_rank", "conv_alpha"}
"""Settings that kohya's GUI always writes, and uses for a "LoCon" alone."""
