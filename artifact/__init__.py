"""The words that every stage shares; no heavy library is imported here."""
