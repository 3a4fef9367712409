"""The server."""

import os

# ONNX Runtime's official builds send usage events to Microsoft, with an identifier kept in the
# home folder, unless that is switched off before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
