"""Review: a person looks at the samples that matter most, and everything that follows is better."""

from expunge.review.answers import Answer, Draw
from expunge.review.estimation import reviewed
from expunge.review.outcome import Review
from expunge.review.queue import Item, Queue, extend_queue, plan_queue

__all__ = [
    "Answer",
    "Draw",
    "Item",
    "Queue",
    "Review",
    "extend_queue",
    "plan_queue",
    "reviewed",
]
