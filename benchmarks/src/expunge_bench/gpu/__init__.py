"""Everything that a GPU must show, in one call: pieces that run beside each other and resume.

``python -m expunge_bench.gpu --data FOLDER --out FOLDER`` runs them; ``scripts/gpu.sh`` sets the
paths first. `pieces` holds what is measured, `runner` the order and the time limit.
"""
