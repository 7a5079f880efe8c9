"""Whether the first step of the demo holds whatever the home's keys are: many new homes, the real embedded model.

The ids in pseudonyms depend on a random key, and a small model copies some ids worse than others.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from collections import Counter
from pathlib import Path

from report import Report, arguments
from rich.console import Console

from aibox.box import Box
from aibox.cli.demo import Demo, Step
from aibox.settings import Settings

HOMES = 40


async def home(model: Box, folder: Path) -> Step:
    """Step 1 in a home of its own, with the model of another box: loading it is not what is measured."""
    async with Box(Settings(home=folder)) as box:
        box.__dict__["router"] = model.router
        step = Step("1")
        await Demo(Console(file=io.StringIO()), box, model="default", seed=1).pseudonyms(step)
    return step


async def main() -> int:
    options = arguments(__doc__)
    homes = 8 if options.quick else HOMES
    report = Report("the demo's first step in new homes")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        async with Box(Settings(home=Path(folder) / "model")) as model:
            for number in range(homes):
                step = await home(model, Path(folder) / str(number))
                counts["holds" if step.holds else "fails"] += 1
                if not step.holds:
                    report.row(f"home {number}", "FAILS", "; ".join(f"{name}: {value}" for name, value in step.rows))
    report.row(f"step 1 in {homes} random homes", f"{counts['holds']} hold", f"{counts['fails']} fail")
    report.show(as_json=options.json)
    return int(counts["fails"] > 0)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
