"""All flagged samples of a report: by kind of fault, by class, in pages."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from expunge.data import Samples
from expunge.reporting.media import data_uri, images_for
from expunge.reporting.tables import MAX_SHOWN, Partitioned, top_suspects

MAX_LISTED = 10_000  # samples
PAGE_SIZE = MAX_SHOWN
MAX_THUMBNAIL_BYTES = 4 << 20  # of all together
THUMBNAIL_SIDE = 64  # pixels
_CHUNK_SIZE = 64


class Group(NamedTuple):
    """The flagged samples of one kind and class, most suspicious first.

    pages: ``(first number, last number, rows)``.
    """

    name: str
    n: int
    pages: list[tuple[int, int, list[dict[str, Any]]]]


class Listing(NamedTuple):
    """All flagged samples: ``(kind, number, groups)``, and how many are left out."""

    kinds: list[tuple[str, int, list[Group]]]
    n_left_out: int


def list_flagged(
    result: Partitioned, thumbnails: Mapping[Any, str] | None = None
) -> Listing | None:
    """List the flagged samples by kind of fault and given class.

    None if the gallery of the most suspicious samples shows them all.
    """
    p = result.partition
    n_flagged = int(p.flagged.sum())
    if n_flagged <= MAX_SHOWN:
        return None
    shown = top_suspects(p, min(n_flagged, MAX_LISTED))
    is_input = p.p_input_fault[shown] > p.p_label_fault[shown]
    kinds = []
    for name, of_kind in (("Wrong labels", shown[~is_input]), ("Bad inputs", shown[is_input])):
        groups = [
            _group(result, of_kind[p.labels[of_kind] == c], int(c), thumbnails or {})
            for c in np.unique(p.labels[of_kind])
        ]
        if groups:
            kinds.append((name, len(of_kind), groups))
    return Listing(kinds, n_flagged - len(shown))


def _group(
    result: Partitioned, positions: np.ndarray, label: int, thumbnails: Mapping[Any, str]
) -> Group:
    p, names = result.partition, result.classes
    rows = [
        {
            "id": p.ids[i].item(),
            "image": thumbnails.get(p.ids[i].item()),
            "suggested": names[p.suggested_label[i]],
            "same": bool(p.labels[i] == p.suggested_label[i]),
            "probability": float(p.suggested_probability[i]),
            "p_noisy": float(p.p_noisy[i]),
        }
        for i in positions
    ]
    starts = range(0, len(rows), PAGE_SIZE)
    pages = [(s + 1, min(s + PAGE_SIZE, len(rows)), rows[s : s + PAGE_SIZE]) for s in starts]
    return Group(names[label], len(rows), pages)


def thumbnails_for(samples: Samples, ids: Iterable[Hashable]) -> dict[Hashable, str]:
    """Small pictures of these samples as ``data:`` URIs, until they take `MAX_THUMBNAIL_BYTES`."""
    wanted, found, size = list(ids), {}, 0
    for start in range(0, len(wanted), _CHUNK_SIZE):
        images = images_for(samples, wanted[start : start + _CHUNK_SIZE])
        if not images:
            break
        for name, image in images.items():
            found[name] = data_uri(image, THUMBNAIL_SIDE)
            size += len(found[name])
            if size > MAX_THUMBNAIL_BYTES:
                return found
    return found
