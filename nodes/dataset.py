"""Nodes that make and mix datasets."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainer.dataset import browse
from ..trainer.dataset.combine import Part, combine
from ..trainer.dataset.from_graph import images_to_dataset
from ..trainer.dataset.items import Dataset
from ..trainer.dataset.scan import ScanOptions, scan_folder
from . import types
from .host import paths
from .host.canvas.progress import NodeProgress
from .inputs import repeats_input
from .listing import listed

MASKS = ("alpha and masks folder", "off")
ROLES = ("subject", "regularisation", "validation")


class KilnLoadDataset(io.ComfyNode):
    """A folder of images and clips with captions beside them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnLoadDataset",
            display_name="Load Dataset (LoRA Kiln)",
            **listed("KilnLoadDataset"),
            description="Reads a folder of images and clips and the captions beside them (photo.png and photo.txt).",
            inputs=[
                io.String.Input(
                    "folder",
                    default="my_dataset",
                    tooltip="Folder under ComfyUI/input, for example my_dataset. An absolute path must lie in a folder "
                    "that is listed as kiln_datasets in extra_model_paths.yaml.",
                ),
                repeats_input(
                    "How often each item is seen in one epoch, 1-1000. A folder named like 10_name multiplies it by "
                    "its number."
                ),
                io.Boolean.Input("recursive", default=False, tooltip="Also read the folder's sub-folders."),
                io.Combo.Input(
                    "on_bad_file",
                    options=["stop", "skip"],
                    default="stop",
                    tooltip="A file that cannot be read or a caption that is not text: stop with its name, or leave it "
                    "out and say so.",
                ),
                io.Combo.Input(
                    "masks",
                    options=list(MASKS),
                    default=MASKS[0],
                    optional=True,
                    tooltip="Where the loss counts: white parts of files of the same name in a folder named masks or "
                    "mask or with -masklabel behind the name, else opaque parts of transparent images. off: "
                    "everywhere.",
                ),
                io.Float.Input(
                    "validation_share",
                    default=0.0,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    optional=True,
                    tooltip="Share of the items that is never trained on and gives the validation loss, 0-0.5; 0.1 is "
                    "usual from 40 items up.",
                ),
                io.String.Input(
                    "validation_folder",
                    default="",
                    optional=True,
                    tooltip="Sub-folder whose items are held out instead of a share. Empty: none.",
                ),
                io.String.Input(
                    "control_folders",
                    default="",
                    optional=True,
                    tooltip="Folders of control pictures under ComfyUI/input, for edits and steered models: each holds "
                    "one for every item, with its name. Several with commas between. A dot: beside the items, as "
                    "photo_control.png.",
                ),
            ],
            outputs=[
                types.Dataset.Output(
                    display_name="dataset", tooltip="Images, clips and captions, not yet read into memory."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str, recursive: bool, validation_folder: str = "", control_folders: str = "", **_: Any
    ) -> Any:
        place, also = paths.dataset_folder(folder), validation_folder.strip()
        controls = paths.control_folders(control_folders, place)
        return browse.part_state(place, browse.Part(recursive, also, controls))

    @classmethod
    def execute(
        cls,
        folder: str,
        repeats: int,
        recursive: bool,
        on_bad_file: str,
        masks: str = MASKS[0],
        validation_share: float = 0.0,
        validation_folder: str = "",
        control_folders: str = "",
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        options = ScanOptions(
            repeats=repeats,
            recursive=recursive,
            on_bad_file="skip" if on_bad_file == "skip" else "stop",
            masks=masks != "off",
            validation_share=validation_share,
            validation_folder=validation_folder.strip(),
            control_folders=paths.control_folders(control_folders, paths.dataset_folder(folder)),
        )
        dataset = scan_folder(
            paths.dataset_folder(folder),
            options,
            facts_cache=paths.facts_cache(),
            on_progress=progress.step,
        )
        progress.say(dataset.describe())
        return io.NodeOutput(dataset, ui=ui.PreviewText(dataset.describe()))


class KilnImagesToDataset(io.ComfyNode):
    """Images of the graph as a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnImagesToDataset",
            display_name="Images To Dataset (LoRA Kiln)",
            **listed("KilnImagesToDataset"),
            description="Makes a dataset from images of the graph, with captions from any captioning node.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch or a list; every image becomes an item."),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="One caption for all, or a list with one per image. Without it captions are empty.",
                ),
                repeats_input("How often each image is seen in one epoch, 1-1000.", optional=True),
            ],
            outputs=[types.Dataset.Output(display_name="dataset", tooltip="The images and their captions.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        return paths.encoded_cache()[1]  # keep the images again when the user has deleted the cache

    @classmethod
    def execute(
        cls, images: list[Any], captions: list[str] | None = None, repeats: list[int] | None = None
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        pictures = [image.cpu().numpy() for batch in images for image in batch]
        dataset = images_to_dataset(
            pictures, captions or [], paths.image_store(), (repeats or [1])[0], progress.step
        )
        progress.say(dataset.describe())
        return io.NodeOutput(dataset, ui=ui.PreviewText(dataset.describe()))


class KilnCombineDatasets(io.ComfyNode):
    """Several datasets in one."""

    PARTS = (
        ("dataset_1", "weight_1", "role_1"),
        ("dataset_2", "weight_2", "role_2"),
        ("dataset_3", "weight_3", "role_3"),
        ("dataset_4", "weight_4", "role_4"),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs: list[io.Input] = []
        for dataset, weight, role in cls.PARTS:
            optional = dataset != "dataset_1"
            inputs += [
                types.Dataset.Input(
                    dataset, optional=optional, tooltip="A set to mix in; chain nodes for more than 4."
                ),
                io.Float.Input(
                    weight,
                    default=1.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    optional=optional,
                    tooltip="How often this set's items are shown compared with the others', 0.1-100.",
                ),
                io.Combo.Input(
                    role,
                    options=list(ROLES),
                    default=ROLES[0],
                    optional=optional,
                    tooltip="subject is learned, regularisation keeps what the model knew of the wider class, "
                    "validation is only measured.",
                ),
            ]
        return io.Schema(
            node_id="KilnCombineDatasets",
            display_name="Combine Datasets (LoRA Kiln)",
            **listed("KilnCombineDatasets"),
            description="Mixes datasets with weights and roles: subject, regularisation and validation.",
            inputs=[
                *inputs,
                io.Float.Input(
                    "regularisation_loss_weight",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    tooltip="Weight of the loss of regularisation items (prior preservation), 0-10; 1 as the subject.",
                ),
            ],
            outputs=[types.Dataset.Output(display_name="dataset", tooltip="All items in one set.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, regularisation_loss_weight: float = 1.0, **inputs: Any) -> io.NodeOutput:
        parts = [
            Part(inputs[dataset], inputs.get(weight, 1.0), inputs.get(role, ROLES[0]))
            for dataset, weight, role in cls.PARTS
            if inputs.get(dataset) is not None
        ]
        dataset: Dataset = combine(parts, regularisation_loss_weight)
        shown = f"{dataset.describe()}\n{dataset.proportions()}"
        NodeProgress(cls.hidden.unique_id).say(shown)
        return io.NodeOutput(dataset, ui=ui.PreviewText(shown))
