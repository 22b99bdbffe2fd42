"""Deploying a bundle to a device over SSH: probe, upload, build, check, measure, fetch."""
