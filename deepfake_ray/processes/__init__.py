"""Processes: work that may crash or hang in one of its own (`isolation`), and how much memory one may take."""
