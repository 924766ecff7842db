"""The messages of docs/failures.md about models, raised."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vitquant
from support.documents import FAILURES, GOLDEN
from support.tensor_files import load_file
from vitquant.artifact.storage import TENSORS
from vitquant.errors import VitquantError
from vitquant.layers.memory import out_of_memory
from vitquant.layers.usage import using
from vitquant.runs import MANIFEST


def documented(error: VitquantError, folder: Path | None = None) -> bool:
    message = str(error) if folder is None else str(error).replace(str(folder), "model")
    return f"```text\nerror: {message}\n```" in FAILURES


def raised(action: Callable[[], object]) -> VitquantError:
    with pytest.raises(VitquantError) as caught:
        action()
    return caught.value


def test_at_the_entrance() -> None:
    model = vitquant.load(GOLDEN)
    pixels = torch.zeros(6, *model.preprocessing.shape, dtype=torch.uint8)
    assert documented(raised(lambda: model(pixels.long())))
    images = model.preprocessing.normalize(pixels)
    images[3, 0, 0, 0] = torch.nan
    assert documented(raised(lambda: model(images)))
    assert documented(raised(lambda: model.half()))


def test_in_other_threads() -> None:
    import threading

    model = vitquant.load(GOLDEN)
    for alone, action in ((True, lambda: model.set_mode(vitquant.Mode.FP32)), (False, lambda: model.double())):
        found: list[VitquantError] = []
        with using(model.points_inside(), alone=alone):
            thread = threading.Thread(target=lambda action=action, found=found: found.append(raised(action)))
            thread.start()
            thread.join()
        assert documented(found[0])


def test_out_of_memory() -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3200000000 bytes.")
    assert documented(out_of_memory(error, "blocks.0.attn_kv_out", torch.zeros(512, 1)))


def test_saved_models(tmp_path: Path) -> None:
    import hashlib

    from safetensors.torch import save_file

    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    for depth in (10**9, 1024):
        (folder / MANIFEST).write_text(json.dumps({**manifest, "spec": {**manifest["spec"], "depth": depth}}))
        assert documented(raised(lambda: vitquant.load(folder)), folder)
    tensors = load_file(folder / TENSORS)
    tensors["blocks.0.norm1.scale"][-1] = torch.nan
    save_file(tensors, folder / TENSORS)
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps({**manifest, "tensors": {"sha256": digest}}))
    assert documented(raised(lambda: vitquant.load(folder)), folder)
