"""Comparisons with other tools; each writes its own file under bench/results."""

from compress.cli.process import prepare_process

prepare_process()  # before a bench imports torch, as the command does
