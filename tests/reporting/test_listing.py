"""The report lists every flagged sample once, by kind of fault, by class, in pages."""

from __future__ import annotations

import re

import numpy as np

from expunge.data import from_arrays
from expunge.reporting import listing
from expunge.reporting.html import render_html
from expunge.reporting.listing import list_flagged, thumbnails_for
from expunge.reporting.tables import top_suspects
from oracles_results import make_partition, make_result


def many(n: int = 1000):
    """A result with several hundred flagged samples of both kinds."""
    return make_result(partition=make_partition(n=n, threshold=0.05))


def test_every_flagged_sample_is_listed_once_under_its_kind_and_class():
    result = many()
    p = result.partition
    found = list_flagged(result)
    assert found is not None
    assert found.n_left_out == 0
    at = {name: i for i, name in enumerate(p.ids.tolist())}
    order = {name: k for k, name in enumerate(p.ids[top_suspects(p, len(p.ids))].tolist())}
    listed = []
    for kind, n, groups in found.kinds:
        assert n == sum(group.n for group in groups)
        for group in groups:
            rows = [row for _, _, page in group.pages for row in page]
            assert len(rows) == group.n
            assert max(len(page) for _, _, page in group.pages) <= listing.PAGE_SIZE
            assert group.pages[0][0] == 1
            assert group.pages[-1][1] == group.n
            places = [order[row["id"]] for row in rows]
            assert places == sorted(places)
            for row in rows:
                i = at[row["id"]]
                assert result.classes[p.labels[i]] == group.name
                is_input = p.p_input_fault[i] > p.p_label_fault[i]
                assert kind == ("Bad inputs" if is_input else "Wrong labels")
            listed += [row["id"] for row in rows]
    assert sorted(listed) == sorted(p.ids[p.flagged].tolist())
    assert len(listed) > 200


def test_few_flagged_samples_are_in_the_gallery_and_not_listed():
    assert list_flagged(make_result(partition=make_partition(threshold=1.0))) is None


def test_a_long_list_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(listing, "MAX_LISTED", 60)
    result = many()
    found = list_flagged(result)
    assert sum(n for _, n, _ in found.kinds) == 60
    left = int(result.partition.flagged.sum()) - 60
    assert found.n_left_out == left
    assert f"{left:,} less suspicious ones are in partition.parquet" in render_html(result)


def test_the_page_holds_every_flagged_id_and_escapes_names():
    ids = np.array([f"<b>{i:04d}" for i in range(1000)])
    partition = make_partition(n=1000, threshold=0.05, ids=ids)
    text = render_html(make_result(partition=partition, classes=("<i>", "b", "c", "d")))
    part = text[text.index("All flagged samples") :]
    shown = set(re.findall(r"<td>&lt;b&gt;(\d{4})</td>", part[: part.index("</section>")]))
    assert shown == {i[3:] for i in ids[partition.flagged].tolist()}
    assert "<b>0" not in part
    assert "<i>" not in part


def test_thumbnails_stop_at_their_limit(monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (200, 3, 80, 80), dtype=np.uint8)
    samples = from_arrays(x, np.arange(200) % 2)
    found = thumbnails_for(samples, range(20))
    assert list(found) == list(range(20))
    assert all(uri.startswith("data:image/png;base64,") for uri in found.values())
    one = len(found[0])
    monkeypatch.setattr(listing, "MAX_THUMBNAIL_BYTES", 5 * one)
    assert 4 <= len(thumbnails_for(samples, range(200))) <= 7
    rows = from_arrays(np.zeros((4, 3), dtype=np.float32), [0, 1, 0, 1])
    assert thumbnails_for(rows, range(4)) == {}
