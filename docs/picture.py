"""Draw docs/demo.svg from a real run of the demo: python docs/picture.py"""

from __future__ import annotations

import asyncio
import io
import re
import tempfile
from pathlib import Path

from rich.console import Console

from aibox.box import Box
from aibox.cli.demo import Demo
from aibox.settings import Settings


async def main() -> None:
    # Not a terminal: there the moving part of a progress display would be drawn frame after frame.
    console = Console(record=True, width=110, file=io.StringIO(), color_system="truecolor", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        async with Box(Settings(home=Path(folder) / "home")) as box:
            assert await Demo(console, box, model="default", seed=1).run()
        # The folder of this run means nothing to a reader.
        text = console.export_svg(title="make demo").replace(folder, "~")
    # Nor does the picture fetch its font from anybody: the reader's own monospace one will do.
    text = re.sub(r"\s*@font-face \{.*?\}", "", text, flags=re.DOTALL)
    Path(__file__).with_name("demo.svg").write_text(text, "utf-8")


asyncio.run(main())
