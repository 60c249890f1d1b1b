"""Reports: what they say, that they say it of hostile names too, and when they doubt themselves."""

from __future__ import annotations

import base64
import io
import json
import re
import wave
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from expunge.data import LazyInputs, Samples, TensorInputs
from expunge.errors import DataError
from expunge.evaluation import diagnostics
from expunge.records import Decision, Flag, Metric, NeuronRanking, PrunePlan, UnlearningAudit
from expunge.reporting import charts, formatting, html, media
from expunge.reporting.html import render_html
from expunge.reporting.markdown import escape, render_markdown
from expunge.reporting.media import Clip, clips_for, images_for
from expunge.reporting.summary import summarise
from expunge.reporting.tables import (
    MAX_CLASSES,
    class_rows,
    headline,
    outcomes,
    skipped_lines,
    top_suspects,
)
from oracles_results import (
    make_baseline,
    make_evaluation,
    make_fit,
    make_partition,
    make_ranking,
    make_result,
)

HOSTILE = '<script>alert("x")</script>|a\n\nb`c`&amp;'


class Page(HTMLParser):
    """Tags with their attributes, and whether every tag was closed in order."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def bare_result(**changes):
    empty = {"ranking": None, "plan": None, "before": None, "after": None, "gain": None}
    return make_result(**empty | {"baselines": {}, "seconds": {}, "run": ""} | changes)


def digits(ids) -> dict:
    return {name: np.full((8, 8), 40 + i, np.uint8) for i, name in enumerate(ids)}


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


VARIANTS = {
    "everything": make_result,
    "nothing optional": bare_result,
    "no validation set": lambda: make_result(before=None, after=None, gain=None, baselines={}),
    "no ranking": lambda: make_result(ranking=None),
    "no plan": lambda: make_result(plan=None),
    "no controls": lambda: make_result(baselines={}),
    "no gain": lambda: make_result(gain=None),
    "nothing flagged": lambda: make_result(partition=make_partition(threshold=1.0)),
    "all flagged": lambda: make_result(partition=make_partition(threshold=-1.0)),
    "one fit": lambda: make_result(partition=make_partition(fits=(make_fit("label"),))),
    "no fit": lambda: make_result(partition=make_partition(fits=(), evidence={})),
    "fit without comparison": lambda: make_result(
        partition=make_partition(fits=(make_fit(bic={}),))
    ),
    "constant evidence": lambda: make_result(
        partition=make_partition(evidence={"label_evidence": np.zeros(200)})
    ),
    "one sample": lambda: make_result(partition=make_partition(n=1)),
    "text ids": lambda: make_result(
        partition=make_partition(ids=np.array([f"img/{i:03d}.png" for i in range(200)]))
    ),
}


@pytest.fixture(params=VARIANTS, ids=[name.replace(" ", "-") for name in VARIANTS])
def variant(request):
    return VARIANTS[request.param]()


def test_the_most_suspicious_flagged_samples_are_listed(variant):
    p, text = variant.partition, render_markdown(variant)
    n = int(p.flagged.sum())
    assert ("## Flagged samples" in text) == (n > 0)
    if n:
        listed = section(text, "Flagged samples")
        k, names = top_suspects(p, 1)[0], variant.classes
        given, better = names[p.labels[k]], names[p.suggested_label[k]]
        better = "none better" if given == better else better
        shown = f"| {p.ids[k]} | {100 * p.p_noisy.max():.1f}% | {given} | {better} | "
        assert escape(shown).replace("\\|", "|") in listed
        assert listed.count("\n| ") == min(n, 10) + 2
        assert (f"{n - 10} more are in partition.parquet" in listed) == (n > 10)


# The JSON object


def test_summary_survives_json_unchanged(variant):
    found = summarise(variant)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_summary_has_the_promised_keys_and_numbers():
    result = make_result(flags=(Flag("clean-accuracy-fell", "It fell."),))
    found = summarise(result)
    assert found["before"]["accuracy"] == {"value": 0.6, "low": 0.55, "high": 0.65, "n": 100}
    assert found["after"]["accuracy"]["value"] == 0.85
    assert found["gain"] == {"value": 0.25, "low": 0.18, "high": 0.31, "n": 100}
    control = found["baselines"]["random-units"]
    assert (control["accuracy"]["value"], control["seconds"], control["parameters"]) == (
        0.75,
        4.5,
        9000,
    )
    assert control["gain"]["value"] == 0.1
    assert found["partition"]["flagged"] == result.partition.flagged.sum()
    assert found["partition"]["n"] == 200
    assert found["partition"]["noise_rate"] == {"value": 0.3, "low": 0.25, "high": 0.35}
    assert found["pruning"] == {
        "requested": 5,
        "granted": 5,
        "parameters_before": 12_000,
        "parameters_after": 9_000,
        "macs_before": 100_000,
        "macs_after": 80_000,
    }
    assert found["seconds"]["score"] == 3.21
    assert found["flags"] == [{"code": "clean-accuracy-fell", "message": "It fell."}]
    assert (found["recipe"], found["seed"], found["run"]) == ("default", 3, "runs/first")


def test_summary_of_numpy_numbers_is_plain_python():
    number = np.float64(0.25)
    rate = (np.float32(0.25),) * 3
    result = make_result(
        gain=Metric(number, number, number, np.int64(9)),
        seconds={"score": np.float32(1.5)},
        seed=np.int64(3),
        partition=make_partition(noise_rate=rate),
    )
    found = json.loads(json.dumps(summarise(result)))
    assert found["gain"] == {"value": 0.25, "low": 0.25, "high": 0.25, "n": 9}
    assert found["partition"]["noise_rate"]["value"] == 0.25


def test_summary_has_null_where_there_is_no_validation_set():
    found = summarise(bare_result())
    assert found["before"] is found["after"] is found["gain"] is None
    assert found["baselines"] == {}
    assert (found["pruning"]["requested"], found["pruning"]["granted"]) == (0, 0)


# Words


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: formatting.percent(0.8734), "87.3%"),
        (lambda: formatting.percent(None), "–"),
        (lambda: formatting.points(-0.0123), "−1.2"),
        (lambda: formatting.points(-0.0001), "+0.0"),
        (lambda: formatting.duration(3.21), "3.2 s"),
        (lambda: formatting.duration(9.96), "10.0 s"),
        (lambda: formatting.duration(48.4), "48 s"),
        (lambda: formatting.duration(200), "3 min 20 s"),
        (lambda: formatting.duration(7500), "2 h 5 min"),
        (lambda: formatting.decimals(float("nan")), "–"),
        (lambda: formatting.decimals(-0.01234), "−0.0123"),
        (lambda: formatting.probability(0.9999), ">0.99"),
        (lambda: formatting.probability(0.0), "<0.01"),
        (lambda: formatting.q_value(1e-9), "<0.001"),
        (lambda: formatting.q_value(float("nan")), "–"),
        (lambda: formatting.change(200, 150), "−25.0%"),
        (lambda: formatting.change(0, 0), "–"),
    ],
)
def test_numbers_are_written_with_sensible_digits(call, text):
    assert call() == text


@pytest.mark.parametrize(
    ("gain", "begins"),
    [
        (Metric(0.25, 0.18, 0.31, 100), "Accuracy rose from 60.0% to 85.0%: +25.0 points (+18.0"),
        (Metric(-0.1, -0.2, -0.05, 100), "Accuracy fell from"),
        (Metric(0.01, -0.02, 0.04, 100), "No significant change"),
        (None, "Accuracy went from"),
    ],
)
def test_the_headline_follows_the_interval_of_the_gain(gain, begins):
    assert headline(make_result(gain=gain)).startswith(begins)


def test_the_headline_without_a_validation_set_claims_no_improvement():
    assert "not known" in headline(bare_result())


def test_time_of_the_repair_leaves_out_the_comparison():
    repaired = outcomes(make_result())[1]
    assert repaired.seconds == pytest.approx(3.21 + 0.4 + 64.0)


def test_class_rows_count_every_sample_once():
    result = make_result()
    rows = class_rows(result)
    assert sum(row.n for row in rows) == 200
    assert sum(row.flagged for row in rows) == result.partition.flagged.sum()
    assert [row.name for row in rows] == list(result.classes)


def test_many_classes_are_cut_to_those_with_the_largest_flagged_share():
    c = MAX_CLASSES + 10
    labels = np.arange(200) % c
    p = np.where(labels == c - 1, 0.9, 0.1)
    partition = make_partition(labels=labels, p_noisy=p, suggested_label=labels)
    result = make_result(partition=partition, classes=tuple(f"k{i}" for i in range(c)))
    names = [row.name for row in class_rows(result)]
    assert len(names) == MAX_CLASSES
    assert names[-1] == f"k{c - 1}"
    assert "10 classes with a smaller flagged share" in render_markdown(result)
    assert "10 classes with a smaller flagged share" in render_html(result)


# Order of suspects


def test_suspects_agree_with_a_sort_of_tuples():
    p = np.round(np.random.default_rng(0).random(200), 1)
    evidence = {"label_evidence": np.round(np.random.default_rng(1).random(200), 1)}
    ids = np.random.default_rng(2).permutation(200)
    partition = make_partition(p_noisy=p, evidence=evidence, ids=ids, fits=())
    slow = sorted(range(200), key=lambda i: (-p[i], -evidence["label_evidence"][i], ids[i]))
    assert top_suspects(partition, 200).tolist() == slow
    assert top_suspects(partition, 7).tolist() == slow[:7]


def test_tied_suspects_are_sorted_by_id_and_no_suspects_are_empty():
    tied = make_partition(p_noisy=np.full(200, 0.7), evidence={}, ids=np.arange(200)[::-1])
    assert top_suspects(tied, 3).tolist() == [199, 198, 197]
    assert len(top_suspects(tied, 0)) == 0
    assert len(top_suspects(tied, 999)) == 200


# Markdown


def test_the_unlearning_audit_is_reported_before_and_after():
    found = UnlearningAudit(
        samples=40, predicted=(1.0, 0.125), membership_auroc=(0.9, 0.52), churn=0.03
    )
    text = render_markdown(make_result(audit=found))
    assert "that the model reproduces: 100.0% before, 12.5% after (40 samples)" in text
    assert "unseen samples: 0.90 before, 0.52 after" in text
    assert "prediction churn on the kept samples: 3.0%" in text
    assert "nothing to unlearn" in render_markdown(make_result())
    assert summarise(make_result(audit=found))["audit"]["churn"] == 0.03


def test_markdown_puts_flags_first():
    text = render_markdown(make_result(flags=(Flag("some-code", "Some evidence."),)))
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings == [
        *("Red flags", "Result", "Partition", "Flagged samples", "Pruning", "Unlearning audit"),
        *("Classes", "Time"),
    ]
    assert "- **some-code**: Some evidence." in section(text, "Red flags")


def test_a_decision_in_markdown_escapes_the_names_of_classes():
    kept = Decision("skip", f"every sample of {HOSTILE} was flagged")
    for decision in (kept, replace(kept, action="retrain")):
        text = render_markdown(make_result(decision=decision))
        assert "<script" not in text
        assert "every sample of &lt;script&gt;" in text


def test_markdown_tables_keep_their_columns_under_any_name(variant):
    hostile = replace(variant, classes=(HOSTILE, *variant.classes[1:]), recipe=HOSTILE, run=HOSTILE)
    text = render_markdown(hostile)
    assert "<script" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


def test_markdown_result_table_has_every_model_with_its_interval():
    table = section(render_markdown(make_result()), "Result")
    assert re.search(
        r"\| noisy model \| 60.0% \| 55.0% to 65.0% \| \+25.0 .* \| – \| 12,000", table
    )
    assert re.search(r"\| repaired \| 85.0% \| 80.0% to 90.0% \| – \| 68 s \| 9,000", table)
    assert re.search(r"\| random-units \| 75.0% .* \+10.0 \(\+6.0 to \+14.0\) \| 4.5 s", table)


def test_every_variant_has_markdown_without_missing_values(variant):
    text = render_markdown(variant)
    assert "nan" not in text.lower()
    assert "None" not in text


# HTML


def test_page_is_well_formed_and_fetches_nothing(variant):
    ids = variant.partition.ids.tolist()
    text = render_html(variant, images=digits(ids))
    page = Page(text)
    assert page.open == []
    assert not page.named("script")
    assert not page.named("link")
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    for _, attributes in page.tags:
        assert not {"href", "srcset", "xlink:href"} & set(attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert not re.search(
        r"\bnan\b|\bNone\b|\binf\b", re.sub(r"<style>.*?</style>", "", text, flags=re.S)
    )


def test_page_escapes_every_name_of_the_user():
    ids = np.array([f"{HOSTILE}{i}" for i in range(200)])
    ranking = make_ranking()
    layers = np.where(ranking.layer == "head.0", HOSTILE, ranking.layer)
    result = make_result(
        partition=make_partition(ids=ids),
        ranking=NeuronRanking(
            layers, ranking.unit, ranking.effect, ranking.stderr, ranking.q_value, {}
        ),
        plan=PrunePlan({HOSTILE: (1,)}, requested=2, reasons=(HOSTILE,)),
        classes=(HOSTILE, "b", "c", "d"),
        baselines={HOSTILE: make_baseline(0.7, 0.1)},
        seconds={HOSTILE: 1.0},
        flags=(Flag(HOSTILE, HOSTILE),),
        config={HOSTILE: HOSTILE},
        recipe=HOSTILE,
        run=HOSTILE,
    )
    for images in (None, digits(ids.tolist())):
        text = render_html(result, images=images)
        assert "<script" not in text
        assert 'alert("x")' not in text
        assert "&lt;script&gt;" in text
        assert Page(text).open == []


def test_page_opens_with_flags_or_says_that_there_are_none():
    flagged = render_html(make_result(flags=(Flag("some-code", "Some evidence."),)))
    assert flagged.index("Some evidence.") < flagged.index("<section")
    assert "No red flags." not in flagged
    assert "No red flags." in render_html(make_result())


def test_the_gallery_shows_only_flagged_samples_most_suspicious_first():
    result = make_result()
    partition = result.partition
    page = Page(render_html(result, images=digits(partition.ids.tolist())))
    shown = [int(image["alt"].split()[-1]) for image in page.named("img")]
    expected = partition.ids[top_suspects(partition, min(48, partition.flagged.sum()))]
    assert shown == expected.tolist()
    assert set(shown) <= set(partition.ids[partition.flagged].tolist())


def test_suspects_without_images_are_listed():
    result = make_result()
    text = render_html(result)
    assert not Page(text).named("img")
    assert str(result.partition.ids[top_suspects(result.partition, 1)[0]]) in text
    assert "No sample was flagged." in render_html(
        make_result(partition=make_partition(threshold=1.0))
    )


def test_label_matrix_counts_the_flagged_samples():
    result = make_result()
    partition = result.partition
    slow = np.zeros((4, 4), dtype=int)
    for i in np.flatnonzero(partition.flagged):
        slow[partition.labels[i], partition.suggested_label[i]] += 1
    assert_array_equal(html._matrix(result)["counts"], slow)


def test_units_are_marked_as_cut_where_the_plan_cuts_them():
    result = make_result()
    cut = {(u["layer"], u["unit"]) for u in html._neurons(result.ranking, result.plan) if u["cut"]}
    planned = {(layer, unit) for layer, units in result.plan.units.items() for unit in units}
    ranking = result.ranking
    first = set(zip(ranking.layer[:30].tolist(), ranking.unit[:30].tolist(), strict=True))
    assert cut == planned & first


def test_ranking_without_errors_has_dashes_and_no_whiskers():
    made = make_ranking()
    unknown = np.full(40, np.nan)
    ranking = NeuronRanking(made.layer, made.unit, made.effect, unknown, unknown, {})
    row = html._neurons(ranking, None)[0]
    assert row["stderr"] == "–"
    assert "whisker" not in row["bar"]
    assert Page(render_html(make_result(ranking=ranking))).open == []


# Charts


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(-2.7, 3.1) == [-2, 0, 2]
    assert charts.ticks(1.0, 1.0) == [1.0]


def test_histogram_draws_every_sample_once():
    values = np.array([0.1, 0.1, 0.6, 0.9, 7.0])
    flagged = np.array([False, False, True, True, True])
    svg = charts.histogram(values, flagged, limits=(0.0, 1.0), bins=2, label="x")
    heights = {
        role: [float(h) for h in re.findall(rf'class="{role}"[^>]*height="([\d.]+)"', svg)]
        for role in ("kept", "flagged")
    }
    unit = charts.HEIGHT / (3 * 1.06)
    assert heights["kept"] == pytest.approx([2 * unit], abs=0.01)
    assert heights["flagged"] == pytest.approx([3 * unit], abs=0.01)


def test_bars_stay_inside_their_track():
    svg = charts.bar(-1.0, 2.0, "plain", whisker=(-3.0, 4.0))
    assert {float(x) for x in re.findall(r'(?:x|x1|x2|width)="([\d.-]+)%"', svg)} == {0.0, 100.0}


# Pictures


def samples_of(tensor, **changes) -> Samples:
    n = len(tensor)
    labels = np.arange(n) % 2
    made = Samples(np.arange(n) + 10, labels, ("a", "b"), TensorInputs(tensor))
    return replace(made, **changes)


def test_grey_and_colour_images_are_read_by_id():
    grey = torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8)
    images = images_for(samples_of(grey), [13, 10])
    assert list(images) == [13, 10]
    assert_array_equal(images[13], grey[3, 0].numpy())
    colour = torch.randint(0, 255, (4, 3, 6, 5), dtype=torch.uint8)
    image = images_for(samples_of(colour), [11])[11]
    assert_array_equal(image, colour[1].permute(1, 2, 0).numpy())


def test_floating_images_are_scaled_one_by_one():
    x = torch.randn(4, 1, 8, 8) * torch.tensor([1.0, 10.0, 0.1, 0.0]).view(4, 1, 1, 1)
    images = images_for(samples_of(x), [10, 11, 12, 13])
    for i in (10, 11, 12):
        assert (images[i].min(), images[i].max()) == (0, 255)
    assert images[13].max() == 0
    assert images[10].dtype == np.uint8


def test_images_for_text_ids():
    ids = np.array(["a.png", "b.png"])
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert list(images_for(samples_of(x, ids=ids), np.array(["b.png"]))) == ["b.png"]


@pytest.mark.parametrize("shape", [(4, 16), (4, 2, 8, 8), (4, 1, 1, 30), (4, 8, 8)])
def test_inputs_that_are_not_images_have_no_pictures(shape):
    assert images_for(samples_of(torch.zeros(shape)), [10]) == {}


def test_integer_tokens_and_dict_inputs_have_no_pictures():
    tokens = torch.zeros(4, 1, 8, 8, dtype=torch.int64)
    assert images_for(samples_of(tokens), [10]) == {}
    rows = LazyInputs(4, lambda i: {"ids": torch.zeros(5, dtype=torch.int64)}, "hash")
    assert images_for(samples_of(tokens, inputs=rows), [10]) == {}


def test_no_ids_give_no_pictures_and_unknown_ids_are_named():
    images = samples_of(torch.zeros(4, 1, 8, 8))
    assert images_for(images, []) == {}
    with pytest.raises(DataError, match="no samples with the ids 99"):
        images_for(images, [10, 99])


def test_large_pictures_are_shrunk():
    small, large = (media.data_uri(np.zeros((s, s, 3), np.uint8)) for s in (8, 900))
    assert small.startswith("data:image/png;base64,")
    assert len(large) < 2000


# Red flags


def codes(**changes) -> list[str]:
    healthy = {
        "partition": make_partition(),
        "plan": PrunePlan({"head.0": (1, 2)}, requested=2),
        "before": make_evaluation(0.6),
        "after": make_evaluation(0.85),
        "baselines": {"random-units": make_baseline(0.7, 0.15)},
    }
    return [flag.code for flag in diagnostics.find_flags(**healthy | changes)]


def one_class(share: float, flagged: int = 20) -> dict:
    """``flagged`` suspects, a share of them with given label 2."""
    labels = np.arange(200) % 4
    labels[:flagged] = np.where(np.arange(flagged) < round(share * flagged), 2, 1)
    p = np.where(np.arange(200) < flagged, 0.9, 0.1)
    return {"partition": make_partition(labels=labels, p_noisy=p)}


def class_flagged(share: float, count: int = 50) -> dict:
    """Of the 50 labels 3 a share is flagged, and the same number of others."""
    labels = np.arange(200) % 4
    of_3 = np.flatnonzero(labels == 3)[:count]
    flagged = [of_3[: round(share * count)], np.flatnonzero(labels != 3)[: round(share * count)]]
    labels[of_3[-1] + 1 :] %= 3
    return {
        "partition": make_partition(
            labels=labels, p_noisy=0.1 + 0.8 * np.isin(np.arange(200), np.concatenate(flagged))
        )
    }


NOTHING = {"partition": None, "plan": None, "before": None, "after": None, "baselines": {}}
PLANTED = {
    "mixture-not-separated": {
        "partition": make_partition(fits=(make_fit(separation=1.49), make_fit("input")))
    },
    "one-component-fits-better": {
        "partition": make_partition(fits=(make_fit(bic={1: 10.0, 2: 14.0, 3: 20.0}),))
    },
    "random-baseline-as-good": {
        "baselines": {"random-units": make_baseline(0.84, 0.01)},
        "plan": PrunePlan({"a": (1,)}, 1),
    },
    "granted-less-than-requested": {"plan": PrunePlan({"a": (1,)}, 3, ("a: cap reached",))},
    "validation-overlaps-training": {"shared_inputs": 1},
    "held-out-overlaps-training": {"shared_held_out": 1},
    "clean-accuracy-fell": {
        "after": make_evaluation(0.54),
        "gain": Metric(-0.06, -0.1, -0.02, 100),
    },
    "flagged-set-is-one-class": one_class(0.9),
    "class-mostly-flagged": class_flagged(0.7),
}


def test_a_healthy_repair_has_no_flags():
    assert codes() == []
    assert diagnostics.find_flags(**NOTHING) == ()


@pytest.mark.parametrize("code", PLANTED)
def test_each_flag_fires_alone_on_its_planted_case(code):
    assert codes(**PLANTED[code]) == [code]


@pytest.mark.parametrize(
    "near",
    [
        {"partition": make_partition(fits=(make_fit(separation=1.5),))},
        {
            "partition": make_partition(
                fits=(replace(make_fit(separation=0.0), components=make_fit().components[:1]),)
            )
        },
        {"partition": make_partition(fits=(make_fit(bic={1: 10.0}),))},
        {"baselines": {"random-units": make_baseline(0.84, 0.01)}, "plan": None},
        {
            "baselines": {"random-units": make_baseline(0.84, 0.05)},
            "plan": PrunePlan({"a": (1,)}, 1),
        },
        {"baselines": {"finetune-only": make_baseline(0.9, -0.05)}},
        {"after": make_evaluation(0.56)},
        {"after": None},
        one_class(0.85),
        one_class(1.0, flagged=9),
        class_flagged(0.66),
        class_flagged(1.0, count=9),
        {
            "partition": make_partition(
                c=2, labels=np.arange(200) % 2, p_noisy=1.0 * (np.arange(200) % 4 == 1)
            )
        },
    ],
)
def test_flags_are_silent_just_beside_their_rule(near):
    assert codes(**near) == []


def test_sentences_hold_the_numbers():
    found = {
        flag.code: flag.message
        for planted in PLANTED.values()
        for flag in diagnostics.find_flags(
            **{"partition": None, "plan": None, "baselines": {}, "before": make_evaluation(0.6)}
            | {"after": None}
            | planted
        )
    }
    assert set(found) == set(PLANTED)
    assert "1.49 standard deviations" in found["mixture-not-separated"]
    assert "label evidence by 4.0" in found["one-component-fits-better"]
    assert "+1.0 (−3.0 to +5.0) points" in found["random-baseline-as-good"]
    assert (
        found["granted-less-than-requested"] == "1 of 3 requested units were cut: a: cap reached."
    )
    assert "share 1 input:" in found["validation-overlaps-training"]
    assert "60.0% to 54.0%, by −6.0 (−10.0 to −2.0) points" in found["clean-accuracy-fell"]
    assert "18 of 20 flagged samples (90.0%)" in found["flagged-set-is-one-class"]
    assert "label 2" in found["flagged-set-is-one-class"]
    assert found["class-mostly-flagged"].startswith(
        "35 of 50 samples (70.0%) with the given label 3 are"
    )


def test_flags_call_classes_by_their_names():
    names = ("ant", "bee", "cat", "dog")
    for planted, expected in (
        (one_class(0.9), "label 'cat':"),
        (class_flagged(0.7), "label 'dog'"),
    ):
        (flag,) = diagnostics.find_flags(**NOTHING | planted, classes=names)
        assert expected in flag.message


def test_flags_from_elsewhere_come_first():
    extra = Flag("model-memorised-its-labels", "It fits 99.8% of the given labels.")
    found = diagnostics.find_flags(**NOTHING, shared_inputs=2, extra=(extra,))
    assert [flag.code for flag in found] == [extra.code, "validation-overlaps-training"]


@pytest.mark.parametrize(
    ("agreement", "raised"),
    [
        ({"plain": 1.0, "augmented": 0.58}, True),
        ({"plain": 0.6, "augmented": 0.58}, False),
        ({"plain": 1.0}, False),
        ({}, False),
    ],
)
def test_a_model_that_fits_labels_but_not_views_has_memorised(agreement, raised):
    scores = replace(make_result().scores, agreement=agreement)
    found = diagnostics.memorised(scores)
    assert [flag.code for flag in found] == ["model-memorised-its-labels"] * raised
    if raised:
        assert "100.0% of the given labels, but only 58.0% under augmentation" in found[0].message


# Sound


def clip_of(samples: int = 1600, rate: int = 16_000) -> Clip:
    t = np.arange(samples) / rate
    return Clip(np.round(9000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16), rate)


def test_suspects_with_sound_have_a_player_that_plays_it():
    result = make_result()
    suspects = result.partition.ids[top_suspects(result.partition, 3)].tolist()
    clips = {name: clip_of(800 + i) for i, name in enumerate(suspects)}
    text = render_html(result, clips=clips)
    page = Page(text)
    assert page.open == []
    played = re.findall(r'<audio [^>]*src="data:audio/wav;base64,([^"]+)"', text)
    assert len(played) == 3
    with wave.open(io.BytesIO(base64.b64decode(played[1]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        sound = np.frombuffer(file.readframes(10_000), dtype="<i2")
    assert_array_equal(sound, clips[suspects[1]].audio)
    assert text.count('class="wave"') == 3
    assert text.count('alt="spectrogram of sample') == 3


def heights(svg: str) -> list[float]:
    return [float(y) for _, y in re.findall(r"[ML](\d+) ([\d.]+)", svg)]


def test_a_waveform_touches_both_ends_of_its_peak():
    drawn = heights(charts.waveform(clip_of().audio))
    assert (min(drawn), max(drawn)) == (0.0, 40.0)
    assert set(heights(charts.waveform(np.zeros(100, dtype=np.int16)))) == {20.0}
    assert heights(charts.waveform(np.zeros(0, dtype=np.int16))) == [20.0, 20.0]


def test_a_spectrogram_is_bright_where_it_is_loud_and_low_tones_are_at_its_foot():
    values = np.zeros((20, 30))
    values[2] = 5.0
    image = media.heat(values)
    assert (image.shape, image.dtype) == ((20, 30, 3), np.uint8)
    assert_array_equal(image[17], np.broadcast_to(media.HEAT[-1], (30, 3)))
    assert_array_equal(image[2], np.broadcast_to(media.HEAT[0], (30, 3)))
    assert_array_equal(media.heat(np.ones((2, 2))), np.broadcast_to(media.HEAT[0], (2, 2, 3)))


def test_clips_come_by_id_cut_to_four_seconds_and_16_khz():
    sound = torch.arange(-100, 100, dtype=torch.int16).repeat(4, 1)
    clips = clips_for(samples_of(sound, sample_rate=8000), [13, 10])
    assert list(clips) == [13, 10]
    assert clips[10].sample_rate == 8000
    assert_array_equal(clips[10].audio, sound[0].numpy())
    long = clips_for(samples_of(sound.repeat(1, 40), sample_rate=1000), [10])[10]
    assert len(long.audio) == 4000
    fast = clips_for(samples_of(torch.zeros(4, 48_000), sample_rate=48_000), [10])[10]
    assert (len(fast.audio), fast.sample_rate) == (16_000, 16_000)
    loud = clips_for(samples_of(torch.tensor([[0.5, -1.0, 3.0]] * 4), sample_rate=8000), [11])
    assert loud[11].audio.tolist() == [16384, -32768, 32767]


def test_inputs_that_are_not_sound_have_no_clips():
    assert clips_for(samples_of(torch.zeros(4, 20)), [10]) == {}
    assert clips_for(samples_of(torch.zeros(4, 1, 8, 8), sample_rate=8000), [10]) == {}
    assert clips_for(samples_of(torch.zeros(4, 20).long(), sample_rate=8000), [10]) == {}
    with pytest.raises(DataError, match="no samples with the ids 99"):
        clips_for(samples_of(torch.zeros(4, 20), sample_rate=8000), [99])


def test_skipped_samples_are_in_every_report():
    found = {"training data": {7: "are silent", 9: "are silent", "<b>": "hold no bytes"}}
    result = make_result(skipped=found)
    lines = [
        "training data, skipped: samples that are silent: ids 7, 9",
        "training data, skipped: samples that hold no bytes: ids <b>",
    ]
    assert skipped_lines(result) == lines
    assert summarise(result)["skipped"]["training data"]["7"] == "are silent"
    assert lines[0] in render_markdown(result)
    assert "&lt;b&gt;" in render_markdown(result)
    text = render_html(result)
    assert lines[0] in text
    assert "ids &lt;b&gt;" in text
    assert "Skipped samples" not in render_html(make_result()) + render_markdown(make_result())


def test_a_source_tree_without_metadata_gets_its_page(monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("expunge.reporting.html.version", missing)
    assert "(not installed)" in render_html(make_result())
