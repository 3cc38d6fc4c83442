"""The one folder that touches ComfyUI's insides (comfy.*, folder_paths, server) and knows host versions.

What differs between the host generations that we support (0.3.75 and 0.33) is handled here, each place with a
comment that names the version.
"""
