"""Review: a person looks at the samples that matter most, and everything that follows is better."""

from expunge.review.answers import Answer, Draw
from expunge.review.estimation import reviewed
from expunge.review.outcome import Review
from expunge.review.queue import Item, Queue, extend_queue, plan_queue
from expunge.review.tables import (
    answers_from_table,
    issues_table,
    partition_from_issues,
    queue_table,
)

__all__ = [
    "Answer",
    "Draw",
    "Item",
    "Queue",
    "Review",
    "answers_from_table",
    "extend_queue",
    "issues_table",
    "partition_from_issues",
    "plan_queue",
    "queue_table",
    "reviewed",
]
