"""Publishes a checkpoint: the model card, and the Hub."""

from .card import card
from .hub import plan_upload, run_upload
from .push import on_the_hub, plan_push, push

__all__ = ["card", "on_the_hub", "plan_push", "plan_upload", "push", "run_upload"]
