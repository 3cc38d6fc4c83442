"""The report on a dataset, as Markdown: a verdict first, then what it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from .buckets import BucketOptions, Plan, bucket_of, crop_lost, plan
from .items import Dataset, Item
from .pieces import describe_use
from .quality import (
    FEW_ITEMS,
    GOOD_ITEMS,
    GOOD_SIDE,
    MUCH_LOST,
    SMALL_SIDE,
    Problem,
    find_problems,
    fused_words,
    tag_counts,
)

MOST_LINES = 40  # of a list; the rest is counted


class DatasetReport:
    """Everything that is said of one dataset."""

    def __init__(self, dataset: Dataset, options: BucketOptions) -> None:
        self.dataset = dataset
        self.options = options
        found = [*find_problems(dataset, options.resolution), *crop_problems(dataset, options)]
        self.problems = sorted(found, key=lambda p: (p.item, not p.severe))
        self.plan: Plan = plan(dataset, options)
        self.trained = [i for i in dataset.items if i.role != "validation"]

    def markdown(self) -> str:
        """The whole report."""
        sections = [
            "# Dataset report",
            self._verdict(),
            "## Figures\n\n" + self._figures(),
            "## Problems\n\n" + self._problem_list(),
            "## Captions\n\n" + self._captions(),
            "## Buckets\n\n" + self._buckets(),
            "## Roles\n\n" + self._roles(),
        ]
        if left_out := self.dataset.left_out():
            sections.append("## Left out\n\n" + _bullets([_plain(s) for s in left_out]))
        if self.dataset.remarks:
            sections.append("## Remarks\n\n" + _bullets([_plain(s) for s in self.dataset.remarks]))
        return "\n\n".join(sections) + "\n"

    def advice(self) -> list[tuple[bool, str]]:
        """What to do next: (it should stop you, one sentence)."""
        count, kinds = len(self.trained), Counter(p.kind.split()[0] for p in self.problems)
        advice: list[tuple[bool, str]] = []
        side = min(SMALL_SIDE, self.options.resolution)
        if count < FEW_ITEMS:
            advice.append(
                (
                    count < 10,
                    f"Add items: {count} are trained on, {FEW_ITEMS} are the minimum, 50-100 are good.",
                )
            )
        small, soft = kinds["tiny"] + kinds["small"], kinds["blurred"] + kinds["upscaled"]
        identical = sum(p.kind.startswith("caption of") for p in self.problems)
        if small:
            cure = "by larger originals, or train at a lower resolution"
            text = f"Replace {_items(small)} below {side}x{side} pixels {cure}."
            advice.append((small > count / 2, text))
        if soft:
            text = f"Look at {_items(soft)} found blurred or enlarged; leave the bad ones out."
            advice.append((soft > count / 3, text))
        if kinds["like"]:
            text = f"Keep one of each group of near-duplicates: {_items(kinds['like'])} too many."
            advice.append((False, text))
        if kinds["no"]:
            text = f"Write captions: {_items(kinds['no'])} without."
            advice.append((kinds["no"] > count / 2, text))
        if identical:
            text = f"Give every item a caption of its own: {_items(identical)} with another's, word for word."
            advice.append((False, text))
        if kinds["crop"]:
            worst = f"up to {self.plan.worst[0]:.0%} lost"
            text = f"Crop by hand what does not fit a bucket: {_items(kinds['crop'])}, {worst}."
            advice.append((False, text))
        return advice + [(False, text) for text in self._smaller_advice()]

    def _smaller_advice(self) -> list[str]:
        advice = []
        always, containing = fused_words(self.trained, self.dataset.trigger_word)
        if always or containing:
            words = ", ".join((always + containing)[:6])
            advice.append(f"Vary what stands beside the trigger word: the model cannot tell it from {words}.")
        if self.dataset.skipped:
            advice.append(f"Mend or remove what was left out: {len(self.dataset.skipped)} of the files.")
        if not any(i.role == "validation" for i in self.dataset.items) and len(self.trained) >= 2 * FEW_ITEMS:
            advice.append("Hold out a tenth of the items for validation, to see overfitting when it starts.")
        return advice

    def headline(self) -> str:
        """The verdict in one sentence."""
        advice = self.advice()
        if any(severe for severe, _ in advice):
            return "Not ready: an hour of training would be wasted on this."
        if advice:
            return "Usable, and better after a look at a few points."
        if len(self.trained) < GOOD_ITEMS:
            return f"Ready to train; {GOOD_ITEMS}-100 items would be better still."
        return "Ready to train."

    def _verdict(self) -> str:
        advice = [text for _, text in self.advice()]
        return f"**{self.headline()}**" + (f"\n\nWhat to do next:\n\n{_numbered(advice)}" if advice else "")

    def _figures(self) -> str:
        sides = [(i.facts.width * i.facts.height) ** 0.5 for i in self.trained]
        clips = [i for i in self.dataset.items if i.facts.frames > 1]
        rows = [
            ("items trained on", str(len(self.trained)), f"{FEW_ITEMS} minimum, {GOOD_ITEMS}-100 good"),
            (
                "of them stills / clips",
                f"{sum(i.facts.frames == 1 for i in self.trained)} / {sum(i.facts.frames > 1 for i in self.trained)}",
                "",
            ),
            ("median size", f"{median(sides):.0f} pixels a side", f"{SMALL_SIDE} minimum, {GOOD_SIDE} good"),
            (
                f"at least {SMALL_SIDE} / {GOOD_SIDE} a side",
                f"{_share(s >= SMALL_SIDE for s in sides)} / {_share(s >= GOOD_SIDE for s in sides)}",
                "all / as many as you can",
            ),
            ("with a caption", _share(bool(i.caption) for i in self.trained), "all"),
            ("with a mask file", _share(i.mask is not None for i in self.trained), ""),
            ("with transparency as the mask", _share(i.use_alpha for i in self.trained), ""),
            ("files left out", str(len(self.dataset.skipped) + len(self.dataset.unread)), "0"),
        ]
        if clips:
            seconds = [i.facts.seconds for i in clips]
            rows.append(("length of clips", f"{min(seconds):.1f} to {max(seconds):.1f} s", ""))
        return _table(("figure", "here", "the guide says"), rows)

    def _problem_list(self) -> str:
        if not self.problems:
            return "None found."
        by_item: dict[int, list[Problem]] = {}
        for problem in self.problems:
            by_item.setdefault(problem.item, []).append(problem)
        lines = []
        for index, found in by_item.items():
            name = _plain(self.dataset.items[index].path.name)
            lines.append(f"{index + 1}. `{name}`: " + "; ".join(_plain(p.text) for p in found))
        hidden = [f"... and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        return "\n".join([f"- no. {line}" for line in lines[:MOST_LINES]] + hidden)

    def _captions(self) -> str:
        captioned = [i for i in self.trained if i.caption]
        if not captioned:
            return "No item has a caption."
        lengths = [len(i.caption.split()) for i in captioned]
        lines = [
            f"{len(captioned)} of {len(self.trained)} items have one; {min(lengths)} to {max(lengths)} words, "
            f"{median(lengths):.0f} in the middle. {len({i.caption for i in captioned})} different ones."
        ]
        counts = tag_counts(captioned)
        table = _table(("tag or word", "captions"), [(_plain(t), str(n)) for t, n in counts.most_common(15)])
        lines.append(f"Most frequent of {len(counts)}:\n\n{table}")
        return "\n\n".join([*lines, self._trigger(captioned)])

    def _trigger(self, captioned: Sequence[Item]) -> str:
        word = self.dataset.trigger_word
        if not word:
            return "No trigger word is set; the caption template can put one in front."
        count = sum(word.casefold() in i.caption.casefold() for i in captioned)
        lines = [f"Trigger word `{_plain(word)}`: in {count} of {len(captioned)} captions."]
        always, containing = fused_words(captioned, word)
        if always:
            lines.append(
                f"Nearly always beside it: {', '.join(always[:12])}. What never varies becomes part of it."
            )
        if containing:
            lines.append(f"Words that contain it: {', '.join(containing[:12])}.")
        return " ".join(lines)

    def _buckets(self) -> str:
        rows = [(name, str(n), str(shown_), lost) for name, n, shown_, lost in self.plan.rows()]
        extra = len(rows) - MOST_LINES
        table = _table(("bucket", "items", "samples per epoch", "crop lost"), rows[:MOST_LINES])
        more = f"\n\nand {extra} more buckets" if extra > 0 else ""
        single = sum(1 for count in self.plan.counts.values() if count == 1)
        alone = f" {single} buckets hold a single sample and fill no batch above 1." if single else ""
        at = f"At resolution {self.options.resolution}, at most {self.options.max_frames} frames."
        use = "".join(
            f"\n\n{line[0].upper()}{line[1:]}." for line in describe_use(self.dataset, self.options)
        )
        return f"{at} {self.plan.steps().capitalize()}.{alone}\n\n{table}{more}{use}"

    def _roles(self) -> str:
        rows = []
        total = sum(i.repeats for i in self.trained)
        for role in ("subject", "regularisation", "validation"):
            items = [i for i in self.dataset.items if i.role == role]
            if items:
                samples = sum(i.repeats for i in items)
                share = "held out" if role == "validation" else f"{samples / total:.0%} of {total} samples"
                weights = sorted({f"{i.loss_weight:g}" for i in items})
                rows.append((role, str(len(items)), share, ", ".join(weights)))
        return _table(("role", "items", "per epoch", "loss weight"), rows)


def crop_problems(dataset: Dataset, options: BucketOptions) -> list[Problem]:
    """Items that lose much to their bucket's shape."""
    shares = [crop_lost(item, bucket_of(item, options)) for item in dataset.items]
    return [
        Problem(index, f"crop {share:.0%}", f"loses {share:.0%} to cropping")
        for index, share in enumerate(shares)
        if share > MUCH_LOST
    ]


def _items(count: int) -> str:
    return f"{count} item" if count == 1 else f"{count} items"


def _share(answers: object) -> str:
    listed = list(answers)  # type: ignore[call-overload]
    return f"{sum(listed)} of {len(listed)}"


def _plain(text: str) -> str:
    """One line without signs that would break a table."""
    clean = text.encode("utf-8", "replace").decode()
    return " ".join(clean.replace("|", "/").replace("`", "'").split())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bullets(lines: Sequence[str]) -> str:
    extra = [f"- ... and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "\n".join([f"- {line}" for line in lines[:MOST_LINES]] + extra)


def _numbered(lines: Sequence[str]) -> str:
    return "\n".join(f"{n}. {line}" for n, line in enumerate(lines, 1))
