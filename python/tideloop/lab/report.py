from typing import Any
from tideloop.lab.results import Results


def render(results: Results, document: dict[str, Any]) -> str:
    return ""
