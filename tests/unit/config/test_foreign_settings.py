"""Files of other trainers, in the shapes that their users have: what is known is used, the rest is reported."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.config import TrainConfig, field_info
from trainer.config.foreign_settings import ALIASES, IN_SECTION, NOT_NEEDED, VALUES
from trainer.config.import_settings import Imported, import_settings
from trainer.errors import KilnError

AI_TOOLKIT = """
job: extension
config:
  name: mine
  process:
    - type: sd_trainer
      trigger_word: zorb
      network: {type: lora, linear: 24, linear_alpha: 12}
      save: {dtype: float16, save_every: 150, max_step_saves_to_keep: 3}
      datasets:
        - {folder_path: /data/a, caption_ext: txt, resolution: [512, 768]}
        - {folder_path: /data/b, caption_ext: txt, resolution: [512]}
      train:
        batch_size: 1
        steps: 900
        gradient_accumulation: 2
        gradient_checkpointing: true
        timestep_type: sigmoid
        optimizer: adamw8bit
        lr: 2e-4
        optimizer_params: {weight_decay: 0.01}
        ema_config: {use_ema: true, ema_decay: 0.98}
      model: {name_or_path: some/wan, arch: wan21, quantize: true}
      sample: {sample_every: 100, width: 640, seed: 42, guidance_scale: 5, prompts: [one, two]}
"""
KOHYA = {
    "LoRA_type": "Standard",
    "network_dim": 16,
    "network_alpha": 8,
    "max_train_steps": 800,
    "epoch": 10,
    "train_batch_size": 2,
    "learning_rate": 0.0001,
    "unet_lr": 0.0002,
    "text_encoder_lr": 5e-05,
    "lr_scheduler": "cosine_with_restarts",
    "lr_scheduler_num_cycles": 3,
    "lr_warmup": 5,
    "optimizer": "AdamW8bit",
    "optimizer_args": "weight_decay=0.02 betas=(0.9,0.95) decouple=True",
    "caption_extension": ".txt",
    "max_grad_norm": 1,
    "seed": 3,
    "min_snr_gamma": 5,
    "cache_latents": True,
    "bucket_no_upscale": True,
    "scale_weight_norms": 1,
    "vae": "",
    "========== Advanced ==========": None,
}
ONE_TRAINER = {
    "training_method": "LORA",
    "model_type": "FLUX_DEV_1",
    "batch_size": 2,
    "learning_rate": 0.0003,
    "learning_rate_scheduler": "CONSTANT",
    "learning_rate_warmup_steps": 50,
    "lora_rank": 16,
    "lora_alpha": 8,
    "peft_type": "LORA",
    "epochs": 20,
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.99},
    "text_encoder": {"train": False, "learning_rate": 1e-5},
    "timestep_distribution": "LOGIT_NORMAL",
    "timestep_shift": 2.0,
    "ema": "OFF",
    "ema_decay": 0.999,
    "resolution": "512",
    "concepts": [{"name": "cat", "path": "/data/cat", "seed": 5}],
}
DIFFUSION_PIPE = """
output_dir = '/data/out'
dataset = 'dataset.toml'
epochs = 100
max_steps = 700
micro_batch_size_per_gpu = 2
gradient_accumulation_steps = 4
gradient_clipping = 0.5
warmup_steps = 20
blocks_to_swap = 20
activation_checkpointing = true
[model]
type = 'wan'
ckpt_path = '/data/wan'
dtype = 'bfloat16'
transformer_dtype = 'float8'
timestep_sample_method = 'logit_normal'
[adapter]
type = 'lora'
rank = 48
dtype = 'bfloat16'
[optimizer]
type = 'adamw_optimi'
lr = 2e-5
betas = [0.9, 0.99]
weight_decay = 0.01
eps = 1e-8
[monitoring]
enable_wandb = false
"""
MUSUBI = r"""
accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 wan_train_network.py \
  --task t2v-14B --dit /models/wan.safetensors --dataset_config data.toml --sdpa --fp8_base \
  --optimizer_type adamw8bit --optimizer_args weight_decay=0.03 betas=0.9,0.98 --learning_rate 2e-4 \
  --gradient_checkpointing --network_module networks.lora_wan --network_dim 32 \
  --timestep_sampling shift --discrete_flow_shift 3.0 --min_timestep 0 --max_timestep 875 \
  --max_train_epochs 16 --max_train_steps=640 --save_every_n_steps 80 --seed 42 --output_name mine
"""


def values(found: Imported) -> dict[str, Any]:
    """Every setting that was given."""
    return {
        **{
            n: getattr(found.config, n)
            for n in field_info(TrainConfig)
            if any(f"used as {n} =" in x for x in found.report)
        },
        **{n: v for theme in found.themes.values() for n, v in theme.items()},
    }


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ai-toolkit": (
        AI_TOOLKIT,
        {
            **{
                "rank": 24,
                "alpha": 12.0,
                "kind": "lora",
                "steps": 900,
                "batch_size": 1,
                "learning_rate": 2e-4,
            },
            **{
                "gradient_accumulation": 2,
                "optimizer": "adamw_8bit",
                "weight_decay": 0.01,
                "ema_decay": 0.98,
            },
            **{"timestep_sampling": "logit_normal", "shift": 1.0, "base_precision": "fp8"},
            **{"checkpoint_every": 150, "keep_checkpoints": 3},
        },
    ),
    "kohya's GUI": (
        json.dumps(KOHYA, indent="\t"),
        {
            **{
                "rank": 16,
                "alpha": 8.0,
                "kind": "lora",
                "steps": 800,
                "batch_size": 2,
                "learning_rate": 2e-4,
            },
            **{"schedule": "cosine_with_restarts", "schedule_cycles": 3, "warmup_ratio": 0.05, "seed": 3},
            **{
                "optimizer": "adamw_8bit",
                "weight_decay": 0.02,
                "beta1": 0.9,
                "beta2": 0.95,
                "max_grad_norm": 1.0,
            },
            **{"min_snr_gamma": 5.0, "weighting": "min_snr", "max_weight_norm": 1.0},
        },
    ),
    "OneTrainer": (
        json.dumps(ONE_TRAINER),
        {
            **{"rank": 16, "alpha": 8.0, "kind": "lora", "batch_size": 2, "learning_rate": 3e-4},
            **{"schedule": "constant", "warmup_steps": 50, "optimizer": "adamw", "weight_decay": 0.01},
            **{"beta1": 0.9, "beta2": 0.99, "timestep_sampling": "logit_normal", "shift": 2.0},
        },
    ),
    "diffusion-pipe": (
        DIFFUSION_PIPE,
        {
            **{
                "rank": 48,
                "alpha": 48.0,
                "kind": "lora",
                "steps": 700,
                "batch_size": 2,
                "learning_rate": 2e-5,
            },
            **{
                "gradient_accumulation": 4,
                "max_grad_norm": 0.5,
                "warmup_steps": 20,
                "level": "stream blocks",
            },
            **{"optimizer": "adamw", "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01},
            **{"base_precision": "fp8", "timestep_sampling": "logit_normal", "shift": 1.0},
        },
    ),
    "musubi-tuner": (
        MUSUBI,
        {
            **{
                "rank": 32,
                "alpha": 1.0,
                "kind": "lora",
                "steps": 640,
                "learning_rate": 2e-4,
                "optimizer": "adamw_8bit",
            },
            **{"weight_decay": 0.03, "beta1": 0.9, "beta2": 0.98, "base_precision": "fp8", "seed": 42},
            **{"timestep_sampling": "logit_normal", "shift": 3.0, "min_timestep": 0.0, "max_timestep": 0.875},
            **{"checkpoint_every": 80},
        },
    ),
}


@pytest.mark.parametrize("trainer", CASES)
def test_files_of_other_trainers(trainer: str) -> None:
    text, wanted = CASES[trainer]
    found = import_settings(text)
    assert values(found) == wanted
    assert all(": used" in line or ": also" in line or ": not used, " in line for line in found.report)


def test_every_key_is_in_the_report() -> None:
    keys = [key for key in KOHYA if key != "optimizer_args"] + ["weight_decay", "beta1", "beta2", "decouple"]
    assert {line.split(": ")[0] for line in import_settings(json.dumps(KOHYA)).report} == set(keys)
    report = "\n".join(import_settings(AI_TOOLKIT).report)
    assert report.count("folder_path: not used, set it on the dataset nodes") == 2
    assert "seed: not used, set it on the Sample Settings node" in report, "not the run's seed"


def test_what_is_not_to_be_had_is_said() -> None:
    report = import_settings("optimizer: automagic\nlr_scheduler: rex\nmax_train_steps: 0\nseed: -1").report
    assert report == [
        "optimizer: not used, automagic is not to be had here; the default stays",
        "lr_scheduler: not used, rex is not to be had here; the default stays",
        "max_train_steps: not used, 0 leaves it to the epochs; runs are counted in steps here",
        "seed: not used, a negative seed stands for any",
    ]


def test_convolutions_of_kohyas_gui() -> None:
    text = '{"LoRA_type": "%s", "network_dim": 8, "conv_dim": 4, "conv_alpha": 2}'
    assert import_settings(text % "Kohya LoCon").config.adapter.conv_rank == 4
    plain = import_settings(text % "Standard")
    assert plain.config.adapter.conv_rank == 0
    assert "conv_dim: not used, a LoRA of that type leaves convolutions alone" in plain.report


def test_two_names_of_one_setting() -> None:
    report = import_settings("learning_rate: 1e-4\nunet_lr: 2e-4").report
    assert report[1] == "unet_lr: used as learning_rate = 0.0002, instead of 0.0001"


def test_toml_with_a_fault_is_called_toml() -> None:
    with pytest.raises(KilnError, match="not valid TOML"):
        import_settings("rank = 16\n[adapter\ntype = 'lora'")


def test_tables_name_settings_that_exist() -> None:
    from trainer.config.import_settings import IMPORTED

    ours = {name for each in (TrainConfig, *IMPORTED.values()) for name in field_info(each)}
    assert set(ALIASES.values()) | set(IN_SECTION.values()) | set(VALUES) <= ours
    assert not set(ALIASES) & set(NOT_NEEDED)
    fields = {n: f for each in IMPORTED.values() for n, f in field_info(each).items()}
    for name, choices in VALUES.items():
        options = fields[name].metadata["options"]
        assert options is None or {v for v in choices.values() if v is not None} <= set(options), name


PRESERVATION = """
train:
  diff_output_preservation: {on}
  diff_output_preservation_multiplier: 0.5
  diff_output_preservation_class: person
"""


@pytest.mark.parametrize(("on", "weight"), [("true", 0.5), ("false", 1.0)])
def test_differential_output_preservation_of_ai_toolkit(on: str, weight: float) -> None:
    """Its weight is ours where it is on; its class belongs on another node, and the report says so."""
    found = import_settings(PRESERVATION.format(on=on))
    assert found.config.objective.preservation_weight == weight and len(found.report) == 3
    told = any("write the class into class_word on Caption Template" in line for line in found.report)
    assert told == (on == "true")
    assert all("it is off" in line for line in found.report) == (on == "false")


def test_a_slider_of_ai_toolkit_is_sent_to_its_node() -> None:
    text = "slider: {positive_prompt: old, negative_prompt: young, guidance_strength: 3.0}"
    assert all(
        line.endswith("not used, write it into Slider Targets") for line in import_settings(text).report
    )
