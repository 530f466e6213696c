"""Scores and labels -> temperature and thresholds, figures with intervals, pictures, the report. No Ray."""
