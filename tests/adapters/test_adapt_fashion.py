"""The embedded model and its images."""

import torch

from vitquant.adapters.fashion import CLASSES, FASHION_SPEC, load_fashion, load_fashion_images
from vitquant.data import open_images


def test_the_images_are_what_they_say() -> None:
    images, labels, test_images, test_labels = load_fashion_images()
    assert (images.shape, test_images.shape) == ((512, 28, 28), (2000, 28, 28))
    assert (labels.shape, test_labels.shape) == ((512,), (2000,))
    for pixels, classes in ((images, labels), (test_images, test_labels)):
        assert pixels.dtype == torch.uint8
        assert classes.dtype == torch.int64
        assert classes.unique().tolist() == list(range(len(CLASSES)))
    every = {image.numpy().tobytes() for image in images}
    assert not any(image.numpy().tobytes() in every for image in test_images)


def test_the_model_knows_its_classes() -> None:
    model = load_fashion()
    _, _, images, labels = load_fashion_images()
    assert model.vit.spec == FASHION_SPEC
    assert model.preprocessing.shape == (1, 28, 28)
    hits = 0
    with torch.no_grad():
        for batch in open_images((images[:500], labels[:500]), model.preprocessing).batches(250):
            assert batch.labels is not None
            hits += int((model.vit(model.preprocessing.normalize(batch.pixels)).argmax(1) == batch.labels).sum())
    assert hits >= 0.88 * 500
