"""Publishes a checkpoint: the model card, and the Hub."""

from .card import card
from .hub import check_repo, plan_upload, run_upload
from .push import on_the_hub, plan_push, push

__all__ = ["card", "check_repo", "on_the_hub", "plan_push", "plan_upload", "push", "run_upload"]
