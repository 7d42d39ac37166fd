"""Model cards: data, mapped into the package as `compress.models` (setuptools needs this file)."""
