"""What `validate` and `evaluate` both need: a model that computes, its texts, and what goes on record of a result."""
