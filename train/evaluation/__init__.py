"""Measuring finished models: judges, tables, reports."""
