"""`--gguf`: a finished model as one GGUF file, by llama.cpp's own converter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from unteach.errors import UserError

CONVERTER = "convert_hf_to_gguf.py"


def find_converter() -> str:
    """The path of llama.cpp's converter: in the folder that `LLAMA_CPP` names, else on the `PATH`.

    Raises:
        UserError: if it is in neither, with how it is had.
    """
    folder = os.environ.get("LLAMA_CPP", "")
    script = Path(folder).expanduser() / CONVERTER
    found = str(script) if folder and script.is_file() else shutil.which(CONVERTER)
    if not found:
        raise UserError(
            f"option 'gguf' needs llama.cpp's {CONVERTER}, which is not here: git clone"
            " https://github.com/ggml-org/llama.cpp, pip install gguf, and set LLAMA_CPP to its"
            " folder"
        )
    return found


def write_gguf(model: Path) -> Path:
    """Converts a model's folder to `model.gguf` beside it, in the precision of its weights.

    Raises:
        UserError: where the converter does not know the model, with its last line. The model's
            folder is whole all the same.
    """
    target = model.with_name("model.gguf")
    command = [sys.executable, find_converter(), str(model), "--outtype", "auto"]
    command += ["--outfile", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not target.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it wrote no file"]
        raise UserError(f"{model} is written, but {CONVERTER} failed on it: {lines[-1][:300]}")
    return target
