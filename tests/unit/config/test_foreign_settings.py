"""Files of other trainers, in the shapes that their users have: what is known is used, the rest is reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trainer.config import TrainConfig, field_info
from trainer.config.foreign_settings import ALIASES, ELSEWHERE, IN_SECTION, NOT_NEEDED, VALUES
from trainer.config.import_settings import IMPORTED, Imported, as_settings, import_settings, widget_values
from trainer.errors import KilnError

REPO = Path(__file__).parents[3]

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
            "text_encoder_learning_rate": 5e-5,
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
        "max_train_steps: not used, 0 leaves it to the epochs",
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
    assert not set(ALIASES) & set(NOT_NEEDED) and not set(ELSEWHERE) & {*ALIASES, *NOT_NEEDED}
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


@pytest.mark.parametrize(
    ("text", "epochs", "steps"),
    [
        ("--max_train_epochs 16 --network_dim 8", 16, 1500),
        ("--max_train_epochs 16 --max_train_steps 800", 16, 800),  # the epochs go before the steps there
        ('{"epoch": 10, "max_train_steps": 800}', 0, 800),  # kohya's GUI
        ('{"epoch": 10, "max_train_steps": 0}', 10, 1500),
        ("epochs = 100\nmax_steps = 700", 0, 700),  # diffusion-pipe
        ("epochs = 100", 100, 1500),
        ('{"num_train_epochs": 2.5}', 3, 1500),
        ("epochs: 0", 0, 1500),
    ],
)
def test_epochs_are_carried_over(text: str, epochs: int, steps: int) -> None:
    values = widget_values(import_settings(text))
    assert (values["epochs"], values["steps"]) == (epochs, steps)


@pytest.mark.parametrize("value", ["many", "-3", "10001"])
def test_other_epochs_are_refused(value: str) -> None:
    with pytest.raises(KilnError, match="a number of epochs from 1 to 10000"):
        import_settings(f"epochs: {value}")


def test_what_is_called_used_comes_out_of_the_node() -> None:
    """Through the settings socket or one of the number outputs: every setting that a report can name."""
    for theme, each in {"": TrainConfig, **IMPORTED}.items():
        for name, info in field_info(each).items():
            options = info.metadata["options"]
            value: Any = options[-1] if options else info.default if info.default != "" else "a"
            found = import_settings(json.dumps({theme: {name: value}} if theme else {name: value}))
            (line, *_) = found.report
            out = {
                **widget_values(found),
                **{n: v for t in as_settings(found).values() for n, v in t.items()},
            }
            assert (": used as" in line) == (name in out) or name in widget_values(found), line


ELSEWHERE_HERE = {
    "ai-toolkit": """
config:
  process:
    - datasets:
        - {folder_path: /a, control_path: /b, resolution: [512, 768, 1024], num_frames: 41, do_i2v: true,
           caption_dropout_rate: 0.05, is_reg: true, mask_path: /m, flip_x: true, flip_y: false}
      model: {arch: wan22_14b_i2v, assistant_lora_path: some/adapter, model_kwargs: {train_high_noise: true}}
      network: {pretrained_lora_path: /old.safetensors}
""",
    "musubi-tuner": """
--task i2v-A14B --dit a --dit_high_noise b --timestep_boundary 0.875
--network_weights old.safetensors --base_weights other.safetensors
--text_encoder_lr 1e-5 2e-5 --seed 7
""",
    "diffusion-pipe": """
[model]
type = 'ltx-video'
first_frame_conditioning_p = 0.9
min_t = 0.875
max_t = 1
[[directory]]
path = '/a'
control_path = '/b'
resolutions = [512, [768, 768]]
""",
    "sd-scripts": """
[general]
caption_tag_dropout_rate = 0.1
[[datasets]]
resolution = "512,512"
[[datasets.subsets]]
conditioning_data_dir = '/b'
is_reg = true
alpha_mask = true
""",
    "OneTrainer": """
{"resolution": "512,768", "custom_conditioning_image": true, "min_noising_strength": 0.5, "masked_training": true,
 "lora_model_name": "old.safetensors", "epochs": 12, "text_encoder_lr": 0}
""",
}
SAID = {
    "ai-toolkit": [
        "control_path: not used, put the folder of the control pictures into control_folders on Load Dataset",
        "resolution: not used, set resolution to 512 and more_resolutions to 768, 1024 on Encode Dataset",
        "num_frames: not used, set max_frames and fps on Encode Dataset",
        "arch: not used, choose first_frame on Encode Dataset",
        "do_i2v: not used, choose first_frame on Encode Dataset",
        "caption_dropout_rate: not used, set dropout on Caption Augment",
        "is_reg: not used, give that folder the role regularisation on Combine Datasets",
        "flip_x: not used, set horizontal_flip on Augment Dataset",
        "pretrained_lora_path: not used, choose the file in start_from on Train LoRA",
    ],
    "musubi-tuner": [
        "task: not used, choose first_frame on Encode Dataset",
        "network_weights: not used, choose the file in start_from on Train LoRA",
        "base_weights: not used, load that LoRA onto the model that goes into Train LoRA; it stays frozen",
        "text_encoder_lr: used as text_encoder_learning_rate = 1e-05, where a CLIP is connected to Train LoRA",
    ],
    "diffusion-pipe": [
        "min_t: used as min_timestep = 0.875",
        "control_path: not used, put the folder of the control pictures into control_folders on Load Dataset",
        "resolutions: not used, set resolution to 512 and more_resolutions to 768 on Encode Dataset",
    ],
    "sd-scripts": [
        "resolution: not used, set resolution to 512 on Encode Dataset",
        "conditioning_data_dir: not used, put the folder of the control pictures into control_folders on Load Dataset",
    ],
    "OneTrainer": [
        "resolution: not used, set resolution to 512 and more_resolutions to 768 on Encode Dataset",
        "min_noising_strength: used as min_timestep = 0.5",
        "epochs: used as epochs = 12, on the output epochs",
        "text_encoder_lr: not used, 0 switches it off",
    ],
}


@pytest.mark.parametrize("trainer", ELSEWHERE_HERE)
def test_what_another_input_of_ours_does_is_sent_there(trainer: str) -> None:
    report = import_settings(ELSEWHERE_HERE[trainer]).report
    assert set(SAID[trainer]) <= set(report), report
    assert not any("nearest" in line for line in report), report


@pytest.mark.parametrize("key", ["control_transparent_color", "kourkoutas_beta", "walk_seed", "magcache_k"])
def test_a_key_that_is_like_no_other_is_not_given_a_meaning(key: str) -> None:
    assert import_settings(f"{key}: x").report == [f"{key}: not used, it is not known"]


def test_inputs_that_keys_are_sent_to_exist() -> None:
    """Every `input on Node` of the sentences, as the locales name the nodes and their inputs."""
    texts = json.loads((REPO / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
    inputs = {
        node["display_name"].removesuffix(" (LoRA Kiln)"): set(node.get("inputs", {}))
        for node in texts.values()
    }
    checked = 0
    for sentence in ELSEWHERE.values():
        for node, names in inputs.items():
            for said in re.findall(rf"([a-z_]+(?: and [a-z_]+)?) (?:on|of|to) {node}\b", sentence):
                wanted = [n for n in said.split(" and ") if "_" in n or n in names]
                assert set(wanted) <= names, sentence
                checked += len(wanted)
    assert checked > 15
