"""Writers: a plan first (pure, what --dry-run prints), then its execution, atomically and in constant memory."""
