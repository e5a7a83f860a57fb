"""Publishes a checkpoint: the model card, and the Hub."""

from .hub import Uploaded, check_repo, plan_upload, run_upload, upload
from .model_card import card
from .pushing import on_the_hub, plan_push, prepare_push, push, run_push

__all__ = [
    "Uploaded",
    "card",
    "check_repo",
    "on_the_hub",
    "plan_push",
    "plan_upload",
    "prepare_push",
    "push",
    "run_push",
    "run_upload",
    "upload",
]
