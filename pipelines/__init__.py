"""Recipes: data, mapped into the package as `compress.pipelines` (setuptools needs this file)."""
