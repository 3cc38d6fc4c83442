"""A merged model as a pipeline folder, loaded and run by diffusers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import scripts.cpu_torchvision  # noqa: F401 - before transformers
from trainer.errors import KilnError
from trainer.lora_files.lora_weights import LoraWeights
from trainer.lora_files.save import save_lora
from trainer.model_files.merge_into_file import WeightedLora, merge_into_file
from trainer.model_files.pipeline_folder import wan_config
from trainer.model_files.safetensors_file import SafetensorsFile

WAN = Path(__file__).parents[2] / "tiny_wan" / "models" / "tiny_wan.safetensors"


@pytest.fixture(scope="module")
def lora() -> LoraWeights:
    g = torch.Generator().manual_seed(0)
    tensors = {}
    for key, weight in load_file(WAN).items():
        if key.endswith((".q.weight", "ffn.0.weight")):
            layer = "diffusion_model." + key.removesuffix(".weight")
            tensors[f"{layer}.lora_A.weight"] = 0.1 * torch.randn(4, weight.shape[1], generator=g)
            tensors[f"{layer}.lora_B.weight"] = 0.1 * torch.randn(len(weight), 4, generator=g)
    return LoraWeights(tensors)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Wan pipeline round the tiny Wan, as a user has one on the disk."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    with SafetensorsFile(WAN) as source:
        config = wan_config(source, "")
    transformer = WanTransformer3DModel.from_config(config)
    weights = {k: v.float() for k, v in convert_wan_transformer_to_diffusers(load_file(WAN)).items()}
    transformer.load_state_dict(weights)
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    words = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", "a", "red", "circle"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = UMT5Config(
        vocab_size=len(words), d_model=config["text_dim"], d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    whole = WanPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(encoder).eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer.eval(),
    )
    folder = tmp_path_factory.mktemp("models") / "TinyWan-Diffusers"
    whole.save_pretrained(folder)
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickled")
    return folder


def drawn(pipe: Any) -> torch.Tensor:
    return pipe(
        prompt="a red circle",
        negative_prompt="circle",
        height=32,
        width=32,
        num_frames=1,
        num_inference_steps=1,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
        max_sequence_length=16,
    ).frames


def test_whole_pipeline_draws_as_the_pipeline_with_the_lora(
    tmp_path: Path, pipeline: Path, lora: LoraWeights
) -> None:
    from diffusers import WanPipeline

    out = tmp_path / "merged"
    sentence = merge_into_file(
        WAN, out, [WeightedLora(lora, 1.0)], dtype="fp32", layout="diffusers", pipeline=pipeline
    )
    assert sentence.endswith("tensors changed")
    merged = WanPipeline.from_pretrained(out, local_files_only=True)
    merged.set_progress_bar_config(disable=True)
    reference = WanPipeline.from_pretrained(pipeline, local_files_only=True)
    reference.set_progress_bar_config(disable=True)
    plain = drawn(reference)
    file = save_lora(tmp_path / "lora.safetensors", lora, format="diffusers")
    reference.load_lora_weights(file.parent, weight_name=file.name)
    expected, found = drawn(reference), drawn(merged)
    assert float((found - expected).abs().max()) < 1e-4 < float((plain - expected).abs().max())
    names = {p.relative_to(pipeline) for p in pipeline.rglob("*") if p.is_file() and p.suffix != ".bin"}
    assert {p.relative_to(out) for p in out.rglob("*") if p.is_file()} == names
    index = out / "model_index.json"
    assert not index.samefile(pipeline / "model_index.json"), "small files can be edited by themselves"


def test_large_files_are_linked(
    tmp_path: Path, pipeline: Path, lora: LoraWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.model_files.pipeline_folder.LINK_FROM", 4096)
    out, vae = tmp_path / "merged", Path("vae") / "diffusion_pytorch_model.safetensors"
    merge_into_file(WAN, out, [WeightedLora(lora, 1.0)], layout="diffusers", pipeline=pipeline)
    assert (out / vae).samefile(pipeline / vae)
    assert not (out / "transformer" / "config.json").samefile(pipeline / "transformer" / "config.json")

    def no_links(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", no_links)
    merge_into_file(WAN, out, [WeightedLora(lora, 1.0)], layout="diffusers", pipeline=pipeline)
    assert (out / vae).read_bytes() == (pipeline / vae).read_bytes()
    assert not (out / vae).samefile(pipeline / vae)


def test_without_a_pipeline_it_says_what_is_missing(
    tmp_path: Path, pipeline: Path, lora: LoraWeights
) -> None:
    from diffusers import WanPipeline

    out = tmp_path / "merged"
    sentence = merge_into_file(WAN, out, [WeightedLora(lora, 1.0)], dtype="fp32", layout="diffusers")
    assert "WanPipeline.from_pretrained needs text_encoder, tokenizer, vae beside it" in sentence
    other = WanPipeline.from_pretrained(pipeline, local_files_only=True)
    given = {name: getattr(other, name) for name in ("text_encoder", "tokenizer", "vae")}
    pipe = WanPipeline.from_pretrained(out, local_files_only=True, **given)
    pipe.set_progress_bar_config(disable=True)
    same = ("prediction_type", "use_flow_sigmas", "flow_shift", "num_train_timesteps", "solver_order")
    assert [pipe.scheduler.config[k] for k in same] == [other.scheduler.config[k] for k in same]
    assert drawn(pipe).isfinite().all()


def test_what_does_not_fit_leaves_nothing(tmp_path: Path, pipeline: Path, lora: LoraWeights) -> None:
    def refused(folder: Path, match: str, out: Path = tmp_path / "merged") -> None:
        with pytest.raises(KilnError, match=match):
            merge_into_file(WAN, out, [WeightedLora(lora, 1.0)], layout="diffusers", pipeline=folder)

    refused(tmp_path, r"model_index.json of the pipeline cannot be read")
    refused(pipeline, r"is the pipeline itself", pipeline)
    other = tmp_path / "other"
    (other / "transformer").mkdir(parents=True)
    (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    refused(other, "The pipeline other is a FluxPipeline; choose the folder of a Wan pipeline")
    (other / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "transformer": []}))
    (other / "transformer" / "config.json").write_text(json.dumps({"num_layers": 40}))
    refused(
        other,
        r"The pipeline other is of another size: its transformer's num_layers is 40, and the model's is",
    )
    assert not (tmp_path / "merged").exists()


def test_a_full_disk_takes_everything_away(
    tmp_path: Path, pipeline: Path, lora: LoraWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(KilnError, match=r"Cannot write .*No space left on device"):
        merge_into_file(
            WAN, tmp_path / "new" / "m", [WeightedLora(lora, 1.0)], layout="diffusers", pipeline=pipeline
        )
    assert not (tmp_path / "new" / "m").exists()


def test_an_earlier_one_is_replaced_and_nothing_else(tmp_path: Path, lora: LoraWeights) -> None:
    """What a person has added would be lost: that is said before the merge."""
    out, loras = tmp_path / "merged", [WeightedLora(lora, 1.0)]
    merge_into_file(WAN, out, loras, layout="diffusers")
    weights = out / "transformer" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    merge_into_file(WAN, out, [WeightedLora(lora, 0.5)], layout="diffusers")
    assert weights.read_bytes() != before and [p.name for p in tmp_path.iterdir()] == ["merged"]
    (out / "vae").mkdir()
    (out / "vae" / "mine.safetensors").write_bytes(b"x")
    with pytest.raises(KilnError, match=r"merged holds vae/mine.safetensors, which would be lost"):
        merge_into_file(WAN, out, loras, layout="diffusers", tick=lambda *_: pytest.fail("it had begun"))
    assert (out / "vae" / "mine.safetensors").exists()
