"""Images in: preprocessing and the sources that images come from."""

from vitquant.data.images import ImagesLike, open_images
from vitquant.data.preprocessing import Preprocessing
from vitquant.data.sources import Batch, ImageSource, SkippedImagesWarning

__all__ = ["Batch", "ImageSource", "ImagesLike", "Preprocessing", "SkippedImagesWarning", "open_images"]
