"""Reports: data first, written once as JSON; tables and pages are rendered from it."""
