"""Reading images: preprocessing, image sources, and checks of the images."""

from vitquant.data.checks import CalibrationCheck, CalibrationImagesWarning, SharedImages, SharedImagesWarning
from vitquant.data.folder import FolderWarning, SkippedImagesWarning
from vitquant.data.images import ImagesLike, open_images
from vitquant.data.normalization import NormalizationWarning
from vitquant.data.preprocessing import Preprocessing
from vitquant.data.sample import ImageSample
from vitquant.data.sources import Batch, ImageSource, model_batches

__all__ = [
    "Batch",
    "CalibrationCheck",
    "CalibrationImagesWarning",
    "FolderWarning",
    "ImageSample",
    "ImageSource",
    "ImagesLike",
    "NormalizationWarning",
    "Preprocessing",
    "SharedImages",
    "SharedImagesWarning",
    "SkippedImagesWarning",
    "model_batches",
    "open_images",
]
