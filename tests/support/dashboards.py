"""The script that makes the dashboards."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).parents[2] / "deploy/grafana/generate.py"


def load_generator() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("generate_dashboards", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
