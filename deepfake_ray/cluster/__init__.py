"""Ray itself: its session, who works where, its autoscaler, its metrics, and what Ray Data runs with."""
