"""Distillation: a student learns from the teacher's answers."""
