"""Reports: data is written once as JSON, and tables and pages are rendered from it."""
