"""Image files: finding, decoding and caching images; writing PNG and video."""
