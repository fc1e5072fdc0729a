"""Importers of other trainers' configs."""
