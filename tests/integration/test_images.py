"""The recipe of images in a real embedded Triton, from PNG files: proved, asked, and sent what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploykit.cli.main import main
from deploykit.data.png import file_of_url, png_of
from deploykit.data.sample import digit_rows
from deploykit.errors import RequestError
from deploykit.pipeline.run import run_recipe
from deploykit.recipe import load_recipe
from deploykit.runners.triton_client import TritonClient
from deploykit.triton.embedded import EmbeddedServer, unsupported_reason

pytestmark = [
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason())),
]
RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"


def test_the_recipe_runs_and_png_files_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = digit_rows("test")
    for part, some in (("train", digit_rows("train")[:160]), ("test", rows[:60])):
        lines = ["image,digit"]
        for number, row in enumerate(some):
            name = f"{part}{number}.png"
            (tmp_path / name).write_bytes(file_of_url(row.text))
            lines.append(f"{name},{row.label}")
        (tmp_path / f"{part}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = [
        f"data.train={tmp_path / 'train.csv'}", f"data.test={tmp_path / 'test.csv'}", "data.text=image",
        "data.label=digit", "finetune.epochs=2", "quantize.mend=false", "quantize.smooth=never",
        "quantize.scheme=int8_static", "quantize.fusions=none",
    ]  # fmt: skip
    recipe = load_recipe(RECIPE, settings)
    work = tmp_path / "work"
    run_recipe(recipe, workspace=work, until="package")
    tuned, quantized, repository = (
        next(path for path in (work / "store" / stage).iterdir()) for stage in ("finetune", "quantize", "package")
    )
    (tmp_path / "broken.png").write_bytes(file_of_url(rows[0].text)[:50])
    with EmbeddedServer(repository, log=tmp_path / "serve.log") as server:
        url = server.urls.grpc
        assert url is not None
        capsys.readouterr()
        common = ["--data", str(tmp_path / "test.csv"), "--text", "image", "--task", recipe.task, "--json"]
        assert main(["parity", str(quantized), f"{url}/digits", "--no-labels", "--max-flips", "0.1", *common]) == 0
        assert json.loads(capsys.readouterr().out)["verdict"] == "pass"
        assert main(["parity", str(tuned), f"{url}/digits", "--label", "digit", "--max-drop", "0.3", *common]) in (0, 5)
        capsys.readouterr()
        code = main(["ask", "digits", str(tmp_path / "test0.png"), str(tmp_path / "test1.png"), "--url", url, "--json"])
        asked = json.loads(capsys.readouterr().out)
        assert code == 0
        assert [each["text"] for each in asked["answers"]] == [str(tmp_path / f"test{row}.png") for row in (0, 1)]
        assert main(["ask", "digits", str(tmp_path / "broken.png"), "--url", url]) == 1
        with TritonClient(url) as client:
            good, broken = file_of_url(rows[0].text), (tmp_path / "broken.png").read_bytes()

            def answered(*files: bytes) -> str:
                images = np.array(files, dtype=np.object_).reshape(-1, 1)
                return str(client.infer("digits", {"image": images}, ("label",))["label"][0, 0].decode())

            with pytest.raises(RequestError, match="image 1: a PNG that ends too early"):
                answered(good, broken)
            assert answered(good) == asked["answers"][0]["label"]
            large = np.repeat(np.repeat(np.full((8, 8, 3), 255, np.uint8), 30, axis=0), 20, axis=1)
            assert answered(png_of(large)) in "0123456789"
