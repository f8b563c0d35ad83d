"""Evaluation of finished models: judges, metrics, tables, reports."""
