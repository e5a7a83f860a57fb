"""Publishes a checkpoint: the model card, and the Hub."""

from .card import card
from .hub import plan_upload, run_upload
from .push import push

__all__ = ["card", "plan_upload", "push", "run_upload"]
