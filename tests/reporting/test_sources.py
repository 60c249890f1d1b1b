"""Reports show which sources a partition believed and what would narrow the noise rate."""

from __future__ import annotations

from dataclasses import replace

from expunge.records import PooledEvidence, SourceReport
from expunge.reporting.html import render_html
from expunge.reporting.markdown import render_markdown
from expunge.reporting.sources import n_reviews_needed, narrowing_lines
from expunge.reporting.summary import summarise
from oracles_results import make_partition, make_result


def explained_result():
    result = make_result(
        partition=make_partition(rate_estimates={"posterior": 0.21}, noise_rate=(0.3, 0.2, 0.4))
    )
    sources = (SourceReport("model", 0.1, 0.9, 0.05), SourceReport("trees:input", 1.0, 0.7, 0.25))
    pooled = PooledEvidence(result.scores.class_probs, [0.0] * 200, sources)
    return replace(result, scores=replace(result.scores, pooled=pooled))


def test_every_report_shows_sources_by_weight_and_what_each_finds_alone():
    result = explained_result()
    text = render_markdown(result)
    assert "| trees:input | 1.00 | 70.0% | 25.0% |" in text
    assert text.index("trees:input") < text.index("| model | 0.10 |")
    assert "posterior 21.0%" in text
    assert "trees:input" in render_html(result)
    found = summarise(result)["partition"]
    assert [s["name"] for s in found["sources"]] == ["trees:input", "model"]
    assert found["rate_estimates"] == {"posterior": 0.21}


def test_a_partition_that_did_not_use_the_pool_shows_no_sources():
    result = explained_result()
    result = replace(result, partition=replace(result.partition, rate_estimates={}))
    assert summarise(result)["partition"]["sources"] == []
    assert "trees:input" not in render_markdown(result)


def test_a_narrow_interval_needs_no_review_and_held_out_labels_are_asked_for_once():
    result = explained_result()
    pooled, wide = result.scores.pooled, result.partition
    assert [line.split()[0] for line in narrowing_lines(wide, pooled)] == ["review", "hold"]
    assert narrowing_lines(replace(wide, noise_rate=(0.3, 0.28, 0.32)), pooled) == []
    held = replace(pooled, held_out_agreement=0.8)
    assert [line.split()[0] for line in narrowing_lines(wide, held)] == ["review"]
    assert n_reviews_needed(wide) < len(wide.ids)  # no more reviews than there are samples
