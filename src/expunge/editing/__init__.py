"""Repairs without a gradient step: closed-form heads, cut depth, and edits of weights."""
