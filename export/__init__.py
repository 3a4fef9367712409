"""Turns an MXNet symbol and its parameters into a model repository, without MXNet."""

import os

# ONNX Runtime's official builds send usage events to Microsoft, with an identifier kept in the
# home folder, unless they are configured not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
