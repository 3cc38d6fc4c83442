"""Folders as people have them: every caption, mask and file is used or named."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests.media import clip, picture, scene
from trainer.dataset import files, pixels
from trainer.dataset.browse import Contents
from trainer.dataset.browse import Part as Shown
from trainer.dataset.buckets import BucketOptions, plan
from trainer.dataset.edit import Change, DatasetEditor, Seen
from trainer.dataset.files import folder_state
from trainer.dataset.items import Dataset
from trainer.dataset.pixels import open_still
from trainer.dataset.report import DatasetReport
from trainer.dataset.scan import ScanOptions, scan_folder
from trainer.dataset.table_rows import without_rows
from trainer.errors import KilnError


def captions(folder: Path, **options: object) -> dict[str, str]:
    return {i.path.name: i.caption for i in scan_folder(folder, ScanOptions(**options)).items}  # type: ignore[arg-type]


def remark(dataset: Dataset, beginning: str) -> str:
    """The one remark that holds a text, which the node shows too."""
    (found,) = [r for r in dataset.remarks if beginning in r]
    assert found in dataset.describe() and found.replace("`", "'") in report(dataset)
    return found


def report(dataset: Dataset) -> str:
    return DatasetReport(dataset, BucketOptions()).markdown()


@pytest.mark.parametrize(
    ("image", "sidecar"),
    [
        ("IMG_6003.JPG", "IMG_6003.TXT"),
        ("IMG_6003.JPG", "img_6003.txt"),
        ("photo.png", "photo.png.txt"),
        ("photo.png", "photo.txt.txt"),
        ("photo.PNG", "Photo.png.Caption"),
        (unicodedata.normalize("NFC", "caf\u00e9.png"), unicodedata.normalize("NFD", "caf\u00e9.txt")),
        (unicodedata.normalize("NFD", "caf\u00e9.png"), unicodedata.normalize("NFC", "caf\u00e9.txt")),
        ("stra\u00dfe.png", "STRASSE.txt"),
    ],
)
def test_a_caption_is_found_however_its_name_is_written(tmp_path: Path, image: str, sidecar: str) -> None:
    scene(1, (64, 64)).save(tmp_path / image)
    (tmp_path / sidecar).write_text("a red zorb")
    assert captions(tmp_path) == {image: "a red zorb"}
    before = folder_state(tmp_path, False)
    (tmp_path / sidecar).write_text("another caption")
    assert folder_state(tmp_path, False) != before, "an edit is noticed"


def test_json_and_fields_in_other_cases(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "A.PNG.JSON").write_text(json.dumps({"Caption": "a zorb", "light": "soft"}))
    (item,) = scan_folder(tmp_path).items
    assert item.caption == "a zorb" and dict(item.fields) == {"light": "soft"}


def test_names_that_differ_in_case_only_keep_their_own(tmp_path: Path) -> None:
    for name in ("a", "A"):
        picture(tmp_path / f"{name}.png", caption=f"of {name}")
    assert captions(tmp_path) == {"a.png": "of a", "A.png": "of A"}


def test_a_caption_of_no_image_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="one")
    (tmp_path / "b.txt").write_text("of an image that was deleted")
    assert "1 caption files belong to no item: b.txt" in remark(scan_folder(tmp_path), "caption files")


@pytest.mark.parametrize(
    "written",
    [
        "a.png",
        "./a.png",
        "A.PNG",
        "sub\\a.png",
        "C:\\pictures\\set\\sub\\a.png",
        "/home/me/set/sub/a.png",
        "sub/a",
    ],
)
def test_a_row_finds_its_file_however_the_path_is_written(tmp_path: Path, written: str) -> None:
    folder = tmp_path / "sub" if "sub" not in written else tmp_path
    picture(tmp_path / "sub" / "a.png")
    picture(tmp_path / "sub" / "b.png", caption="other")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": written, "text": "found"}))
    assert captions(tmp_path, recursive=True)["a.png"] == "found"


def test_a_row_that_could_mean_two_files_means_neither(tmp_path: Path) -> None:
    for place in ("one", "two"):
        picture(tmp_path / place / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\nold/a.png,which\n")
    with pytest.raises(KilnError, match=r"names 1 files that are not there \(old/a.png"):
        captions(tmp_path, recursive=True)
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/a.png,x\ntest/a.png,y\n")
    for file in (tmp_path / "two").iterdir():
        file.unlink()
    with pytest.raises(KilnError, match="names 2 files that are not there"):
        captions(tmp_path, recursive=True)


def test_rows_without_effect_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "deep" / "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\na.png,two\ndeep/b.png,three\n")
    dataset = scan_folder(tmp_path)
    assert dataset.items[0].caption == "two"
    remark(dataset, "1 rows for files that another row names too (a.png")
    remark(dataset, "1 rows of files that are not read (deep/b.png")
    remark(dataset, "Sub-folders were not read, as recursive is off: deep")


@pytest.mark.parametrize(
    "table",
    [
        "file_name;text\na.png;one, two\n",
        "sep=;\nfile_name;text\na.png;one, two\n",
        "File_Name\tText\na.png\tone, two\n",
        'a.png,"one, two"\n',
        "a.png;one, two\n",
        'filename,caption\na.png,"one, two"\n,\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_tables_as_spreadsheets_write_them(tmp_path: Path, table: str, encoding: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(table, encoding)
    assert captions(tmp_path) == {"a.png": "one, two"}


def test_a_table_that_cannot_be_understood_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("picture;words\nother.png;one\n")
    with pytest.raises(
        KilnError, match=r"metadata.csv has no column file_name between commas, semicolons or tabs"
    ):
        captions(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png," + "x" * 200_000 + "\n")
    with pytest.raises(KilnError, match=r"metadata.csv cannot be read \(field larger"):
        captions(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        "file_name,text\na.png,a red zorb, on snow, at night\nb.png,plain\n",
        "file_name,light,caption\na.png,soft,a red zorb, on snow, at night,,\nb.png,,plain\n",
        "a.png,a red zorb, on snow, at night\nb.png,plain\n",
        "b.png,plain\na.png,a red zorb, on snow, at night\n",
        "file_name;text\na.png;a red zorb, on snow, at night\nb.png;plain\n",
        "file_name, text\na.png, a red zorb, on snow, at night\nb.png, plain\n",
        'file_name, text\na.png, "a red zorb, on snow, at night"\nb.png, plain\n',
        'a.png, "a red zorb, on snow, at night"\nb.png, plain\n',
    ],
)
def test_a_caption_with_commas_and_without_quotes_is_whole(tmp_path: Path, table: str) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text(table)
    assert captions(tmp_path) == {"a.png": "a red zorb, on snow, at night", "b.png": "plain"}


def test_a_row_with_a_value_too_many_is_named_by_its_number(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,text,light\nb.png,plain,soft\na.png,a red zorb, on snow,soft\n")
    with pytest.raises(
        KilnError, match=r"Row 3 of .*metadata.csv has 4 values for 3 columns; .* ',' in quotes"
    ):
        captions(tmp_path)
    dataset = scan_folder(tmp_path, ScanOptions(on_bad_file="skip"))
    assert [i.caption for i in dataset.items] == ["plain"] and "Row 3 of" in dataset.skipped[0]
    bad = Contents(tmp_path, Shown()).items()[0]
    assert "Row 3 of" in bad.error and not bad.caption
    before = table.read_bytes()
    with pytest.raises(KilnError, match="Row 3 of"):
        DatasetEditor(tmp_path, Shown(), tmp_path / ".journal").set_aside([Seen(bad.name, bad.version)])
    assert table.read_bytes() == before and (tmp_path / "a.png").exists()


def test_a_quote_that_is_never_closed_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"a "red" zorb"\nb.png,plain\n')
    assert captions(tmp_path)["b.png"] == "plain", "quotes within quotes are taken as they come"
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"a red zorb\nb.png,plain\n')
    with pytest.raises(KilnError, match=r"Row 2 of .*metadata.csv has a quotation mark that is never closed"):
        captions(tmp_path)


def test_two_columns_of_one_name_are_named(tmp_path: Path) -> None:
    """One of them would be the caption, without a word of the other."""
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,Text\na.png,one,two\n", "utf-8")
    with pytest.raises(KilnError, match="2 columns named text; rename or remove all but one"):
        scan_folder(tmp_path)


def test_a_row_leaves_a_table_whose_columns_have_spaces_between(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    table = tmp_path / "metadata.csv"
    table.write_text('light, text, file_name\nsoft, "one, two\nthree", a.png\nhard, "four, five", b.png\n')
    assert captions(tmp_path) == {"a.png": "one, two\nthree", "b.png": "four, five"}
    kept = without_rows(table, [tmp_path / "a.png", tmp_path / "b.png"], {tmp_path / "a.png"})
    assert kept == b'light, text, file_name\nhard, "four, five", b.png\n'


def test_a_row_whose_very_name_is_shifted_is_named_by_its_number(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("text,file_name\na red zorb, on snow,a.png\n")
    with pytest.raises(KilnError, match=r"Row 2 of .* has 3 values for 2 columns"):
        captions(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text,\na.png,a zorb,of nobody\n")
    with pytest.raises(KilnError, match=r"Row 2 of .* has 3 values for 2 columns"):
        captions(tmp_path)


# Signs at which Python ends a line and no editor does
IN_A_LINE = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("sign", [s for s in IN_A_LINE if s > "\x7f"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_tables_end_where_editors_end_them(tmp_path: Path, sign: str, end: str) -> None:
    text = f"a red zorb{sign}on snow"
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    rows = [json.dumps({"file_name": f"{n}.png", "text": text}, ensure_ascii=False) for n in ("a", "b")]
    (tmp_path / "metadata.jsonl").write_bytes(end.join(rows).encode())
    assert captions(tmp_path) == {"a.png": text, "b.png": text}
    kept = without_rows(
        tmp_path / "metadata.jsonl", [tmp_path / "a.png", tmp_path / "b.png"], {tmp_path / "a.png"}
    )
    assert kept == rows[1].encode()


@pytest.mark.parametrize("sign", IN_A_LINE)
def test_records_of_tables_end_where_editors_end_them(tmp_path: Path, sign: str) -> None:
    text = f"a red zorb{sign}on snow"
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(f"file_name,text\na.png,{text}\n".encode())
    assert captions(tmp_path) == {"a.png": text}
    kept = without_rows(tmp_path / "metadata.csv", [tmp_path / "a.png"], {tmp_path / "a.png"})
    assert kept == b"file_name,text\n"


def test_lines_are_never_split_by_python_alone() -> None:
    """Elsewhere than in texts of our own: the first line of an error, a list of hashes."""
    package = Path(pixels.__file__).parents[2]
    files = [
        *(package / "trainer").rglob("*.py"),
        *(package / "nodes").rglob("*.py"),
        package / "headless.py",
    ]
    found = {f.relative_to(package).as_posix() for f in files if "splitlines(" in f.read_text("utf-8")}
    assert found == {"trainer/loop/guards.py", "trainer/loop/text.py", "trainer/dataset/model_marks.py"}


def test_a_workflow_beside_an_image_is_no_caption(tmp_path: Path) -> None:
    graph = {"3": {"class_type": "KSampler", "inputs": {"seed": 1}}}
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.json").write_text(
        json.dumps({"prompt": graph, "workflow": {"nodes": []}, "light": "soft"})
    )
    (tmp_path / "b.json").write_text(json.dumps({"prompt": graph, "text": "a zorb"}))
    (tmp_path / "c.json").write_text(json.dumps({"caption": ["red", "zorb"]}))
    dataset = scan_folder(tmp_path)
    assert [i.caption for i in dataset.items] == ["", "a zorb", "red, zorb"]
    assert dict(dataset.items[0].fields) == {"light": "soft"}
    assert "2 items have values in json" in (said := remark(dataset, "no text")) and said.endswith(
        ": a.png, b.png."
    )


def test_emptying_a_caption_leaves_a_workflow_alone(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"prompt": {"3": {}}, "caption": "a zorb"}))
    (item,) = Contents(tmp_path, Shown()).items()
    change = Change(Seen(item.name, item.version), "", {})
    DatasetEditor(tmp_path, Shown(), tmp_path / ".journal").write([change], "write")
    assert json.loads((tmp_path / "a.json").read_text()) == {"prompt": {"3": {}}}


def test_a_second_table_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,of the csv\n")
    (tmp_path / "Metadata.JSONL").write_text('{"file_name": "a.png", "text": "of the jsonl"}')
    dataset = scan_folder(tmp_path)
    assert dataset.items[0].caption == "of the jsonl" and dataset.unread == (tmp_path / "metadata.csv",)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_captions_of_other_editors(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red zorb, caf\u00e9 \u4e2d\u6587", encoding)
    assert captions(tmp_path) == {"a.png": "a red zorb, caf\u00e9 \u4e2d\u6587"}


def test_a_caption_of_nul_bytes_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for data in (bytes(40), b"a red zorb" + bytes(6), b"zorb\0"):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(KilnError, match=r"a.txt holds NUL bytes, so it is damaged"):
            captions(tmp_path)


def test_an_empty_caption_file_hides_no_other(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png", caption=" \n")
    (tmp_path / "a.caption").write_text("of a")
    (tmp_path / "b.json").write_text('"of b"')
    dataset = scan_folder(tmp_path)
    assert [i.caption for i in dataset.items] == ["of a", "of b", ""]
    assert "2 caption files are empty" in (said := remark(dataset, "are empty")) and "a.txt, b.txt." in said


def test_two_captions_that_differ_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="counts")
    (tmp_path / "a.png.txt").write_text("does not")
    (tmp_path / "a.caption").write_text("counts")
    dataset = scan_folder(tmp_path)
    assert dataset.items[0].caption == "counts"
    assert "1 caption files are not used" in (said := remark(dataset, "not used")) and ": a.png.txt." in said


@pytest.mark.parametrize("ending", ["jfif", "jpe", "jif", "JPG", "jp2", "tga", "ppm", "qoi", "dib", "apng"])
def test_more_kinds_of_stills(tmp_path: Path, ending: str) -> None:
    kind = {"jfif": "jpeg", "jpe": "jpeg", "jif": "jpeg", "jpg": "jpeg", "apng": "png"}.get(ending.lower())
    scene(1, (96, 64)).save(tmp_path / f"a.{ending}", kind)
    (tmp_path / "a.txt").write_text("one")
    (item,) = scan_folder(tmp_path).items
    assert (item.facts.width, item.facts.height, item.caption) == (96, 64, "one")


@pytest.mark.parametrize("ending", ["avi", "m4v", "mpg", "ts", "flv"])
def test_more_kinds_of_clips(tmp_path: Path, ending: str) -> None:
    made = tmp_path / ("made.mp4" if ending == "m4v" else f"made.{ending}")
    codec, fps = {"mpg": ("mpeg2video", 25), "ts": ("mpeg2video", 25), "flv": ("flv1", 16)}.get(
        ending, ("mpeg4", 16)
    )
    clip(made, frames=20, codec=codec, fps=fps)
    made.rename(tmp_path / f"a.{ending}")
    (item,) = scan_folder(tmp_path).items
    # The muxer of mpg leaves one time stamp out
    assert item.facts.frames == 20 and item.facts.fps == pytest.approx(
        fps, rel=0.06 if ending == "mpg" else 0.01
    )


@pytest.mark.parametrize(("ending", "package"), [("heic", "pillow-heif"), ("jxl", "pillow-jxl-plugin")])
def test_what_needs_a_package_names_it(
    tmp_path: Path, ending: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(pixels, "import_module", absent)
    monkeypatch.delitem(Image.EXTENSION, f".{ending}", raising=False)
    pixels._has_package.cache_clear()
    picture(tmp_path / "a.png", caption="one")
    (tmp_path / f"b.{ending}").write_bytes(bytes(200))
    with pytest.raises(KilnError, match=rf"b.{ending} needs the package {package}; install it"):
        scan_folder(tmp_path)
    dataset = scan_folder(tmp_path, ScanOptions(on_bad_file="skip"))
    assert len(dataset.items) == 1 and "| files left out | 1 | 0 |" in report(dataset)
    pixels._has_package.cache_clear()


def test_a_package_teaches_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pillow-heif does, by a stand-in that reads a png of that name."""

    class Package:
        @staticmethod
        def register_heif_opener() -> None:
            taught.append("heif")

    taught: list[str] = []
    monkeypatch.setattr(pixels, "import_module", lambda name: Package)
    monkeypatch.delitem(Image.EXTENSION, ".heic", raising=False)
    pixels._has_package.cache_clear()
    scene(1, (64, 64)).save(tmp_path / "a.heic", "png")
    assert open_still(tmp_path / "a.heic")[1] == (64, 64) and taught == ["heif"]
    pixels._has_package.cache_clear()


def test_other_files_are_counted_by_kind(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="one")
    for name in ("b.docx", "c.docx", "d.zip", "no_ending", "Thumbs.db", "desktop.ini", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    dataset = scan_folder(tmp_path)
    assert [p.name for p in dataset.unread] == ["b.docx", "c.docx", "d.zip", "no_ending"]
    text = report(dataset)
    assert "2 files of a kind that is not read (.docx) were left out: b.docx, c.docx." in text
    assert (
        "| files left out | 4 | 0 |" in text and "(no ending) were left out: no_ending." in dataset.describe()
    )


def test_every_bad_file_is_named_at_once(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_text("broken")
    with pytest.raises(
        KilnError, match=r"a.png cannot be read .* Further files that cannot be used \(2\): b.png, c.png\."
    ):
        scan_folder(tmp_path)


def test_folders_of_devices_are_not_entered(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="one")
    for place in ("@eaDir/a.png", "__MACOSX", "#recycle", "deeper/@Recycle"):
        picture(tmp_path / place / "thumb.png")
    dataset = scan_folder(tmp_path, ScanOptions(recursive=True))
    assert [i.path.name for i in dataset.items] == ["a.png"]
    assert "#recycle, @eaDir, __MACOSX" in remark(dataset, "thumbnails")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", caption="one")
    picture(tmp_path / "locked" / "b.png", caption="two")
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        KilnError, match=r"The folder .*locked cannot be read \(Permission denied\); change its"
    ):
        scan_folder(tmp_path, ScanOptions(recursive=True))
    dataset = scan_folder(tmp_path, ScanOptions(recursive=True, on_bad_file="skip"))
    assert len(dataset.items) == 1 and "locked" in dataset.skipped[0]
    picture(tmp_path / "masks" / "a.png")
    (tmp_path / "masks").rename(tmp_path / "masks_locked")
    monkeypatch.setattr(files, "MASK_FOLDERS", ("masks_locked",))
    with pytest.raises(KilnError, match=r"The folder .*masks_locked cannot be read"):
        scan_folder(tmp_path)
    assert folder_state(tmp_path, False)


def test_a_year_is_no_number_of_repeats(tmp_path: Path) -> None:
    picture(tmp_path / "2024_summer" / "a.png", caption="one")
    picture(tmp_path / "20_summer" / "a.png", caption="two")
    dataset = scan_folder(tmp_path / "2024_summer")
    assert dataset.items[0].repeats == 1 and dataset.items[0].folder == "2024_summer"
    assert plan(dataset, BucketOptions()).steps().startswith("steps per epoch: 1 at batch size 1")
    assert "2024_summer" in remark(dataset, "seen once")
    assert scan_folder(tmp_path / "20_summer").items[0].repeats == 20


@pytest.mark.parametrize(
    "name", ["0731_trip", "1031_trip", "01_first", "0_none", "20240731_trip", "1001_nights"]
)
def test_dates_and_ordinals_are_no_number_of_repeats(tmp_path: Path, name: str) -> None:
    picture(tmp_path / name / "deep" / "a.png")
    dataset = scan_folder(tmp_path, ScanOptions(recursive=True))
    assert dataset.items[0].repeats == 1
    assert remark(dataset, "seen once").endswith(f": {name}.")


def test_many_repeats_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "100_few" / "a.png")
    picture(tmp_path / "731_trip" / "deep" / "a.png")
    picture(tmp_path / "1000_most" / "a.png")
    dataset = scan_folder(tmp_path, ScanOptions(recursive=True))
    assert sorted(i.repeats for i in dataset.items) == [100, 731, 1000]
    assert "Items of 1000_most, 731_trip are seen more than 100 times" in remark(dataset, "times in an epoch")


def test_what_is_set_aside_stays_aside(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="one")
    picture(tmp_path / "set_aside" / "b.png", caption="two")
    dataset = scan_folder(tmp_path, ScanOptions(recursive=True))
    assert len(dataset.items) == 1 and remark(dataset, "set_aside")


@pytest.mark.parametrize("after", [False, True])
def test_a_png_with_large_notes_is_read(tmp_path: Path, after: bool) -> None:
    """As the host's Load Image reads it; its notes are never unpacked."""
    image, notes = scene(1, (64, 64)), PngImagePlugin.PngInfo()
    notes.add_text("workflow", "x" * 3_000_000, zip=True)
    image.save(tmp_path / "text.png", pnginfo=notes)
    if after:  # behind the pixels
        data = (tmp_path / "text.png").read_bytes()
        start = data.index(b"zTXt") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        tail = data.rindex(b"IEND") - 4
        (tmp_path / "text.png").write_bytes(data[:start] + data[end:tail] + data[start:end] + data[tail:])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(3_000_000)
    image.save(tmp_path / "profile.png", icc_profile=profile)
    assert len(scan_folder(tmp_path).items) == 2
    for name in ("text.png", "profile.png"):
        assert open_still(tmp_path / name)[0].tobytes() == image.tobytes()


def test_a_bomb_behind_large_notes_is_still_refused(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png", pnginfo=notes)
    with pytest.raises(KilnError, match="12000x12000 pixels; at most 89 million"):
        scan_folder(tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")
def test_pipes_and_devices_are_named_and_never_opened(tmp_path: Path) -> None:
    """Reading one would not end: of a picture, a caption, a table, a mask and a clip."""
    folder = tmp_path / "set"
    picture(folder / "good.png", caption="a cat")
    picture(folder / "other.png")
    (folder / "masks").mkdir()
    pipes = ("pipe.png", "other.txt", "metadata.csv", "clip.mp4", "masks/good.png")
    for name in pipes:
        os.mkfifo(folder / name)
    os.symlink("/dev/zero", folder / "good.json")
    dataset = scan_folder(folder)
    assert captions(folder) == {"good.png": "a cat", "other.png": ""}
    assert {p.name for p in dataset.unread} == {*pipes[:4], "good.json"}
    assert folder_state(folder, recursive=True)
