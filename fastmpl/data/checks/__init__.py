"""Decodes every image before a run: finds bad, odd and duplicate images."""
