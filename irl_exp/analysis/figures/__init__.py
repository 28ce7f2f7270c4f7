"""Figures of a study, one file a subject; `drawing` is their style, `panels` what they share."""
