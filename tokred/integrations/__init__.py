"""tokred inside the tools of others; one tool a file, imported only when that tool asks."""
