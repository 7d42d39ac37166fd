"""Checks any ONNX classifier for what makes it slow, wrong, or awkward to deploy on CPUs."""
