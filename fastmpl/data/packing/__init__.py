"""A folder of pictures into tars: `fastmpl pack`."""
