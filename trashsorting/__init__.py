__version__ = "0.1.0"

import os

# ONNX Runtime sends usage data to its maker unless this is set before it is imported; 0 lets it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
