"""Packs a folder of images into tars: `fastmpl pack`."""
