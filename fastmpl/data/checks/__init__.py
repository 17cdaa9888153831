"""Every image decoded before a run: which are bad or odd, and which are there twice."""
