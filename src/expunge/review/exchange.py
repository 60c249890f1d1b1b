"""Questions and answers as files of other tools, and answers from them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import DataError, RunError, raise_all
from expunge.review import tool_formats  # noqa: F401  (registers formats)
from expunge.review.answer_log import class_index, from_row, now, to_row
from expunge.review.answers import Answer, latest
from expunge.review.cards import Cards
from expunge.review.formats import formats
from expunge.storage.atomic_files import wrap_io_errors

if TYPE_CHECKING:
    from expunge.review.session import ReviewSession

_MAX_PROBLEMS = 12


def questions(session: ReviewSession) -> list[dict[str, Any]]:
    """Every answer and every question without one, as plain values; these have an empty verdict."""
    partition, classes = session.partition, session.classes
    answers = latest(session.log.read())
    answered = {(str(a.id), a.repeat) for a in answers}
    rows = [to_row(answer, classes) for answer in answers]
    for item in session.queue.items:
        if (str(item.id), item.repeat) not in answered:
            blank = to_row(Answer(item.id, "skip", repeat=item.repeat, draw=item.draw), classes)
            rows.append(blank | {"verdict": ""})
    for row in rows:
        k = int(session.rows([row["id"]])[0])
        row["row"] = k
        row["given"] = classes[int(partition.labels[k])]
        row["suggested"] = classes[int(partition.suggested_label[k])]
        row["p_noisy"] = round(float(partition.p_noisy[k]), 4)
        row["suggested_probability"] = round(float(partition.suggested_probability[k]), 4)
    return rows


def export_questions(
    session: ReviewSession,
    cards: Cards,
    path: str | Path,
    *,
    format: str = "csv",
    overwrite: bool = False,
) -> int:
    """Write questions and answers for a tool; returns their number.

    Parameters
    ----------
    session, cards
        The review and what it shows.
    path
        A file; for ``"fiftyone"`` and ``"argilla"`` a folder.
    format
        ``"csv"``, ``"parquet"``: fill in ``verdict`` and, where the given label is wrong,
        ``label``. ``"label-studio"``: tasks. ``"argilla"``: a data set on disk. ``"fiftyone"``:
        images and labels.
    overwrite
        Replace what is there. It may hold answers that were not read yet.

    Raises
    ------
    RunError
        If the path exists, unless ``overwrite``, or cannot be written.
    DataError
        If the tool cannot show samples of this kind.
    """
    write = formats.get(format)().write
    with wrap_io_errors(Path(path)):
        is_there = Path(path).exists()
    if is_there and not overwrite:
        raise RunError(
            "exists already and may hold answers",
            where=str(path),
            fix="read it with --import, then name another file or delete it",
        )
    rows = questions(session)
    with wrap_io_errors(Path(path)):
        write(rows, cards, Path(path))
    return len(rows)


def import_answers(session: ReviewSession, path: str | Path, *, format: str = "csv") -> int:
    """Add the answers of a tool's file that are new or differ; returns their number.

    Where the file's column ``given`` names other labels than the data have now, the data were
    changed since: an answer that names the new label says that it is right. The samples are no
    random ones of the changed data any more, so that the answers of this file do not move the rate.

    Raises
    ------
    DataError
        If the file or a row of it is not as expected, an id or a class does not exist, or a verdict
        contradicts its label. Nothing is added then.
    """
    indices = {name: k for k, name in enumerate(session.classes)}
    found, problems, is_changed = [], [], False
    form = formats.get(format)()
    for number, row in enumerate(form.read(Path(path)), start=1):
        if not row.get("verdict") and (row.get("id") not in (None, "") or "row" in row):
            continue  # a question without an answer
        try:
            answer = from_row(_with_id(row, session), indices)
            at, then = _row_of(answer, session), _label_then(row, indices)
            is_changed |= then not in (None, int(session.partition.labels[at]))
            found.append(_completed(answer, session, at, then, has_verdict=form.has_verdicts))
        except DataError as error:
            problems.append(f"answer {number}: {error}")
    raise_all(DataError, problems[:_MAX_PROBLEMS], where=str(path))
    if is_changed:
        found = [replace(answer, draw=None) for answer in found]
    known = {(str(a.id), a.reviewer, a.repeat): (a.verdict, a.label) for a in session.log.read()}
    new = [a for a in found if known.get((str(a.id), a.reviewer, a.repeat)) != (a.verdict, a.label)]
    session.add(new)
    return len(new)


def _with_id(row: Mapping[str, Any], session: ReviewSession) -> Mapping[str, Any]:
    """The answer with the id of its sample, where a tool knows only the row."""
    if row.get("id") not in (None, "") or not isinstance(row.get("row"), int):
        return row
    session.check_row(row["row"])
    return {**row, "id": session.partition.ids[row["row"]].item()}


def _label_then(row: Mapping[str, Any], indices: Mapping[str, int]) -> int | None:
    """The label that the reviewer saw; None if the file does not say."""
    with suppress(DataError):
        return class_index(row.get("given"), indices)
    return None


def _row_of(answer: Answer, session: ReviewSession) -> int:
    """The row of the sample of an answer."""
    row = int(session.rows([answer.id])[0])
    if row < 0:
        raise DataError(f"no sample has the id {answer.id}")
    return row


def _completed(
    answer: Answer, session: ReviewSession, row: int, then: int | None, *, has_verdict: bool
) -> Answer:
    """An answer with a time, the run's own id and the draw.

    then: the label that the reviewer saw, if it is known. Without a verdict the label decides.
    """
    now_given, verdict, label = int(session.partition.labels[row]), answer.verdict, answer.label
    given = now_given if then is None else then
    if verdict in ("right", "wrong"):
        label = given if label is None else label
        if has_verdict and (verdict == "right") != (label == given):
            raise DataError(
                f"the verdict on {answer.id} is '{verdict}', but the given label is "
                f"'{session.classes[given]}' and the right one '{session.classes[label]}': correct "
                "the verdict or the label"
            )
        verdict = "right" if label == now_given else "wrong"
    name = session.partition.ids[row].item()
    return replace(
        answer,
        id=name,
        verdict=verdict,
        label=label,
        time=answer.time or now(),
        draw=answer.draw or session.draw_of(name),
    )
